import random

import pytest

from headrace.engine.sequence import Sequence
from headrace.engine.waiting_line import WaitingLine


def arrive(line: WaitingLine, tenant: str, num_tokens: int) -> Sequence:
    s = Sequence(0, tenant, range(num_tokens), max_num_tokens=1000)
    line.join(s)
    line.push(s, num_tokens)
    return s


def take(line: WaitingLine) -> Sequence:
    first = line.first()
    assert first is not None
    line.remove(first[1])
    return first[1]


def test_nobody_waits_at_first() -> None:
    line = WaitingLine()
    assert (len(line), line.num_tokens, line.first()) == (0, 0, None)


def test_the_nearest_goes_first_and_equals_in_order_of_arrival() -> None:
    line = WaitingLine()
    long = arrive(line, "a", 50)
    short = arrive(line, "a", 5)
    equal = arrive(line, "a", 5)
    assert line.num_tokens == 60
    assert [take(line) for _ in range(3)] == [short, equal, long]
    assert len(line) == 0


def test_a_long_one_is_overtaken_by_its_own_length_at_most() -> None:
    line = WaitingLine()
    long = arrive(line, "a", 50)
    num_overtaking = 0
    while True:
        short = arrive(line, "a", 5)
        first = take(line)
        if first is long:
            break
        assert first is short
        num_overtaking += 5
        line.serve("a", 5)
        line.leave(short)
    assert 40 <= num_overtaking <= 50


def test_the_least_served_tenant_goes_first() -> None:
    line = WaitingLine()
    arrive(line, "a", 5)
    b = arrive(line, "b", 50)
    line.served["a"] += 1
    assert take(line) is b


def test_a_crowd_of_one_tenant_does_not_delay_another() -> None:
    line = WaitingLine()
    for _ in range(100):
        arrive(line, "crowd", 10)
    for _ in range(20):
        line.serve(take(line).tenant, 10)
    guest = arrive(line, "guest", 10)
    assert take(line) is guest


def test_a_newcomer_starts_level_so_that_absence_earns_no_credit() -> None:
    line = WaitingLine()
    for _ in range(10):
        arrive(line, "a", 10)
    for _ in range(100):
        line.serve("a", 10)
    for _ in range(10):
        arrive(line, "b", 10)
    turns = []
    for _ in range(10):
        s = take(line)
        line.serve(s.tenant, 10)
        turns.append(s.tenant)
    assert 4 <= turns.count("a") <= 6


def test_leaving_and_coming_back_wins_nothing() -> None:
    line = WaitingLine()
    stays = arrive(line, "stays", 10)
    leaves = arrive(line, "leaves", 10)
    line.served["stays"] += 10
    line.served["leaves"] += 500
    line.remove(leaves)
    line.leave(leaves)
    arrive(line, "leaves", 1)
    assert take(line) is stays


def test_an_empty_house_forgets_everything() -> None:
    line = WaitingLine()
    s = arrive(line, "a", 10)
    line.served["a"] += 10
    line.leave(take(line))
    assert not line.served
    assert s.arrival == 1


def test_tenants_long_gone_are_forgotten_while_others_stay() -> None:
    line = WaitingLine()
    arrive(line, "stays", 10)
    for i in range(10_000):
        s = arrive(line, f"guest {i}", 1)
        line.serve("stays", 10)
        line.served[s.tenant] += 1
        line.remove(s)
        line.leave(s)
    assert len(line.served) < 200
    assert line.served["stays"] == 100_000


def test_joining_twice_is_refused() -> None:
    line = WaitingLine()
    s = arrive(line, "a", 1)
    with pytest.raises(ValueError, match="here already"):
        line.join(s)


def test_removal_from_anywhere_keeps_the_order() -> None:
    rng = random.Random(0)
    line = WaitingLine()
    waiting = [arrive(line, "a", rng.randrange(1, 100)) for _ in range(60)]
    rng.shuffle(waiting)
    for s in waiting[:30]:
        line.remove(s)
    rest = sorted(waiting[30:], key=lambda s: (len(s.tokens), s.arrival))
    assert [take(line) for _ in rest] == rest
