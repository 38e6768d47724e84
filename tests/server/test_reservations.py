"""However requests end, the limits count what was used, to the token, and the metrics the same.

A clock that stands still: nothing leaks, so both sums are exact.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.engine.engine import EngineConfig
from headrace.engine.scheduler import SchedulerConfig
from headrace.errors import GenerationTimeout, JournalFailed
from headrace.server import asking
from headrace.server.limits.bucket import Dimension, Limit
from headrace.server.limits.limiter import Limiter
from headrace.server.limits.store import MemoryStore
from headrace.server.limits.table import LimitTable
from headrace.streams.pump import Pump
from headrace.testing import END_ID, FakeModel, FaultyModel, ManualEngine, saying
from headrace.testing.asgi import Call
from support.asgi import CHAT, COMPLETIONS, RESPONSES, Door, run, settle
from support.bodies import chat_body

TENANT, MODEL = "local", "fake"
MANY = 10**9
ANSWER = "The wheel turns."
TEXTS = ("", "mill", "Why is the sky blue?", "water " * 12)


Asked: TypeAlias = tuple[str, dict[str, Any]]
"""Path and body."""


class Crowd:
    """A small, crowded server: what was asked of it, and every generation that it began."""

    def __init__(self, folder: Path, faults: dict[str, Any]) -> None:
        limits = folder / "limits.toml"
        limits.write_text(f"[default]\ntpd = {MANY}\nrpd = {MANY}\n")
        said = saying(list(ANSWER.encode()), END_ID)
        config = EngineConfig(
            max_pending=4,
            pool_bytes=20 * 64,  # so few banks that sequences are preempted
            scheduler=SchedulerConfig(max_running=3),
        )
        model = FaultyModel(FakeModel(rule=said), **faults)
        self._engine = ManualEngine(model, config)
        self._door = Door(self._engine, limits=str(limits))
        self._store = MemoryStore(clock=lambda: 0.0)
        self._door.serving._limiter = Limiter(LimitTable.parse(str(limits)), self._store)
        self._asked: list[Asked] = []
        self._calls: list[Call] = []
        self._pumps: list[Pump] = []
        self._cannot_keep = False

    def pump(self, *args: Any, **kwargs: Any) -> Pump:
        """What `asking` makes; once, it may be told that there is no place to keep it."""
        if self._cannot_keep:
            self._cannot_keep = False
            raise JournalFailed("the disk is full")
        self._pumps.append(Pump(*args, **kwargs))
        return self._pumps[-1]

    async def act(self, action: tuple[Any, ...]) -> None:
        match action:
            case ("ask", kind, text, fields):
                self._ask(question(kind, text, fields))
            case ("ask again", which, key) if self._asked:
                number = which % len(self._asked)
                self._ask(self._asked[number], {"idempotency-key": f"{key}{number}"})
            case ("step", number):
                for _ in range(number):
                    self._engine.step()
            case ("turn", number):
                await settle(number)
            case ("leave", which) if self._calls:
                self._calls[which % len(self._calls)].leave()
            case ("stop reading", which) if self._calls:
                self._calls[which % len(self._calls)].stop_reading()
            case ("cut off", which) if self._calls:
                self._calls[which % len(self._calls)]._task.cancel()
            case ("run out", which) if self._pumps:
                self._pumps[which % len(self._pumps)].fail(GenerationTimeout("late"))
            case ("cannot keep",):
                self._cannot_keep = True

    def _ask(self, asked: Asked, headers: Mapping[str, str] | None = None) -> None:
        self._asked.append(asked)
        self._calls.append(self._door.post(*asked, headers))

    async def finish(self) -> None:
        """Read and step until all is over."""
        for call in self._calls:
            call.read_on()
        for _ in range(5000):
            await settle(4)
            if all(call.has_ended for call in self._calls) and not self._engine._loop.has_work:
                break
            self._engine.step()
        await settle(60)
        await asyncio.gather(*(call.ended() for call in self._calls), return_exceptions=True)

    def check(self) -> None:
        self._door.assert_nothing_is_held()
        assert self._used("TPD") == sum(
            fact.num_prompt_tokens - fact.num_cached_tokens + fact.num_completion_tokens
            for fact in self._door.ended
        )
        assert self._used("RPD") <= len(self._calls)

    def _used(self, dimension: Dimension) -> int:
        return self._store.level((TENANT, MODEL, dimension), Limit(dimension, MANY)).used


def question(kind: int, text: str, fields: dict[str, Any]) -> Asked:
    match kind:
        case 0:
            return COMPLETIONS, {"model": MODEL, "prompt": text + "x", **fields}
        case 1:
            return COMPLETIONS, {"model": MODEL, "prompt": [text + "x", "y"], **fields}
        case 2:
            given = {name: value for name, value in fields.items() if name == "stream"}
            return RESPONSES, {"model": MODEL, "input": text + "x", **given}
        case _:
            message = {"role": "user", "content": text}
            return CHAT, chat_body(message, model=MODEL, **fields)


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "stream": st.booleans(),
        "n": st.integers(1, 3),
        "max_tokens": st.sampled_from([1, 5, 40, 200]),
        "ignore_eos": st.booleans(),
        "service_tier": st.sampled_from(["flex", "auto"]),
        "stop": st.just("wheel"),
        "stream_options": st.just({"resumable": True}),
        "logit_bias": st.just({"99999": 1}),  # only the engine knows that it has no such token
    },
)
WHICH = st.integers(0, 30)
ACTIONS = st.lists(
    st.tuples(st.just("ask"), st.integers(0, 4), st.sampled_from(TEXTS), FIELDS)
    | st.tuples(st.just("ask again"), WHICH, st.sampled_from(["a", "b"]))
    | st.tuples(st.just("step"), st.integers(1, 6))
    | st.tuples(st.just("turn"), st.integers(1, 4))
    | st.tuples(st.just("leave"), WHICH)
    | st.tuples(st.just("stop reading"), WHICH)
    | st.tuples(st.just("run out"), WHICH)
    | st.tuples(st.just("cut off"), WHICH)
    | st.tuples(st.just("cannot keep")),
    max_size=25,
)
FAULTS = st.fixed_dictionaries(
    {
        "raise_at": st.dictionaries(
            st.integers(0, 30), st.builds(RuntimeError, st.just("a fault")), max_size=2
        ),
        "nan_at": st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), max_size=3),
    }
)


ASKED = ("ask", 0, "mill", {"stream": True, "max_tokens": 40})
BEGUN = [ASKED, ("turn", 4), ("step", 1), ("turn", 4), ("step", 3), ("turn", 4)]
NO_FAULTS: dict[str, Any] = {"raise_at": {}, "nan_at": []}


@settings(max_examples=120, deadline=None)
@given(actions=ACTIONS, faults=FAULTS)
@example(actions=[*BEGUN, ("cut off", 0)], faults=NO_FAULTS)
@example(actions=[*BEGUN, ("leave", 0)], faults=NO_FAULTS)
@example(actions=[*BEGUN, ("run out", 0)], faults=NO_FAULTS)
@example(actions=[("cannot keep",), ASKED], faults=NO_FAULTS)
@example(
    actions=[("ask", 3, "", {"n": 3, "stream": False}), *BEGUN[1:]],
    faults={"raise_at": {}, "nan_at": [(0, 0)]},
)
def test_every_exit_gives_back_what_was_not_used(actions: Sequence[Any], faults: Any) -> None:
    """Refused at any place, finished, failed, timed out, left, cut off, slow, kept or not."""
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        run(lambda: play(Path(name), patch, actions, faults))


async def play(
    folder: Path, patch: pytest.MonkeyPatch, actions: Sequence[Any], faults: Any
) -> None:
    crowd = Crowd(folder, faults)
    patch.setattr(asking, "Pump", crowd.pump)
    for action in actions:
        await crowd.act(action)
    await crowd.finish()
    crowd.check()
