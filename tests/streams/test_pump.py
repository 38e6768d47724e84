"""What the pump makes of an engine's events: all kept, each choice ended once, nothing left on."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from headrace.engine.engine import EngineConfig
from headrace.engine.request import Request
from headrace.errors import (
    EngineOverloaded,
    GenerationFailed,
    GenerationTimeout,
    HeadraceError,
    ToolUseFailed,
)
from headrace.events import Delta, Event, Failed, Finished, FinishReason, ToolCall, fold
from headrace.streams.patience import Patience
from headrace.streams.pump import Parser, Pump
from headrace.testing import END_ID, FakeModel, ManualEngine, saying

FOREVER = Patience()


class Loud:
    """Says everything in capitals, and calls a tool at the end."""

    num_reasoning_tokens = 2

    def push(self, delta: Delta) -> Sequence[Delta | ToolCall]:
        if "!" in delta.text:
            raise RuntimeError("a bug")
        return [replace(delta, text=delta.text.upper())]

    def finish(self, reason: FinishReason) -> tuple[Sequence[Delta | ToolCall], FinishReason]:
        if reason == "length":
            raise ToolUseFailed("cut", "raw")
        return [ToolCall(0, 0, "id", "shout", "{}")], "tool_calls"


class Runner:
    """A pump on an engine that moves when the loop is idle."""

    def __init__(self, engine: ManualEngine) -> None:
        self.engine = engine
        self.num_ends = 0

    def pump(
        self,
        *requests: Request,
        parser: Callable[[int], Parser | None] = lambda choice: None,
        patience: Patience = FOREVER,
    ) -> Pump:
        def end(pump: Pump) -> None:
            self.num_ends += 1

        num_choices = sum(request.n for request in requests)
        pump = Pump(num_choices, parser=parser, patience=patience, on_end=end)
        pump.submit(self.engine, [self.engine.prepare(request) for request in requests])
        return pump

    async def finish(self, pump: Pump) -> list[Event]:
        for _ in range(1000):
            if pump.log.is_over:
                break
            if self.engine._loop.has_work:
                self.engine.step()
            await asyncio.sleep(0)
        for _ in range(5):  # what was cancelled is gone a step later
            self.engine.step()
            await asyncio.sleep(0)
        stats = self.engine.stats()
        assert stats.num_running == stats.num_waiting == stats.num_held_banks == 0
        assert self.num_ends == 1
        return list(pump.log)


def saying_engine(text: str, config: EngineConfig | None = None) -> ManualEngine:
    return ManualEngine(FakeModel(rule=saying(list(text.encode()), END_ID)), config)


def test_text_passes_as_it_is() -> None:
    async def play() -> None:
        runner = Runner(saying_engine("hello"))
        pump = runner.pump(Request(prompt="a"))
        (choice,) = fold(await runner.finish(pump))
        assert (choice.text, choice.reason) == ("hello", "stop")
        tally = pump.tally
        assert tally.usages[0].num_completion_tokens == 6
        assert tally.reasons == ["stop"]
        assert len(tally.gaps_s) == 5 and tally.first_token_at is not None

    asyncio.run(play())


def test_a_parser_has_the_last_word() -> None:
    async def play() -> None:
        runner = Runner(saying_engine("hello"))
        (choice,) = fold(
            await runner.finish(runner.pump(Request(prompt="a"), parser=lambda i: Loud()))
        )
        assert (choice.text, choice.reason) == ("HELLO", "tool_calls")
        assert [call.name for call in choice.tool_calls] == ["shout"]
        assert choice.usage.num_reasoning_tokens == 2

    asyncio.run(play())


class Reticent:
    """Holds all back until the end."""

    num_reasoning_tokens = 0

    def __init__(self) -> None:
        self._heard: list[Delta] = []

    def push(self, delta: Delta) -> Sequence[Delta | ToolCall]:
        self._heard.append(delta)
        return []

    def finish(self, reason: FinishReason) -> tuple[Sequence[Delta | ToolCall], FinishReason]:
        return self._heard, reason


def test_choices_that_end_together_end_each_by_themselves() -> None:
    async def play() -> None:
        runner = Runner(saying_engine("hello"))
        pump = runner.pump(Request(prompt="a", n=3), parser=lambda choice: Reticent())
        choices = fold(await runner.finish(pump))
        assert [(choice.text, choice.reason) for choice in choices] == [("hello", "stop")] * 3

    asyncio.run(play())


def test_an_answer_that_its_parser_rejects_fails() -> None:
    async def play() -> None:
        runner = Runner(saying_engine("hello"))
        pump = runner.pump(Request(prompt="a", max_tokens=3), parser=lambda i: Loud())
        end = (await runner.finish(pump))[-1]
        assert isinstance(end, Failed) and isinstance(end.error, ToolUseFailed)
        assert end.usage.num_completion_tokens == 3 and pump.tally.reasons == ["error"]

    asyncio.run(play())


def test_a_parser_with_a_bug_ends_its_choice_and_stops_the_engine() -> None:
    async def play() -> None:
        runner = Runner(saying_engine("hey! and on and on"))
        events = await runner.finish(runner.pump(Request(prompt="a"), parser=lambda i: Loud()))
        end = events[-1]
        assert isinstance(end, Failed) and isinstance(end.error, GenerationFailed)
        assert end.usage.num_completion_tokens == 4
        assert runner.engine._loop.profile().num_sampled < 10

    asyncio.run(play())


def test_who_waits_for_the_end_lets_the_loop_sleep() -> None:
    async def play() -> None:
        runner = Runner(saying_engine("hello"))
        pump = runner.pump(Request(prompt="a"))
        while not len(pump.log):
            runner.engine.step()
            await asyncio.sleep(0)
        waiting = asyncio.create_task(pump.ended())
        await asyncio.sleep(0)
        num_events = len(pump.log)
        for _ in range(3):
            runner.engine.step()
            await asyncio.sleep(0)
        assert len(pump.log) == num_events
        (choice,) = fold(await runner.finish(pump))
        await asyncio.wait_for(waiting, 10)
        assert choice.text == "hello" and len(pump.tally.gaps_s) == 5

    asyncio.run(play())


def test_choices_of_several_prompts_are_numbered_through() -> None:
    async def play() -> None:
        runner = Runner(saying_engine("x"))
        pump = runner.pump(Request(prompt="a", n=2), Request(prompt="b", n=1))
        choices = fold(await runner.finish(pump))
        assert [(choice.index, choice.text) for choice in choices] == [(0, "x"), (1, "x"), (2, "x")]

    asyncio.run(play())


def test_a_prompt_that_is_refused_takes_the_others_with_it() -> None:
    async def play() -> None:
        runner = Runner(saying_engine("x", EngineConfig(max_pending=1)))
        with pytest.raises(EngineOverloaded):
            runner.pump(Request(prompt="a"), Request(prompt="b"))
        runner.engine.run_until_idle()
        await asyncio.sleep(0)
        assert runner.engine.stats().num_pending_requests == 0

    asyncio.run(play())


def test_all_hear_of_the_end_whoever_fails_at_it() -> None:
    def fail() -> None:
        raise OSError("too many open files")

    async def play() -> None:
        runner = Runner(saying_engine("x"))
        pump = runner.pump(Request(prompt="a"))
        heard: list[int] = []
        pump.when_over(fail)
        pump.when_over(lambda: heard.append(1))
        await runner.finish(pump)
        assert heard == [1]

    asyncio.run(play())


def test_leaving_ends_all() -> None:
    async def play() -> None:
        runner = Runner(ManualEngine())
        pump = runner.pump(Request(prompt="a", n=3, ignore_eos=True))
        for _ in range(4):
            runner.engine.step()
            await asyncio.sleep(0)
        pump.cancel()
        ends = [event for event in await runner.finish(pump) if isinstance(event, Finished)]
        assert [end.reason for end in ends] == ["cancelled"] * 3

    asyncio.run(play())


async def _never_served(pump: Pump) -> None:
    while not pump.log.is_over:
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("num_steps", "patience", "error", "said"),
    [
        (0, Patience(queue_s=0.02), EngineOverloaded, "no step computed"),
        (0, Patience(total_s=0.02), GenerationTimeout, "not whole"),
        (3, Patience(queue_s=0.02, first_token_s=0.02, stall_s=0.03), GenerationTimeout, "further"),
        (3, Patience(stall_s=0.02), GenerationTimeout, "further"),
        (3, Patience(stall_s=0.02, total_s=600), GenerationTimeout, "further"),
        (3, Patience(queue_s=0.02, first_token_s=0.02, total_s=0.03), GenerationTimeout, "whole"),
    ],
)
def test_patience_ends(
    num_steps: int, patience: Patience, error: type[HeadraceError], said: str
) -> None:
    async def play() -> None:
        runner = Runner(ManualEngine())
        pump = runner.pump(Request(prompt="a", n=2, ignore_eos=True), patience=patience)
        for _ in range(num_steps):
            runner.engine.step()
            await asyncio.sleep(0)
        await asyncio.wait_for(_never_served(pump), 30)
        ends = [event for event in await runner.finish(pump) if isinstance(event, Failed)]
        assert [type(end.error) for end in ends] == [error] * 2
        assert all(said in end.error.message for end in ends)

    asyncio.run(play())


def test_patience_that_is_not_tried_says_nothing() -> None:
    async def play() -> None:
        runner = Runner(saying_engine("hello"))
        patience = Patience(queue_s=30, first_token_s=30, stall_s=30, total_s=30)
        (choice,) = fold(await runner.finish(runner.pump(Request(prompt="a"), patience=patience)))
        assert choice.reason == "stop"

    asyncio.run(play())
