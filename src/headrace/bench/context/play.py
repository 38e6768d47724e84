"""Plays a conversation through one strategy, on an engine that nobody else uses.

In: a `Talk`, a `Context`. Out: a `Played`. Thread: the event loop.

Answers are scripted, so that every strategy has the same history: a turn is asked for its first
token, then the banks of its answer are computed, as generating it would have left them.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from headrace.bench.context.keeping import KeptTalk, kept_talk
from headrace.bench.context.talk import Fact, Talk
from headrace.conversations.passages import Recalled
from headrace.conversations.strategies import Message
from headrace.engine.engine import Engine
from headrace.engine.request import Request
from headrace.events import Delta, Failed, Finished, Usage
from headrace.model.answer import AnswerStyle
from headrace.model.embedder import Embedder
from headrace.server.asking import request_of
from headrace.server.contexts import Contexts
from headrace.server.fitting import Fit, fitted
from headrace.server.models import ModelRegistry, ServedModel, model_names
from headrace.server.summaries import Summaries
from headrace.server.warming import warm
from headrace.settings import ServerSettings
from headrace.wire.ask import Ask, Context

_SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


@dataclass(frozen=True, slots=True)
class TurnPlayed:
    """One turn, as its asker saw it."""

    ttft_s: float
    added_s: float
    """Of it, the strategy's own."""
    num_prompt_tokens: int
    num_cached_tokens: int
    is_block_drop: bool
    """The prefix changed, because turns gave way."""


@dataclass(frozen=True, slots=True)
class Played:
    """One conversation through one strategy."""

    strategy: str
    turns: tuple[TurnPlayed, ...]
    num_recalled: int
    """Facts whose key words stood in the prompt that asked for them."""
    num_facts: int
    num_banks: int
    """That the longest prompt needs."""
    bank_bytes: int
    summary_s: tuple[float, ...] = ()
    """How long the summaries took, between turns."""
    index_bytes: int = 0
    """What is kept on disk, to be searched: the messages, their words and their vectors."""
    searched_by: tuple[str, ...] = ()
    """`words`, and the embedding model where there is one."""


