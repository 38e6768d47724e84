"""Gives every chunk its vector, in the background, whatever made the chunk wait.

In: conversations with new messages, a wake-up for new documents. Out: chunks and vectors.
Thread: a task of the event loop; splitting and embedding on threads, one batch at a time.

What is to be done is always read from the tables, so a restart, a change of embedder, a broken
vector and a new document are the same thing: chunks that wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import ParamSpec, TypeVar

from sqlalchemy import Connection

from headrace.conversations.database import Database
from headrace.conversations.memory import rows
from headrace.conversations.memory.rows import Waiting
from headrace.conversations.memory.splitting import Piece, halves, split
from headrace.conversations.memory.values import Scope
from headrace.conversations.memory.vectors import Place, VectorMemory
from headrace.errors import ConversationNotFound, HeadraceError
from headrace.model.embedder import Embedded, Embedder

NO_EMBEDDER = "none"
"""Stands for an embedder's identity where there is none."""
WINDOW = 512
"""Tokens of a chunk where no embedder says how many it reads."""
BATCH = 16
"""Chunks that are embedded together: few, so that a question does not wait long for its turn."""
_MESSAGES = 32
_SHORTEST = 64
"""Characters: a chunk that is too long for its embedder and no longer than this stays as it is."""
_PAUSE_S = 1.0
"""After a failure of the database."""

_log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


class Indexer:
    """Has a task while there is something to do. Used on one loop."""

    def __init__(
        self,
        database: Database,
        embedder: Embedder | None,
        vectors: VectorMemory | None,
        executor: Executor,
    ) -> None:
        """Without `embedder` or `vectors` nothing is embedded, only read."""
        self._database = database
        self._embedder = embedder
        self._vectors = vectors
        self._executor = executor
        self._is_wanted = False
        self._scopes: dict[Scope, None] = {}
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Chunks wait, or may wait."""
        self._is_wanted = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    def read(self, scope: Scope) -> None:
        """The conversation has new messages."""
        self._scopes[scope] = None
        self.wake()

    async def idle(self) -> None:
        """Wait until all is done that was asked for."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    def stop(self) -> None:
        """What is not done is the next one's."""
        self._is_wanted = False
        if self._task is not None and not self._task.get_loop().is_closed():
            self._task.cancel()

    async def close(self) -> None:
        self.stop()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while self._is_wanted:
            self._is_wanted = False
            try:
                await self._catch_up()
            except HeadraceError as error:
                _log.warning("a memory is behind: %s", error)
                self._is_wanted = True
                await asyncio.sleep(_PAUSE_S)

    async def _catch_up(self) -> None:
        while self._scopes:
            # Taken out first: what is said while these are read is read in another round.
            scope = next(iter(self._scopes))
            del self._scopes[scope]
            try:
                await self._read_messages(scope)
            except HeadraceError:
                self._scopes[scope] = None
                raise
        if self._embedder is not None and self._vectors is not None:
            await self._embed_all(self._embedder, self._vectors)

    async def _read_messages(self, scope: Scope) -> None:
        most = WINDOW if self._embedder is None else self._embedder.max_tokens
        try:
            while some := await self._database.read(
                lambda c: rows.untold_messages(c, scope, _MESSAGES)
            ):
                for conversation, message, text in some:
                    pieces = await self._on_thread(split, text, most) or [(0, text)]
                    await self._database.write(_adding(conversation, message, pieces))
        except ConversationNotFound:
            return  # deleted meanwhile

    async def _embed_all(self, embedder: Embedder, vectors: VectorMemory) -> None:
        await self._make_broken_wait(vectors)
        await self._let_go(vectors)
        identity = embedder.identity
        while some := await self._database.read(lambda c: rows.waiting(c, identity, BATCH)):
            await self._embed(embedder, vectors, some)

    async def _make_broken_wait(self, vectors: VectorMemory) -> None:
        if broken := vectors.broken():
            await self._database.write(lambda c: rows.unsettle(c, broken))

    async def _let_go(self, vectors: VectorMemory) -> None:
        """Of what is in memory of conversations that were deleted."""
        if held := vectors.held():
            there = await self._database.read(lambda c: rows.existing(c, held))
            for gone in held - there:
                vectors.forget(gone)

    async def _embed(
        self, embedder: Embedder, vectors: VectorMemory, some: Sequence[Waiting]
    ) -> None:
        try:
            embedded = await self._on_thread(embedder.embed, [one.text for one in some])
        except HeadraceError as error:
            if len(some) > 1:  # one of them: find it
                for one in some:
                    await self._embed(embedder, vectors, [one])
                return
            identity, numbers, problem = embedder.identity, [some[0].number], error.message
            await self._database.write(lambda c: rows.settle(c, identity, numbers, problem))
            return
        await self._database.write(_keeping(embedder.identity, vectors, some, embedded))

    async def _on_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(work, *args, **kwargs))


def _adding(
    conversation: int, message: int, pieces: Sequence[Piece]
) -> Callable[[Connection], None]:
    return lambda connection: rows.add_message(connection, conversation, message, pieces)


def _keeping(
    identity: str, vectors: VectorMemory, some: Sequence[Waiting], embedded: Embedded
) -> Callable[[Connection], None]:
    """Vectors are kept where their chunks are still there; a chunk that the embedder could not
    read to its end becomes two, which wait."""
    too_long = {some[i].number for i in embedded.truncated if len(some[i].text) > _SHORTEST}

    def keep(connection: Connection) -> None:
        wanted = [one.number for one in some if one.number not in too_long]
        there = set(rows.settle(connection, identity, wanted))
        for index, one in enumerate(some):
            if one.number in there:
                place = Place(one.conversation, identity)
                vectors.add(connection, place, [one.number], embedded.vectors[index : index + 1])
            elif one.number in too_long:
                rows.replace_chunk(connection, one.number, halves((0, one.text)))

    return keep
