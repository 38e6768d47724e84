"""A leaky bucket, against one that keeps its whole history in fractions."""

from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.server.limits.bucket import TICKS_PER_S, Bucket, Dimension, Limit, Portion

S = TICKS_PER_S


@dataclass
class Replay:
    """What was put in and when, as it is known now; the level is computed anew each time."""

    limit: Limit
    puts: list[tuple[int, int, int]] = field(default_factory=list)
    """(moment, in which order, amount)"""

    def level(self, now: int) -> Fraction:
        rate = Fraction(self.limit.amount, self.limit.window_ticks)
        level, at = Fraction(0), 0
        for moment, _, amount in sorted(self.puts):
            level = max(Fraction(0), level - rate * (moment - at)) + amount
            at = moment
        return max(Fraction(0), level - rate * (now - at))


@pytest.mark.parametrize(
    ("dimension", "amount", "used", "requested", "wait_s"),
    [
        # Bodies of real answers.
        ("TPM", 6_000, 5_034, 1_443, "4.77"),
        ("TPD", 100_000, 99_669, 1_000, "578.016"),
        ("RPM", 30, 30, 1, "2"),
        ("RPD", 14_400, 14_400, 1, "6"),
    ],
)
def test_waits_as_on_the_wire(
    dimension: Dimension, amount: int, used: int, requested: int, wait_s: str
) -> None:
    bucket = Bucket(Limit(dimension, amount), 0)
    bucket.put(used, 0)
    assert bucket.used(0) == used
    assert Fraction(bucket.wait_ticks(requested, 0), S) == Fraction(wait_s)
    assert bucket.wait_ticks(amount - used, 0) == 0


def test_reset_is_the_time_until_all_is_gone() -> None:
    bucket = Bucket(Limit("TPM", 30_000), 0)
    bucket.put(13, 0)
    assert bucket.reset_ticks(0) == 26_000
    assert bucket.used(25_999) == 1
    assert bucket.used(26_000) == 0


def test_a_clock_that_steps_back_leaks_nothing() -> None:
    bucket = Bucket(Limit("RPM", 60), 10 * S)
    bucket.put(5, 10 * S)
    assert bucket.used(0) == 5
    assert bucket.used(11 * S) == 4


def test_a_late_refund_does_not_free_what_others_put_in() -> None:
    """A whole limit reserved early and given back late must not allow the limit twice at once."""
    bucket = Bucket(Limit("TPM", 6_000), 0)
    early = bucket.put(6_000, 0)
    bucket.put(6_000, 60 * S)
    bucket.settle(early, 0, 60 * S)
    assert bucket.used(60 * S) == 6_000


def test_a_refund_counts_as_if_it_had_never_been_reserved() -> None:
    bucket = Bucket(Limit("TPM", 6_000), 0)
    reserved = bucket.put(1_010, 0)
    other = bucket.put(2_000, 1 * S)
    bucket.settle(reserved, 15, 2 * S)
    # 15 leaked within the first second, then one of two seconds' 100 from the others' 2,000.
    assert bucket.used(2 * S) == 1_900
    bucket.settle(other, 2_000, 2 * S)
    assert bucket.used(2 * S) == 1_900


def test_a_refund_moves_what_others_had_put_in() -> None:
    """10 a second. Without the first portion, the second would have leaked before the third."""
    bucket = Bucket(Limit("RPM", 600), 0)
    first, second = bucket.put(100, 0), bucket.put(50, 0)
    bucket.put(50, 5 * S)
    bucket.settle(first, 0, 5 * S)
    bucket.settle(second, 0, 5 * S)
    assert bucket.used(5 * S) == 50


def test_a_refund_moves_what_was_put_in_before_it() -> None:
    """10 a second. Without the second portion, the first would have leaked before the third."""
    bucket = Bucket(Limit("RPM", 600), 0)
    first, second = bucket.put(50, 0), bucket.put(100, 0)
    bucket.put(50, 5 * S)
    bucket.settle(second, 0, 5 * S)
    bucket.settle(first, 0, 5 * S)
    assert bucket.used(5 * S) == 50


# One a second, small amounts and short waits: buckets that are often just empty.
_ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.integers(1, 6).map(lambda seconds: seconds * S)),
        st.tuples(st.just("put"), st.integers(0, 6)),
        st.tuples(st.just("settle"), st.integers(0, 1 << 16), st.integers(0, 7)),
        st.tuples(st.just("settle"), st.integers(0, 1 << 16), st.just(0)),
    ),
    min_size=12,
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(_ACTIONS, st.sampled_from([Limit("TPM", 60), Limit("RPM", 47), Limit("TPD", 10**5)]))
def test_always_as_full_as_if_only_what_was_used_had_been_put_in(
    actions: list[tuple[str, int, int]], limit: Limit
) -> None:
    bucket, replay, now = Bucket(limit, 0), Replay(limit), 0
    live: list[tuple[Portion, int]] = []
    """What is not settled, and where it is in the replay."""
    for action in actions:
        if action[0] == "wait":
            now += action[1]
        elif action[0] == "put":
            live.append((bucket.put(action[1], now), len(replay.puts)))
            replay.puts.append((now, len(replay.puts), action[1]))
        elif live:
            portion, index = live.pop(action[1] % len(live))
            bucket.settle(portion, action[2], now)
            moment, order, amount = replay.puts[index]
            replay.puts[index] = (moment, order, min(amount, action[2]))
            replay.puts.append((now, len(replay.puts), max(0, action[2] - amount)))
        level = replay.level(now)
        assert bucket.used(now) == -(-level // 1)
        assert bucket.reset_ticks(now) == -(-level * limit.window_ticks // limit.amount)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 80)), max_size=20), st.randoms())
def test_in_any_order_what_is_left_is_what_was_used(
    requests: list[tuple[int, int]], random: object
) -> None:
    bucket = Bucket(Limit("TPM", 10), 0)
    live = [(bucket.put(reserved, 0), used) for reserved, used in requests]
    random.shuffle(live)  # type: ignore[attr-defined]
    for portion, used in live:
        bucket.settle(portion, used, 0)
        assert bucket.used(0) >= 0
    assert bucket.used(0) == sum(used for _, used in requests)


def test_portions_that_are_never_settled_are_forgotten() -> None:
    bucket = Bucket(Limit("TPM", 6_000), 0)
    portions = [bucket.put(1, now * S) for now in range(100)]
    assert bucket.reset_ticks(101 * S) == 0
    bucket.settle(portions[0], 0, 102 * S)
    bucket.settle(portions[1], 10, 102 * S)
    assert bucket.used(102 * S) == 9
    assert not bucket._open
