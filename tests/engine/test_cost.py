import random
from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.cost import CostModel, StepRates
from support.scheduling import RATES


class Span(NamedTuple):
    num_tokens: int
    position: int


def mixed_step(rng: random.Random) -> list[Span]:
    """What a busy engine does: some streams, often a chunk of a prompt."""
    spans = [Span(1, rng.randrange(2000)) for _ in range(rng.choice([0, 1, 1, 4, 16]))]
    if not spans or rng.random() < 0.5:
        spans.append(Span(16 * rng.randrange(1, 9), rng.randrange(0, 2000, 16)))
    return spans


def scaled(rates: StepRates, factor: float) -> StepRates:
    return StepRates(
        rates.base_s * factor, rates.token_s * factor, rates.read_s * factor, rates.pair_s * factor
    )


def test_an_estimate_is_the_sum_of_its_shares() -> None:
    cost = CostModel(StepRates(base_s=1.0, token_s=0.1, read_s=0.01, pair_s=0.001))
    assert cost.estimate([]) == 1.0
    # 10 tokens from position 100: 110 positions read once, 10 x 105 pairs.
    assert cost.estimate([Span(10, 100)]) == pytest.approx(1.0 + 1.0 + 1.1 + 1.05)
    assert cost.estimate([Span(1, 0)] * 2) == pytest.approx(1.0 + 2 * cost.price(1, 0))


@given(
    seconds=st.floats(-1, 10),
    position=st.integers(0, 100_000),
    factor=st.floats(0.01, 100),
)
def test_tokens_within_is_the_inverse_of_the_price(
    seconds: float, position: int, factor: float
) -> None:
    cost = CostModel(scaled(RATES, factor))
    n = cost.num_tokens_within(seconds, position)
    assert n >= 0
    if n:
        assert cost.price(n, position) <= seconds * (1 + 1e-9)
    if seconds > 0:
        assert cost.price(n + 1, position) > seconds * (1 - 1e-9)


def test_without_attention_cost_the_inverse_still_holds() -> None:
    cost = CostModel(StepRates(base_s=0.01, token_s=0.001, read_s=0.0, pair_s=0.0))
    assert cost.num_tokens_within(0.0405, 5000) == 40


@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0, 20.0])
def test_it_learns_a_machine_that_is_not_as_guessed(factor: float) -> None:
    rng = random.Random(1)
    truth, learnt = CostModel(scaled(RATES, factor)), CostModel(RATES)
    for _ in range(400):
        spans = mixed_step(rng)
        learnt.observe(spans, truth.estimate(spans) * rng.uniform(0.8, 1.25))
    for spans in ([Span(1, 100)], [Span(128, 0)], [Span(1, 500)] * 16, [Span(64, 1500)]):
        assert learnt.estimate(spans) == pytest.approx(truth.estimate(spans), rel=0.25)


def test_it_learns_shares_that_are_not_as_guessed() -> None:
    rng = random.Random(2)
    truth = CostModel(replace(RATES, base_s=RATES.base_s * 5, pair_s=RATES.pair_s / 5))
    learnt = CostModel(RATES)
    for _ in range(2000):
        spans = mixed_step(rng)
        learnt.observe(spans, truth.estimate(spans))
    for spans in ([Span(1, 100)], [Span(128, 0)], [Span(128, 1800)], [Span(1, 500)] * 16):
        assert learnt.estimate(spans) == pytest.approx(truth.estimate(spans), rel=0.15)


def test_few_steps_are_enough_after_a_far_guess() -> None:
    truth, learnt = CostModel(scaled(RATES, 10)), CostModel(RATES)
    for _ in range(6):
        learnt.observe([Span(128, 0)], truth.estimate([Span(128, 0)]))
    assert learnt.estimate([Span(128, 0)]) == pytest.approx(
        truth.estimate([Span(128, 0)]), rel=0.25
    )


def test_rare_hiccups_change_little() -> None:
    rng = random.Random(3)
    learnt = CostModel(RATES)
    for i in range(300):
        spans = mixed_step(rng)
        factor = 30.0 if i % 20 == 19 else 1.0
        learnt.observe(spans, CostModel(RATES).estimate(spans) * factor)
    for spans in ([Span(1, 100)], [Span(128, 0)]):
        assert learnt.estimate(spans) == pytest.approx(CostModel(RATES).estimate(spans), rel=0.4)


def test_long_decoding_alone_does_not_unlearn_what_prompts_cost() -> None:
    rng = random.Random(4)
    learnt = CostModel(RATES)
    for _ in range(5000):
        spans = [Span(1, 300)]
        learnt.observe(spans, CostModel(RATES).estimate(spans) * rng.uniform(0.8, 1.25))
    assert learnt.rates.token_s == pytest.approx(RATES.token_s, rel=0.2)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60))
def test_rates_stay_positive_and_finite_whatever_is_measured(times: list[float]) -> None:
    cost = CostModel(RATES)
    for seconds in times:
        cost.observe([Span(1, 10), Span(64, 128)], seconds)
    rates = cost.rates
    assert all(0 < r < 1e9 for r in (rates.base_s, rates.token_s, rates.read_s, rates.pair_s))
    assert cost.num_tokens_within(0.04, 0) >= 0


def test_a_guess_grows_with_the_model() -> None:
    small = StepRates.guess(num_parameters=135_000_000, weight_bytes=97_000_000)
    large = StepRates.guess(num_parameters=1_240_000_000, weight_bytes=800_000_000)
    # A 512-token prompt of the small model takes 0.1 to 0.3 seconds on the reference machine.
    assert 0.1 < CostModel(small).estimate([Span(512, 0)]) < 0.3
    assert CostModel(large).estimate([Span(512, 0)]) > 5 * CostModel(small).estimate([Span(512, 0)])
