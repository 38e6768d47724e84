"""The engine's two faces, on its own thread."""

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from headrace.engine.engine import Engine, EngineConfig
from headrace.engine.request import Request
from headrace.errors import (
    ContextLengthExceeded,
    EngineClosed,
    EngineOverloaded,
    GenerationFailed,
    InvalidRequest,
    ModelError,
)
from headrace.events import Delta, Event, Failed, Finished, Started, fold
from headrace.model.interface import Model
from headrace.testing import (
    END_ID,
    START_ID,
    FakeModel,
    FakeTemplate,
    FakeTokenizer,
    FaultyModel,
    saying,
)


def make(model: Model, config: EngineConfig | None = None) -> Engine:
    return Engine(model, FakeTokenizer(), FakeTemplate(), config)


def saying_text(text: str) -> FakeModel:
    return FakeModel(rule=saying(text.encode(), then=END_ID))


@pytest.fixture
def hello() -> Iterator[Engine]:
    with make(saying_text("Hello")) as engine:
        yield engine


@pytest.fixture
def engine() -> Iterator[Engine]:
    with make(FakeModel()) as engine:
        yield engine


def idle(engine: Engine) -> bool:
    stats = engine.stats()
    return stats.num_pending_requests == stats.num_running == stats.num_held_banks == 0


async def until_idle(engine: Engine) -> None:
    while not idle(engine):
        await asyncio.sleep(0.001)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


