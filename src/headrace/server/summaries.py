"""Summaries are made between turns: nobody waits for one.

In: conversations that want summaries, when an answer has ended. Out: the summaries, on their shelf,
with their banks computed. Thread: the event loop.

One at a time for a conversation, when the engine has room, as a `flex` request would; what fails or
is stopped is wanted again by the next turn. A summary that is there already is not made again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from headrace.conversations import tree
from headrace.conversations.condensing import (
    Owner,
    Summarizer,
    condense_messages,
    digest_of,
    digest_of_items,
)
from headrace.conversations.extract import key_lines, without_lines
from headrace.conversations.strategies import Condense, Message
from headrace.engine.engine import Engine
from headrace.engine.request import Request
from headrace.errors import HeadraceError
from headrace.model.answer import AnswerStyle
from headrace.server.contexts import Contexts
from headrace.server.fitting import Fit
from headrace.server.models import NO_SUMMARY_MODEL, ModelRegistry, ServedModel
from headrace.server.warming import room, warm, whole_answer

if TYPE_CHECKING:
    from headrace.conversations.open_turn import OpenTurn
    from headrace.conversations.service import Conversations

_log = logging.getLogger(__name__)

_PROSE_SHARE = 4
"""The model's own words are a summary's quarter, and what the sentences leave of the rest."""
_LEAST_PROSE = 48
"""Tokens; with fewer, sentences that were said tell more than a model can."""
_MAX_RECALLED = 10_000

Keep: TypeAlias = Callable[[str, str, Condense], Awaitable[None]]
"""Digest, text, what it stands for: keep it. Raises `HeadraceError`."""


class ModelSummarizer:
    """Sentences that carry facts, word for word, and then what a served model writes. Implements
    `Summarizer`."""

    def __init__(self, served: ServedModel, *, writes: bool = True) -> None:
        """Without `writes` the model is not asked, and the sentences are all."""
        self._engine: Engine = served.engine
        self._style: AnswerStyle = served.style
        self._writes = writes

    async def summarise(
        self, tenant: str, block: Sequence[Message], before: str | None, max_tokens: int
    ) -> str:
        num_prose = max_tokens // _PROSE_SHARE if self._writes else 0
        num_prose = num_prose if num_prose >= _LEAST_PROSE else 0
        room = max_tokens - num_prose
        lines = await asyncio.to_thread(key_lines, block, before, room, self._count)
        if not num_prose and (lines or not self._writes):
            return "\n".join(lines)
        room -= sum(self._count(f"{line}\n") for line in lines)
        prose = await self._prose(tenant, block, before, num_prose + room)
        return "\n".join([*lines, "", prose] if lines else [prose])

    async def _prose(
        self, tenant: str, block: Sequence[Message], before: str | None, max_tokens: int
    ) -> str:
        asked = condense_messages(block, without_lines(before or ""))
        request = Request(
            messages=self._style.shown(asked), max_tokens=max(1, max_tokens), tenant=tenant
        )
        await room(self._engine)
        return (await whole_answer(self._engine, request)).strip()

    def _count(self, text: str) -> int:
        return len(self._engine.tokenizer.encode(text))


class Summaries:
    """The summaries that are being made."""

    def __init__(
        self, contexts: Contexts, registry: ModelRegistry, model: str | None = None
    ) -> None:
        """`model` writes them; None: the one that answers; `none`: no model at all."""
        self._contexts = contexts
        self._registry = registry
        self._model = model
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.summarizer: Summarizer | None = None
        """Instead of a model."""
        self._is_stopped = False
        self._recalled: dict[int, None] = {}
        """Conversations whose summaries were read, by row."""

    @property
    def num_running(self) -> int:
        return len(self._tasks)

    async def recall(self, conversations: Conversations, turn: OpenTurn) -> None:
        """Take the summaries of a turn's conversation from the database, unless that was done.
        Raises `DatabaseFailed`."""
        number = turn.number
        if number is None or number in self._recalled:
            return
        from headrace.conversations.kept_summaries import summaries_of  # there is a database

        owner = _owner(turn)
        for digest, text in (await summaries_of(conversations.store.database, number)).items():
            self._contexts.shelf.put(digest, text, owner)
        self._recalled[number] = None
        while len(self._recalled) > _MAX_RECALLED:
            del self._recalled[next(iter(self._recalled))]

    def begin(self, fit: Fit, tenant: str, keep: Keep | None = None) -> None:
        """Make what a turn that has ended found missing, unless it is being made. `keep` keeps each
        with its conversation."""
        pending = fit.fitted.plan.pending
        if not pending or self._is_stopped:
            return
        conversation = digest_of_items(pending[0].covered[:1], fit.planner.scope)
        if conversation in self._tasks:
            return
        task = asyncio.create_task(self._make(fit, pending, tenant, keep))
        self._tasks[conversation] = task
        task.add_done_callback(lambda _: self._tasks.pop(conversation, None))

    def stop(self) -> None:
        """Make no more: those that are being made are given up."""
        self._is_stopped = True
        for task in list(self._tasks.values()):
            task.cancel()

    async def done(self) -> None:
        """Returns when all that were begun are made, or were given up."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    async def _make(
        self, fit: Fit, pending: Sequence[Condense], tenant: str, keep: Keep | None
    ) -> None:
        try:
            before = fit.fitted.plan.summary
            text = None if before is None else _told(fit, before.message)
            for wanted in pending:
                text = await self._one(fit, wanted, text, tenant, keep)
            # The next turn's prompt begins like this one's would now.
            await warm(self._contexts, fit, fit.ask, tenant)
        except HeadraceError as error:
            _log.warning("a summary was not made: %s", error.message)
        except Exception:
            _log.exception("a summary was not made")

    async def _one(
        self, fit: Fit, wanted: Condense, before: str | None, tenant: str, keep: Keep | None
    ) -> str | None:
        digest = digest_of(wanted, fit.planner.scope)
        if (known := self._contexts.shelf.get(digest)) is not None:
            return known
        summarizer = self.summarizer or self._writer(fit.served)
        block = [item.message for item in wanted.block]
        text = (await summarizer.summarise(tenant, block, before, wanted.max_tokens)).strip()
        if not text:
            return before
        if keep is None:
            self._contexts.shelf.put(digest, text)
        else:
            await keep(digest, text, wanted)
        return text

    def _writer(self, served: ServedModel) -> Summarizer:
        if self._model in (None, NO_SUMMARY_MODEL):
            return ModelSummarizer(served, writes=self._model is None)
        return ModelSummarizer(self._registry.resolve(self._model or ""))


def keeper(contexts: Contexts, conversations: Conversations, turn: OpenTurn | None) -> Keep | None:
    """Keeps summaries with a turn's conversation; None where there is none."""
    if turn is None or turn.turn.conversation_id is None or not conversations.is_open:
        return None
    from headrace.conversations.kept_summaries import KeptSummary, keep_summary

    owner, store = _owner(turn), conversations.store
    told = [each.id for each in tree.told(turn.turn.history) if each.role != "system"]

    async def keep(digest: str, text: str, made: Condense) -> None:
        if turn.number is None or len(made.covered) > len(told):
            return
        row = KeptSummary(
            conversation=turn.number,
            up_to_message_id=told[len(made.covered) - 1],
            digest=digest,
            text=text,
            num_tokens=made.max_tokens,
            created_at=store.clock(),
        )
        if await keep_summary(store.database, row):
            contexts.shelf.put(digest, text, owner)

    return keep


def _owner(turn: OpenTurn) -> Owner:
    return turn.turn.tenant, turn.turn.conversation_id or ""


def _told(fit: Fit, message: Message) -> str:
    """The summary that a prompt told, without its opening."""
    return str(message["content"]).partition("\n")[2]