@dataclass
class Player:
    """One model and the parts of a server that plan prompts."""

    engine: Engine
    embedder: Embedder | None = None
    """For `retrieval`; None: it goes by words alone."""
    served: ServedModel = field(init=False)
    _num_plays: int = 0

    def __post_init__(self) -> None:
        engine = self.engine
        self.served = ServedModel(
            id="bench",
            engine=engine,
            created=0,
            owned_by="bench",
            context_window=engine.context_length,
            max_completion_tokens=engine.context_length,
            fingerprint="fp_bench",
            style=AnswerStyle.for_model(engine.template, engine.tokenizer),
        )

    async def play(
        self, talk: Talk, context: Context, step: Callable[[], None] = lambda: None
    ) -> Played:
        """All turns, then a question for each fact. `step` is called after each. A tenant of its
        own, so that no play finds another's banks."""
        self._num_plays += 1
        async with self._begun(context, f"play {self._num_plays}") as one:
            turns = []
            for exchange in talk.turns:
                turns.append(await one.turn(exchange.user, exchange.assistant))
                step()
            recalled = [await one.recalls(fact) for fact in talk.facts]
            return self._played(context, turns, recalled, one)

    @asynccontextmanager
    async def _begun(self, context: Context, tenant: str) -> AsyncIterator[_Play]:
        """With a memory, where the strategy looks things up."""
        if context.strategy != "retrieval":
            yield _Play(self.served, context, tenant)
            return
        async with kept_talk(tenant, self.embedder) as kept:
            await kept.add([_SYSTEM])
            yield _Play(self.served, context, tenant, kept)

    def _played(
        self, context: Context, turns: Sequence[TurnPlayed], recalled: Sequence[bool], one: _Play
    ) -> Played:
        spec = self.engine.spec
        longest = max(turn.num_prompt_tokens for turn in turns)
        played = Played(
            strategy=context.strategy or "full",
            turns=tuple(turns),
            num_recalled=sum(recalled),
            num_facts=len(recalled),
            num_banks=-(-longest // spec.bank_size),
            bank_bytes=spec.bank_bytes,
            summary_s=tuple(one.summary_s),
        )
        if one.kept is None:
            return played
        vectors = () if self.embedder is None else (self.embedder.name,)
        return replace(played, index_bytes=one.kept.num_bytes, searched_by=("words", *vectors))

    async def compute(self, token_ids: Sequence[int], tenant: str) -> float:
        """Seconds to the first token after these."""
        request = Request(token_ids=token_ids, max_tokens=1, ignore_eos=True, tenant=tenant)
        begun = time.perf_counter()
        await _first_token(self.engine, request)
        return time.perf_counter() - begun


class _Play:
    """One conversation on its way."""

    def __init__(
        self, served: ServedModel, context: Context, tenant: str, kept: KeptTalk | None = None
    ) -> None:
        """`kept`: where it is kept, for who looks things up."""
        settings = ServerSettings()
        self.kept = kept
        self._served = served
        self._context = context
        self._tenant = tenant
        self._contexts = Contexts(settings)
        self._summaries = Summaries(self._contexts, ModelRegistry(model_names(settings)))
        self._messages: list[dict[str, Any]] = [_SYSTEM]
        self._num_gone = 0
        self.summary_s: list[float] = []

    async def turn(self, user: str, assistant: str) -> TurnPlayed:
        self._messages.append({"role": "user", "content": user})
        begun = time.perf_counter()
        ask, fit = await self._fit(self._messages)
        added_s = time.perf_counter() - begun
        usage = await _first_token(self._served.engine, self._request(ask))
        ttft_s = time.perf_counter() - begun
        await self._answer(ask, assistant)
        self._messages.append({"role": "assistant", "content": assistant})
        if self.kept is not None:
            await self.kept.add(self._messages[-2:])
        if fit is not None:
            fit.foresee(assistant)
            if fit.fitted.plan.retrieved:  # as `Warmer` does
                await warm(self._contexts, fit, fit.followed(assistant), self._tenant)
        await self._summarise(fit)
        return TurnPlayed(
            ttft_s,
            added_s,
            usage.num_prompt_tokens,
            usage.num_cached_tokens,
            self._has_dropped(fit),
        )

    async def recalls(self, fact: Fact) -> bool:
        """Whether the prompt that asks for a fact tells it."""
        asked = {"role": "user", "content": fact.question}
        ask, _ = await self._fit([*self._messages, asked])
        return any(fact.key in str(message.get("content")) for message in ask.messages or ())

    async def _fit(self, messages: Sequence[Message]) -> tuple[Ask, Fit | None]:
        ask = Ask(
            model="bench",
            messages=tuple(messages),
            max_tokens=1,
            temperature=0.0,
            context=replace(self._context, report=True),
        )
        found = Recalled() if self.kept is None else await self.kept.find(self._contexts, ask)
        return fitted(self._contexts, self._served, ask, self._tenant, found)

    def _request(self, ask: Ask, **changes: Any) -> Request:
        plan = self._served.style.plan(ask)
        return replace(request_of(ask, plan, self._tenant), **changes)

    async def _answer(self, ask: Ask, text: str) -> None:
        """The banks that an answer leaves."""
        told = replace(
            ask, messages=(*(ask.messages or ()), {"role": "assistant", "content": text})
        )
        request = self._request(told, continue_final_message=True, heal=False, prefill_only=True)
        await _first_token(self._served.engine, request)

    async def _summarise(self, fit: Fit | None) -> None:
        if fit is None or not fit.fitted.plan.pending:
            return
        begun = time.perf_counter()
        self._summaries.begin(fit, self._tenant)
        await self._summaries.done()
        self.summary_s.append(time.perf_counter() - begun)

    def _has_dropped(self, fit: Fit | None) -> bool:
        if fit is None:
            return False
        plan = fit.fitted.plan
        before, self._num_gone = self._num_gone, len(plan.dropped) + len(plan.summarised)
        return self._num_gone != before


async def _first_token(engine: Engine, request: Request) -> Usage:
    """Returns when the first token is there, or all of it where none is wanted. Raises what it
    failed with."""
    found: Usage | None = None
    async with engine.generate(request) as events:
        async for event in events:
            match event:
                case Failed():
                    raise event.error
                case Finished():
                    found = event.usage
                case Delta():
                    pass
    assert found is not None
    return found
