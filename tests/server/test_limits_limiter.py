"""Who is admitted, what that costs them, and when the others may come again."""

from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from headrace.errors import RateLimited, RequestTooLarge
from headrace.server.limits import Limit, Limiter, LimitTable, MemoryStore, Permit, Row
from headrace.testing import ManualClock

T = TypeVar("T")

MODEL = "llama-3.1-8b-instant"


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it waited")


class Client:
    """A limiter, its clock, and a short way to ask."""

    def __init__(self, *limits: Limit, table: LimitTable | None = None) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.limiter = Limiter(table or LimitTable(default=Row(limits)), self.store)

    def ask(
        self,
        num_tokens: int = 1,
        max_tokens: int | None = None,
        tenant: str = "a",
        model: str = "m",
    ) -> Permit:
        return at_once(self.limiter.admit(tenant, model, num_tokens, max_tokens))

    def refusal(self, num_tokens: int = 1, **asked: Any) -> RateLimited:
        with pytest.raises(RateLimited) as refused:
            self.ask(num_tokens, **asked)
        return refused.value

    def headers(self, tenant: str = "a", model: str = "m") -> dict[str, str]:
        told = self.limiter.headers(tenant, model)
        return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in told}

    def remaining(self, tenant: str = "a", model: str = "m") -> int:
        return int(self.headers(tenant, model)["remaining-tokens"])


@pytest.fixture
def groq() -> Client:
    return Client(table=LimitTable.parse("groq-free"))


def test_headers_are_those_of_the_wire(groq: Client) -> None:
    assert groq.headers(model=MODEL) == {
        "limit-requests": "14400",
        "limit-tokens": "6000",
        "remaining-requests": "14400",
        "remaining-tokens": "6000",
        "reset-requests": "0s",
        "reset-tokens": "0s",
    }
    groq.ask(13, model=MODEL)
    told = groq.headers(model=MODEL)
    assert (told["remaining-requests"], told["reset-requests"]) == ("14399", "6s")
    assert (told["remaining-tokens"], told["reset-tokens"]) == ("5987", "130ms")
    groq.clock.advance(0.1299)
    assert groq.headers(model=MODEL)["reset-tokens"] == "1ms"  # `100µs` is not ASCII.


def test_headers_are_ascii_and_told_only_where_something_is_limited() -> None:
    assert Client().headers() == {}
    assert set(Client(Limit("TPM", 5)).headers()) == {
        "limit-tokens",
        "remaining-tokens",
        "reset-tokens",
    }
    assert Client(Limit("RPM", 5)).headers()["limit-requests"] == "5"
    assert Client(Limit("TPD", 7)).headers()["limit-tokens"] == "7"


def test_429_in_groqs_words(groq: Client) -> None:
    groq.ask(34, 5_000, model=MODEL)
    error = groq.refusal(443, max_tokens=1_000, model=MODEL)
    assert error.message == (
        "Rate limit reached for model `llama-3.1-8b-instant` in organization `org_a` service tier "
        "`on_demand` on tokens per minute (TPM): Limit 6000, Used 5034, Requested 1443. "
        "Please try again in 4.77s."
    )
    assert (error.status, error.wire_type, error.code) == (429, "tokens", "rate_limit_exceeded")
    assert (error.limit, error.retry_after_s) == ("TPM", 5)


def test_413_in_groqs_words(groq: Client) -> None:
    with pytest.raises(RequestTooLarge) as refused:
        groq.ask(328, 12_000, model=MODEL)
    error = refused.value
    assert error.message == (
        "Request too large for model `llama-3.1-8b-instant` in organization `org_a` service tier "
        "`on_demand` on tokens per minute (TPM): Limit 6000, Requested 12328, please reduce your "
        "message size and try again."
    )
    assert (error.status, error.wire_type, error.limit) == (413, "tokens", "TPM")
    assert error.retry_after_s is None


def test_too_many_requests_a_minute(groq: Client) -> None:
    for _ in range(30):
        groq.ask(1, model=MODEL)
    error = groq.refusal(1, model=MODEL)
    assert "requests per minute (RPM): Limit 30, Used 30, Requested 1. " in error.message
    assert (error.wire_type, error.limit, error.retry_after_s) == ("requests", "RPM", 2)


