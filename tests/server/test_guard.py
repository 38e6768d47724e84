"""No web page drives an open server; the pages of known origins may, and read its headers."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.errors import Unavailable
from headrace.observe.observer import Observers, RequestEnded
from headrace.server.cors import CORS
from headrace.server.exchange import Exchanges
from headrace.server.guard import Guard, refuse

HEADERS = [
    (b"content-type", b"text/plain"),
    (b"x-ratelimit-remaining-tokens", b"5"),
    (b"x-headrace-model", b"m"),
    (b"server", b"s"),
]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers in two chunks."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"b"})
    elif scope["type"] == "websocket":
        await send({"type": "websocket.accept"})


@dataclass
class Answer:
    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        told = self.messages[0]["headers"]
        names = [name for name, _ in told]
        assert len(names) == len(set(names))
        return {name.decode(): value.decode() for name, value in told}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])


def ask(
    target: ASGIApp, headers: Iterable[tuple[str, str]], method: str = "POST", kind: str = "http"
) -> Answer:
    answer = Answer()

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    async def send(message: Message) -> None:
        answer.messages.append(message)

    scope: dict[str, Any] = {
        "type": kind,
        "method": method,
        "path": "/v1/chat/completions",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
    }
    asyncio.run(target(scope, receive, send))
    return answer


def guarded(**settings: Any) -> Guard:
    return Guard(app, is_open=lambda: True, **settings)


OURS = ["localhost:8000", "LOCALHOST", "127.0.0.1:1", "127.0.0.1", "[::1]:8000", "[::1]"]
FOREIGN = [
    "evil.com",
    "evil.com:8000",
    "localhost.evil.com:8000",
    "127.0.0.1.evil.com",
    "evil.com@127.0.0.1",
    "0.0.0.0:8000",
    "192.168.1.5:8000",
    "[::2]:8000",
    "[",
    "",
    "ÿ",
]


@pytest.mark.parametrize("host", OURS)
def test_our_own_host_passes_with_any_port(host: str) -> None:
    assert ask(guarded(), [("host", host)]).body == b"ab"


@pytest.mark.parametrize("host", FOREIGN)
def test_a_foreign_host_is_refused_in_the_envelope(host: str) -> None:
    answer = ask(guarded(), [("host", host)])
    assert answer.status == 403
    error = json.loads(answer.body)["error"]
    assert (error["code"], error["type"]) == ("forbidden", "invalid_request_error")
    assert "--allowed-host" in error["message"]
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.headers["content-type"] == "application/json"


def test_one_good_host_does_not_hide_a_foreign_one() -> None:
    assert ask(guarded(), [("host", "localhost"), ("host", "evil.com")]).status == 403


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.com",
        "https://localhost.evil.com",
        "null",
        "",
        "http://[",
        "file://",
        "http://a@b",
    ],
)
def test_a_foreign_page_is_refused(origin: str) -> None:
    answer = ask(guarded(), [("host", "localhost:8000"), ("origin", origin)])
    assert answer.status == 403
    assert "--cors-origin" in json.loads(answer.body)["error"]["message"]


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:3000", "http://127.0.0.1:8000", "https://[::1]:5173", "http://localhost"],
)
def test_a_page_of_this_machine_passes(origin: str) -> None:
    assert ask(guarded(), [("host", "localhost:8000"), ("origin", origin)]).status == 200


def test_programs_name_neither() -> None:
    assert ask(guarded(), []).status == 200


def test_hosts_and_origins_can_be_allowed() -> None:
    guard = guarded(hosts=["box.LAN", "[fd00::1]:9"], origins=["https://app.example.com/"])
    for host in ("box.lan:8000", "BOX.lan", "[fd00::1]:8000"):
        assert ask(guard, [("host", host)]).status == 200
    assert ask(guard, [("host", "other.lan")]).status == 403
    assert ask(guard, [("origin", "https://app.example.com")]).status == 200
    assert ask(guard, [("origin", "http://app.example.com")]).status == 403
    assert ask(guarded(hosts=["*"], origins=["*"]), [("host", "a"), ("origin", "b")]).status == 200


def test_with_keys_nobody_needs_guarding() -> None:
    guard = Guard(app, is_open=lambda: False)
    assert ask(guard, [("host", "api.example.com"), ("origin", "http://evil.com")]).status == 200


def test_websockets_are_guarded_too() -> None:
    assert ask(guarded(), [("host", "localhost")], kind="websocket").messages == [
        {"type": "websocket.accept"}
    ]
    refused = ask(guarded(), [("origin", "http://evil.com")], kind="websocket").messages
    assert [message["type"] for message in refused] == ["websocket.close"]


def test_a_refusal_says_when_to_come_again() -> None:
    async def busy(scope: Scope, receive: Receive, send: Send) -> None:
        await refuse(scope, send, Unavailable("later", retry_after_s=61.5))

    answer = ask(busy, [])
    assert answer.status == 503
    assert answer.headers["retry-after"] == "62"
    assert answer.headers["x-should-retry"] == "false"


def test_a_refusal_is_known_to_the_logs() -> None:
    facts: list[RequestEnded] = []

    class Hearing:
        def observe(self, fact: Any) -> None:
            facts.append(fact)

    answer = ask(Exchanges(guarded(), Observers([Hearing()])), [("host", "evil.com")])
    assert answer.headers["x-request-id"].startswith("req_")
    assert (facts[0].status, facts[0].error_code) == (403, "forbidden")


PAGE = "https://app.example.com"


def crossing(*origins: str) -> CORS:
    return CORS(app, origins or (PAGE,))


def preflight(target: ASGIApp, *more: tuple[str, str], origin: str = PAGE) -> Answer:
    headers = [("origin", origin), ("access-control-request-method", "POST"), *more]
    return ask(target, headers, method="OPTIONS")


def test_preflight() -> None:
    asked = ("access-control-request-headers", "authorization,x-stainless-lang")
    answer = preflight(crossing(), asked)
    assert (answer.status, answer.body) == (204, b"")
    told = answer.headers
    assert told["access-control-allow-origin"] == PAGE
    assert "POST" in told["access-control-allow-methods"]
    assert told["access-control-allow-headers"] == "authorization,x-stainless-lang"
    assert told["vary"] == "origin"
    assert "access-control-allow-private-network" not in told


def test_preflight_into_a_private_network() -> None:
    answer = preflight(crossing(), ("access-control-request-private-network", "true"))
    assert answer.headers["access-control-allow-private-network"] == "true"


def test_preflight_of_others_is_refused() -> None:
    answer = preflight(crossing(), origin="https://evil.com")
    assert answer.status == 403
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_options_that_ask_nothing_are_a_request() -> None:
    assert ask(crossing(), [("origin", PAGE)], method="OPTIONS").body == b"ab"


def test_a_page_may_read_our_headers() -> None:
    answer = ask(crossing(), [("origin", PAGE)])
    told = answer.headers
    assert answer.body == b"ab"
    assert told["access-control-allow-origin"] == PAGE
    assert set(told["access-control-expose-headers"].split(", ")) == {
        "x-request-id",
        "x-client-request-id",
        "retry-after",
        "x-should-retry",
        "x-ratelimit-limit-requests",
        "x-ratelimit-limit-tokens",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-requests",
        "x-ratelimit-reset-tokens",
        "x-headrace-model",
        "x-headrace-ignored",
        "x-headrace-stream",
        "x-headrace-stream-token",
        "x-headrace-conversation-id",
        "idempotent-replayed",
    }
    assert "access-control-allow-credentials" not in told


def test_a_page_of_another_origin_may_read_nothing() -> None:
    told = ask(crossing(), [("origin", "https://evil.com")]).headers
    assert not any(name.startswith("access-control") for name in told)
    assert told["vary"] == "origin"


def test_any_origin() -> None:
    told = ask(crossing("*"), [("origin", "https://any.com")]).headers
    assert told["access-control-allow-origin"] == "*"
    assert "vary" not in told


def test_errors_can_be_read_too() -> None:
    answer = ask(CORS(guarded(origins=[PAGE]), [PAGE]), [("origin", PAGE), ("host", "evil.com")])
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (403, PAGE)


def test_what_has_no_origin_is_not_touched() -> None:
    passed: list[Send] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(send)

    async def send(message: Message) -> None: ...

    async def receive() -> Message:
        return {}

    scope = {"type": "http", "method": "POST", "headers": [(b"host", b"x")]}
    for middleware in (CORS(inner, [PAGE]), Guard(inner, is_open=lambda: True, hosts=["x"])):
        asyncio.run(middleware(scope, receive, send))
    assert passed == [send, send]


def test_lifespan_passes() -> None:
    assert ask(CORS(guarded(), [PAGE]), [], kind="lifespan").messages == []
