"""The whole server without a socket: its settings, an engine to step by hand, and calls."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headrace.engine.engine import Engine, EngineConfig
from headrace.engine.scheduler import SchedulerConfig
from headrace.model.answer import AnswerStyle
from headrace.observe.observer import Fact, LimitHit, RequestEnded
from headrace.server.app import create_app
from headrace.server.keys import KeyStore
from headrace.server.serving import Serving
from headrace.settings import ServerSettings
from headrace.testing import END_ID, FakeModel, ManualEngine, saying
from headrace.testing.asgi import Call
from headrace.wire.sse import EventDecoder, ServerSentEvent

CHAT = "/openai/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"

_ANSWER_S = 30.0
"""For an answer that must come; only failures take it."""
_LOOK_S = 0.001


def engine_saying(text: str, *, max_running: int = 32, **config: Any) -> ManualEngine:
    """An engine to step by hand, whose answers are `text`, a token a byte."""
    scheduler = SchedulerConfig(max_running=max_running)
    return ManualEngine(
        FakeModel(rule=saying(list(text.encode()), END_ID)),
        EngineConfig(scheduler=scheduler, **config),
    )


class Door:
    """A server and the only engine behind it, on the loop that runs the test."""

    def __init__(
        self,
        engine: Engine | None = None,
        *,
        keys: KeyStore | None = None,
        is_loaded: bool = True,
        database_url: str | None = None,
        **settings: Any,
    ) -> None:
        """`database_url`: where conversations are kept; None: nowhere."""
        self.engine = engine_saying("Hello.") if engine is None else engine
        self.facts: list[Fact] = []
        if database_url is not None:
            settings["database"] = database_url
        self._settings = ServerSettings(engine="fake", **settings)
        if keys is None:
            keys = KeyStore(Path(tempfile.gettempdir()) / "headrace-no-keys-here.json")
        self.serving = Serving(self._settings, keys=keys, observers=(self,))
        self.app = create_app(self.serving)
        if is_loaded:
            self.load()
        if database_url is not None:
            self.serving.open_conversations()

    def load(self) -> None:
        self.serving.registry.load(
            self._settings,
            open_engine=lambda named, config: self.engine,
            style_of=lambda engine: AnswerStyle.for_model(engine.template, engine.tokenizer),
        )

    def observe(self, fact: Fact) -> None:
        self.facts.append(fact)

    @property
    def ended(self) -> list[RequestEnded]:
        return [fact for fact in self.facts if isinstance(fact, RequestEnded)]

    @property
    def limit_hits(self) -> list[LimitHit]:
        return [fact for fact in self.facts if isinstance(fact, LimitHit)]

    def call(
        self,
        method: str,
        path: str,
        body: bytes | Mapping[str, Any] | None = b"",
        headers: Mapping[str, str] | None = None,
        **scope: Any,
    ) -> Call:
        given = {"host": "127.0.0.1:8000", **(headers or {})}
        raw = json.dumps(body).encode() if isinstance(body, Mapping) else body
        return Call(self.app, method, path, raw, given.items(), **scope)

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Call:
        return self.call("POST", path, body, headers)

    async def turn(self, num_steps: int = 1) -> None:
        """Let the engine make so many steps, and the loop hear of each."""
        await settle()
        for _ in range(num_steps):
            self._step()
            await settle()

    async def answer(self, call: Call) -> Call:
        """Step until the call has ended, however long it waits for other threads meanwhile."""
        async with asyncio.timeout(_ANSWER_S):
            while True:
                await settle()
                if call.has_ended:
                    return await call.ended()
                self._step()
                if not self._has_steps:
                    await asyncio.sleep(_LOOK_S)

    @property
    def _has_steps(self) -> bool:
        """Something goes on only when it is stepped."""
        is_manual = isinstance(self.engine, ManualEngine)
        return is_manual and self.engine.stats().num_pending_requests > 0

    def _step(self) -> None:
        # A threaded engine steps by itself.
        if isinstance(self.engine, ManualEngine):
            self.engine.step()

    def assert_nothing_is_held(self) -> None:
        """No request is open, none is in the engine, and all banks are free or cached."""
        stats = self.engine.stats()
        assert self.serving.num_open == 0
        assert stats.num_pending_requests == stats.num_running == stats.num_waiting == 0
        assert stats.num_held_banks == 0
        assert stats.num_free_banks + stats.num_cached_banks == stats.num_banks


def frames(body: bytes) -> list[ServerSentEvent]:
    """The events of a stream, which ends after one of them."""
    assert body.endswith(b"\n\n")
    return EventDecoder().feed(body)


def streamed_text(body: bytes) -> str:
    """What choice 0 of a stream of chat chunks said, up to `[DONE]`."""
    *chunks, done = frames(body)
    assert done.data == "[DONE]"
    choices = [c for chunk in chunks for c in json.loads(chunk.data)["choices"]]
    return "".join(c["delta"].get("content", "") for c in choices if c["index"] == 0)


async def settle(num_turns: int = 12) -> None:
    """Let everything happen that only waits for its turn."""
    for _ in range(num_turns):
        await asyncio.sleep(0)


def run(play: Callable[[], Any]) -> None:
    """A test that is a coroutine, with a loop of its own; whatever is left running fails it."""

    async def whole() -> None:
        async with asyncio.timeout(60):
            await play()
        await settle()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left

    asyncio.run(whole())