class TestAsync:
    def test_events_in_order(self, hello: Engine) -> None:
        async def main() -> list[Event]:
            async with hello.generate(Request(prompt="a", seed=3)) as stream:
                assert (stream.seed, list(stream.prompt_ids)) == (3, [97])
                return [event async for event in stream]

        events = run(main())
        assert isinstance(events[0], Started)
        assert isinstance(events[-1], Finished)
        assert fold(events)[0].text == "Hello"

    def test_the_whole_answer_is_the_fold(self, hello: Engine) -> None:
        async def main() -> str:
            async with hello.generate(Request(prompt="a")) as stream:
                return (await stream.collect())[0].text

        assert run(main()) == "Hello"

    def test_messages_go_through_the_template(self, hello: Engine) -> None:
        async def main() -> list[int]:
            messages = [{"role": "user", "content": "<|end|>"}]
            async with hello.generate(Request(messages=messages)) as stream:
                return list(stream.prompt_ids)

        begin = [START_ID, *b"user:<|end|>", END_ID, START_ID, *b"assistant:"]
        assert run(main()) == begin

    def test_leaving_cancels(self, engine: Engine) -> None:
        async def main() -> None:
            async with engine.generate(Request(prompt="a", ignore_eos=True)) as stream:
                async for event in stream:
                    if isinstance(event, Delta):
                        break
            await until_idle(engine)

        run(main())

    def test_leaving_before_the_first_event_cancels(self, engine: Engine) -> None:
        async def main() -> None:
            async with engine.generate(Request(prompt="a", ignore_eos=True)):
                pass
            await until_idle(engine)

        run(main())

    def test_a_cancelled_task_cancels(self, engine: Engine) -> None:
        async def read() -> None:
            async with engine.generate(Request(prompt="a", ignore_eos=True)) as stream:
                async for _ in stream:
                    has_begun.set()
                    await asyncio.sleep(60)

        has_begun = asyncio.Event()

        async def main() -> None:
            task = asyncio.create_task(read())
            await has_begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until_idle(engine)

        run(main())

    def test_cancelling_says_so(self, engine: Engine) -> None:
        async def main() -> list[Event]:
            async with engine.generate(Request(prompt="a", ignore_eos=True)) as stream:
                stream.cancel()
                return [event async for event in stream]

        end = run(main())[-1]
        assert isinstance(end, Finished)
        assert end.reason == "cancelled"

    def test_a_stream_after_its_end_stays_ended(self, hello: Engine) -> None:
        async def main() -> None:
            async with hello.generate(Request(prompt="a")) as stream:
                assert [event async for event in stream]
                assert [event async for event in stream] == []

        run(main())

    def test_a_stream_must_be_entered_and_only_once(self, hello: Engine) -> None:
        async def main() -> None:
            stream = hello.generate(Request(prompt="a"))
            with pytest.raises(RuntimeError, match="enter the stream first"):
                await anext(stream)
            async with stream:
                pass
            with pytest.raises(RuntimeError, match="entered before"):
                await stream.__aenter__()

        run(main())

    def test_a_slow_reader_gets_merged_deltas_and_blocks_nobody(self) -> None:
        answer = "x" * 100

        async def main(engine: Engine) -> list[Event]:
            async with engine.generate(Request(prompt="a")) as stream:
                await until_idle(engine)
                return [event async for event in stream]

        with make(saying_text(answer)) as engine:
            events = run(main(engine))
        assert [type(event) for event in events] == [Started, Delta, Finished]
        assert fold(events)[0].text == answer

    def test_many_clients_get_what_they_would_get_alone(self, engine: Engine) -> None:
        requests = [
            Request(prompt=f"{i}", max_tokens=20 + i, temperature=1.0, seed=i, ignore_eos=True)
            for i in range(60)
        ]

        async def ask(request: Request) -> tuple[int, ...]:
            async with engine.generate(request) as stream:
                return (await stream.collect())[0].token_ids

        async def together() -> list[tuple[int, ...]]:
            return await asyncio.gather(*map(ask, requests))

        crowd = run(together())
        assert crowd == [engine.generate_sync(request).choice.token_ids for request in requests]
        assert idle(engine)

    def test_two_event_loops_and_a_thread_share_an_engine(self, hello: Engine) -> None:
        answers: list[str] = []

        async def ask() -> None:
            for _ in range(5):
                async with hello.generate(Request(prompt="a")) as stream:
                    answers.append((await stream.collect())[0].text)

        threads = [threading.Thread(target=run, args=(ask(),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        answers += [hello.generate_sync(Request(prompt="a")).text for _ in range(5)]
        for thread in threads:
            thread.join(60)
        assert answers == ["Hello"] * 15

    def test_closing_reaches_those_who_wait(self) -> None:
        engine = make(FakeModel())

        async def main() -> list[Event]:
            async with engine.generate(Request(prompt="a", ignore_eos=True, n=2)) as stream:
                await anext(stream)
                engine.close()
                return [event async for event in stream]

        ends = [event for event in run(main()) if isinstance(event, Failed)]
        assert [type(end.error) for end in ends] == [EngineClosed, EngineClosed]

    def test_a_closed_engine_refuses_at_the_door(self, engine: Engine) -> None:
        engine.close()

        async def main() -> None:
            async with engine.generate(Request(prompt="a")):
                pytest.fail("it let us in")

        with pytest.raises(EngineClosed, match="is closed"):
            run(main())


class TestSync:
    def test_pieces_of_text(self, hello: Engine) -> None:
        assert "".join(hello.generate_sync(Request(prompt="a"))) == "Hello"

    def test_whole_text(self, hello: Engine) -> None:
        generation = hello.generate_sync(Request(prompt="a"))
        assert generation.text == "Hello"
        assert generation.text == "Hello"
        assert list(generation) == []

    def test_text_after_some_pieces(self, hello: Engine) -> None:
        generation = hello.generate_sync(Request(prompt="a"))
        assert next(iter(generation)).startswith("H")
        assert generation.text == "Hello"

    def test_cancelling_keeps_what_was_said(self, engine: Engine) -> None:
        generation = engine.generate_sync(Request(prompt="a", ignore_eos=True))
        for event in generation.events():
            if isinstance(event, Delta):
                generation.cancel()
        assert generation.choice.reason == "cancelled"
        assert generation.choice.token_ids

    def test_leaving_the_block_cancels(self, engine: Engine) -> None:
        with engine.generate_sync(Request(prompt="a", ignore_eos=True)) as generation:
            next(generation.events())
        assert generation.choice.reason == "cancelled"

    def test_several_answers_are_not_one_text(self, engine: Engine) -> None:
        generation = engine.generate_sync(Request(prompt="a", n=2, max_tokens=2))
        with pytest.raises(ValueError, match="several answers"):
            next(iter(generation))
        assert len(generation.choices) == 2

    def test_a_failure_is_raised_where_text_is_read(self) -> None:
        with make(FaultyModel(saying_text("abc"), raise_at={1: ModelError("broken")})) as engine:
            pieces = iter(engine.generate_sync(Request(prompt="?")))
            assert next(pieces) == "a"
            with pytest.raises(GenerationFailed, match="broken"):
                next(pieces)


class TestRefusals:
    def test_a_prompt_longer_than_the_context(self, engine: Engine) -> None:
        with pytest.raises(ContextLengthExceeded) as caught:
            engine.generate_sync(Request(prompt="x" * 300))
        message = caught.value.message
        assert caught.value.param == "prompt"
        assert "300 tokens" in message
        assert "256 (what fake was made for)" in message
        assert "leave out 45 or more" in message

    def test_a_prompt_just_short_enough(self, engine: Engine) -> None:
        generation = engine.generate_sync(Request(prompt="x" * 255, ignore_eos=True))
        assert len(generation.choice.token_ids) == 1
        with pytest.raises(ContextLengthExceeded):
            engine.generate_sync(Request(prompt="x" * 256))

    @pytest.mark.parametrize(
        ("config", "why"),
        [
            (EngineConfig(context_length=32), "set by `context_length`"),
            (EngineConfig(pool_bytes=2 * 64), "see `pool_bytes`"),
        ],
    )
    def test_the_error_says_what_limits_the_context(self, config: EngineConfig, why: str) -> None:
        with make(FakeModel(), config) as engine:
            assert engine.context_length == 32
            with pytest.raises(ContextLengthExceeded, match=why):
                engine.generate_sync(Request(prompt="x" * 32))

    @pytest.mark.parametrize("ids", [[-1], [2**40], ["a"], [1.5]])
    def test_token_ids_that_are_none(self, ids: list[Any]) -> None:
        with pytest.raises(InvalidRequest, match="whole number of at least 0"):
            Request(token_ids=ids)

    def test_token_ids_that_this_model_has_not(self, engine: Engine) -> None:
        with pytest.raises(InvalidRequest, match="from 0 to 259"):
            engine.generate_sync(Request(token_ids=[260]))

    def test_a_bias_for_no_token(self, engine: Engine) -> None:
        with pytest.raises(InvalidRequest, match="names token 260"):
            engine.generate_sync(Request(prompt="a", logit_bias={260: 1.0}))

    def test_an_empty_prompt(self, engine: Engine) -> None:
        with pytest.raises(InvalidRequest, match="`prompt` has no tokens"):
            engine.generate_sync(Request(prompt=""))

    def test_too_many(self) -> None:
        with make(FakeModel(), EngineConfig(max_pending=2)) as engine:
            held = [engine.generate_sync(Request(prompt="a", ignore_eos=True)) for _ in range(2)]
            with pytest.raises(EngineOverloaded):
                engine.generate_sync(Request(prompt="a"))
            for generation in held:
                generation.cancel()
                assert generation.choice.reason == "cancelled"
            assert engine.generate_sync(Request(prompt="a", max_tokens=1)).text is not None

    def test_refused_requests_leave_nothing_behind(self, engine: Engine) -> None:
        with pytest.raises(InvalidRequest):
            engine.generate_sync(Request(prompt=""))
        assert idle(engine)


class BrokenModel(FakeModel):
    """Breaks the engine thread itself, not only a step."""

    def step(self, batch: Any) -> None:
        raise SystemExit("the engine thread must die of this")


class TestTheThread:
    def test_its_death_fails_everybody(self) -> None:
        engine = make(BrokenModel())
        generation = engine.generate_sync(Request(prompt="a", n=2))
        ends = [event for event in generation.events() if isinstance(event, Failed)]
        assert [type(end.error) for end in ends] == [EngineClosed, EngineClosed]
        with pytest.raises(EngineClosed, match="internal error"):
            engine.generate_sync(Request(prompt="a"))
        engine.close()

    def test_dropping_an_engine_ends_its_thread(self) -> None:
        model = FakeModel()
        engine = make(model)
        assert engine.generate_sync(Request(prompt="a", max_tokens=1)).choice
        del engine
        gc.collect()
        assert model.is_closed

    def test_an_idle_engine_sleeps(self, hello: Engine) -> None:
        assert hello.generate_sync(Request(prompt="a")).text == "Hello"
        before = hello.step_profile()
        threading.Event().wait(0.05)
        assert hello.step_profile() == before

    def test_a_process_with_an_open_engine_ends(self) -> None:
        program = """
from headrace.engine.engine import Engine
from headrace.engine.request import Request
from headrace.testing import FakeModel, FakeTemplate, FakeTokenizer
engine = Engine(FakeModel(step_s=0.001), FakeTokenizer(), FakeTemplate())
generation = engine.generate_sync(Request(prompt="a", ignore_eos=True))
next(generation.events())
print("bye")
"""
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
        )
        assert (done.stdout, done.stderr, done.returncode) == ("bye\n", "", 0)