def test_the_longest_wait_is_told() -> None:
    client = Client(Limit("RPM", 1), Limit("TPD", 100))
    client.ask(100)
    error = client.refusal(50)
    assert (error.limit, error.retry_after_s) == ("TPD", 43_200)


@pytest.mark.parametrize(("tier", "told"), [("flex", "`flex`"), ("auto", "`on_demand`")])
def test_messages_name_the_tier_and_the_tenant(tier: str, told: str) -> None:
    client = Client(Limit("RPM", 1))
    client.ask(tenant="key_1f")
    with pytest.raises(RateLimited, match=f"organization `org_1f` service tier {told} on"):
        at_once(client.limiter.admit("key_1f", "m", 1, None, tier))


def test_max_tokens_is_reserved_only_where_it_is_set() -> None:
    client = Client(Limit("TPM", 1_000))
    client.ask(100)
    assert client.remaining() == 900
    client.ask(100, 300)
    assert client.remaining() == 500


def test_settling_counts_what_was_used_and_not_what_was_cached() -> None:
    client = Client(Limit("TPM", 1_000), Limit("TPD", 5_000), Limit("RPD", 10))
    permit = client.ask(120, 300)
    permit.settle(num_prompt_tokens=130, num_cached_tokens=100, num_completion_tokens=20)
    assert client.remaining() == 950
    assert client.headers()["remaining-requests"] == "9"


def test_once_settled_nothing_more_counts() -> None:
    client = Client(Limit("TPM", 1_000), Limit("RPD", 10))
    permit = client.ask(100, 300)
    permit.settle(100, 0, 50)
    permit.settle(100, 0, 999)
    permit.cancel()
    assert client.remaining() == 850
    assert client.headers()["remaining-requests"] == "9"


def test_cancelling_gives_all_back_the_request_too() -> None:
    client = Client(Limit("TPM", 1_000), Limit("RPM", 1), Limit("RPD", 10))
    permit = client.ask(100, 300)
    permit.cancel()
    permit.settle(100, 0, 50)
    assert client.remaining() == 1_000
    assert client.headers()["remaining-requests"] == "10"
    client.ask(1_000)


def test_an_admitted_stream_may_overrun_its_limit() -> None:
    client = Client(Limit("TPM", 60))
    permit = client.ask(10)
    permit.settle(10, 0, 110)
    assert client.remaining() == 0
    assert client.headers()["reset-tokens"] == "2m0s"
    error = client.refusal(1)
    assert "Used 120," in error.message
    assert error.retry_after_s == 61


def test_a_stream_of_a_server_before_counts_where_its_name_does() -> None:
    client = Client(Limit("TPM", 1_000))
    table = LimitTable(default=Row((Limit("TPM", 1_000),)))
    client.limiter = Limiter(table, client.store, limited_as=lambda _: "m")
    client.limiter.readmit("a", "an invented name", 500, None)
    assert client.remaining() == 500


def test_all_or_nothing() -> None:
    client = Client(Limit("RPM", 1), Limit("TPM", 1_000))
    client.ask(100)
    client.refusal(200)
    assert client.remaining() == 900
    client.clock.advance(60)
    client.ask(900)
    client.clock.advance(30)
    client.refusal(900)
    client.clock.advance(30)
    client.ask(900)


def test_tenants_and_models_do_not_touch_each_other() -> None:
    client = Client(Limit("TPM", 1_000))
    client.ask(1_000)
    for tenant, model in (("b", "m"), ("a", "n")):
        assert client.remaining(tenant, model) == 1_000
        client.ask(1_000, tenant=tenant, model=model)


def test_buckets_that_are_empty_again_are_dropped() -> None:
    client = Client(Limit("RPM", 60), Limit("TPM", 60))
    for number in range(2_000):
        client.ask(tenant=str(number))
        client.clock.advance(0.25)
    # Each is gone after a second, so four tenants' buckets are in use at a time.
    assert len(client.store) <= 2 * 8 + 64 + 2


def test_a_permit_outlives_its_bucket() -> None:
    client = Client(Limit("TPM", 60))
    permit = client.ask(10)
    client.clock.advance(100)
    for number in range(200):
        client.ask(tenant=str(number))
    assert client.remaining() == 60
    permit.settle(10, 0, 5)
    assert client.remaining() == 55


