"""The engine's runner, on the real engine around a fake model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from headrace.bench.opening import Opened
from headrace.bench.whole import Arrivals, EngineRunner
from headrace.engine.engine import Engine
from headrace.errors import HeadraceError
from headrace.testing import FakeModel, FakeTemplate, FakeTokenizer

PROMPTS = [[i, i + 1, i + 2] * 8 for i in range(3)]


@pytest.fixture
def model() -> FakeModel:
    # Steps long enough for the reader to see tokens come one after the other.
    return FakeModel(context_length=512, step_s=0.002)


@pytest.fixture
def runner(model: FakeModel) -> Iterator[EngineRunner]:
    runner = EngineRunner(Engine(model, FakeTokenizer(), FakeTemplate()))
    yield runner
    runner.close()


def test_prefill_computes_the_whole_prompt_once(model: FakeModel, runner: EngineRunner) -> None:
    assert runner.prefill([list(range(100))]) > 0
    assert model.num_computed_tokens == 100


def test_decode_runs_all_sequences_and_profiles_its_steps(
    model: FakeModel, runner: EngineRunner
) -> None:
    seconds = runner.decode(PROMPTS, 40)
    assert seconds > 0
    assert runner.profile is not None
    # Of each sequence's 52 tokens at most those of the window, and at least some.
    assert 0 < runner.profile.num_steps <= 53
    assert runner.profile.num_sampled <= 3 * 52
    opened = Opened(model.spec, runner, 0.0, 0.0, runner.close)
    split = opened.profile()
    assert set(split) == {"plan", "model", "rows", "sample", "text", "publish", "python_share"}
    assert split["model"] > 0 and 0 < split["python_share"] < 1


def test_tokens_are_counted_as_they_arrive(runner: EngineRunner) -> None:
    arrivals = Arrivals()
    runner.run(runner.stream(PROMPTS[0], 20, arrivals))
    assert sum(count for _, count in arrivals.deltas) == 20
    assert arrivals.num_between(arrivals.first_at, arrivals.last_at) == (20 - arrivals.deltas[0][1])


def test_a_stream_that_is_left_is_cancelled(model: FakeModel, runner: EngineRunner) -> None:
    async def leave() -> Arrivals:
        arrivals = Arrivals()
        task = asyncio.create_task(runner.stream(PROMPTS[0], 400, arrivals))
        while not arrivals.deltas:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return arrivals

    assert runner.run(leave()).deltas
    runner.close()
    assert model.num_steps < 400


def test_a_refusal_is_raised(runner: EngineRunner) -> None:
    with pytest.raises(HeadraceError):
        runner.prefill([[1] * 600])
