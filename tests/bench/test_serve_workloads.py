"""What the load generator asks: seeded, of the lengths that were named, sharing no beginnings."""

from __future__ import annotations

import random
import statistics
from itertools import islice

import pytest

from headrace.bench.serve.workloads import WORKLOADS, Conversation, Length, Workload


def some(workload: Workload, num: int, seed: int = 1) -> list[Conversation]:
    return list(islice(workload.conversations(seed), num))


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=lambda workload: workload.name)
def test_the_same_seed_asks_the_same(workload: Workload) -> None:
    assert some(workload, 5) == some(workload, 5)
    assert some(workload, 5) != some(workload, 5, seed=2)


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=lambda workload: workload.name)
def test_questions_share_no_beginning(workload: Workload) -> None:
    asked = [turn.question for one in some(workload, 40) for turn in one.turns]
    first = [question.split()[0] for question in asked]
    assert len(set(first)) == len(first)


def test_fixed_lengths() -> None:
    for one in some(WORKLOADS["fixed"], 20):
        [turn] = one.turns
        assert (len(turn.question.split()), turn.max_tokens, one.system) == (128, 64, "")


def test_system_messages_are_shared_or_own() -> None:
    shared = {one.system for one in some(WORKLOADS["shared-prefix"], 10)}
    assert len(shared) == 1 and len(shared.pop().split()) == 512
    own = [one.system for one in some(WORKLOADS["multi-turn"], 10)]
    assert len(set(own)) == 10
    assert {len(one.turns) for one in some(WORKLOADS["multi-turn"], 3)} == {5}


def test_lognormal_lengths() -> None:
    source, length = random.Random(1), Length(50, 0.9)
    drawn = [length.draw(source) for _ in range(4000)]
    assert statistics.median(drawn) == pytest.approx(50, rel=0.1)
    assert min(drawn) >= 1 and max(drawn) <= 400
    # Lognormal: 84 % of all are below median times e^sigma.
    assert sum(one <= 50 * 2.46 for one in drawn) / len(drawn) == pytest.approx(0.84, abs=0.03)