_HISTORY = st.lists(
    st.tuples(
        st.integers(0, 30_000),  # milliseconds to wait first
        st.integers(0, 40),  # prompt
        st.none() | st.integers(0, 60),  # max_tokens
        st.none() | st.integers(0, 80),  # completion, where it ends at once
    ),
    max_size=12,
)
_LIMITS = st.sampled_from(
    [
        (Limit("RPM", 3),),
        (Limit("RPM", 7), Limit("TPM", 101)),
        (Limit("RPM", 30), Limit("RPD", 11), Limit("TPM", 130), Limit("TPD", 1_700)),
        (Limit("TPM", 100), Limit("TPD", 313)),
    ]
)


@settings(max_examples=150, deadline=None)
@given(_LIMITS, _HISTORY, st.integers(0, 99))
def test_who_waits_as_told_is_admitted_and_a_second_earlier_is_not(
    limits: tuple[Limit, ...], history: list[tuple[int, int, int | None, int | None]], last: int
) -> None:
    client = Client(*limits)
    for wait_ms, num_tokens, max_tokens, num_completed in history:
        client.clock.now = (round(client.clock.now * 1_000) + wait_ms) / 1_000
        try:
            permit = client.ask(num_tokens, max_tokens)
        except RateLimited:
            continue
        if num_completed is not None:
            permit.settle(num_tokens, num_tokens // 2, num_completed)
    try:
        client.ask(last)
    except RateLimited as error:
        assert error.retry_after_s is not None
        assert error.retry_after_s == int(error.retry_after_s) >= 1
        client.clock.advance(error.retry_after_s - 1)
        assert 0 < (client.refusal(last).retry_after_s or 0) <= 1
        client.clock.advance(1)
        client.ask(last)


class Conservation(RuleBasedStateMachine):
    """While the clock stands, what is used is what was settled and what is still reserved."""

    TENANTS = ("a", "b")

    @initialize(limit=st.integers(50, 400))
    def begin(self, limit: int) -> None:
        self.limit = limit
        self.client = Client(Limit("TPM", limit), Limit("RPD", 1_000_000))
        self.used = dict.fromkeys(self.TENANTS, 0)
        self.num_requests = dict.fromkeys(self.TENANTS, 0)
        self.open: list[tuple[str, Permit, int]] = []

    @rule(
        tenant=st.sampled_from(TENANTS),
        num_tokens=st.integers(0, 80),
        max_tokens=st.none() | st.integers(0, 80),
    )
    def ask(self, tenant: str, num_tokens: int, max_tokens: int | None) -> None:
        requested = num_tokens + (max_tokens or 0)
        fits = self.used[tenant] + requested <= self.limit
        try:
            permit = self.client.ask(num_tokens, max_tokens, tenant=tenant)
        except RateLimited:
            assert not fits
            return
        assert fits
        self.used[tenant] += requested
        self.num_requests[tenant] += 1
        self.open.append((tenant, permit, requested))

    @rule(
        which=st.integers(0, 100),
        prompt=st.integers(0, 90),
        cached=st.integers(0, 90),
        completion=st.integers(0, 200),
    )
    def settle(self, which: int, prompt: int, cached: int, completion: int) -> None:
        if self.open:
            tenant, permit, reserved = self.open.pop(which % len(self.open))
            permit.settle(prompt, cached, completion)
            permit.settle(prompt, cached, completion)
            self.used[tenant] += max(0, prompt - cached) + completion - reserved

    @rule(which=st.integers(0, 100))
    def cancel(self, which: int) -> None:
        if self.open:
            tenant, permit, reserved = self.open.pop(which % len(self.open))
            permit.cancel()
            self.used[tenant] -= reserved
            self.num_requests[tenant] -= 1

    @invariant()
    def nothing_is_lost(self) -> None:
        for tenant in self.TENANTS if hasattr(self, "client") else ():
            told = self.client.headers(tenant)
            used = self.used[tenant]
            assert int(told["remaining-tokens"]) == max(0, self.limit - used)
            assert self.client.store.level((tenant, "m", "TPM"), self.tpm).used == used
            assert int(told["remaining-requests"]) == 1_000_000 - self.num_requests[tenant]

    @property
    def tpm(self) -> Limit:
        return Limit("TPM", self.limit)


TestConservation = Conservation.TestCase
TestConservation.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
