"""One question put to a conversation's memory, by words and by meaning at the same time.

In: a scope and a question. Out: a `Recall`. Thread: the event loop; the database and the embedder
on threads. Whatever does not answer in time is done without, and named.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import Executor

from sqlalchemy import Connection

from headrace.conversations.database import Database
from headrace.conversations.memory import rows
from headrace.conversations.memory.fusion import by_words, distinct, fused
from headrace.conversations.memory.postings import chunks_with
from headrace.conversations.memory.values import Found, Recall, Scope
from headrace.conversations.memory.vectors import Place, VectorMemory
from headrace.conversations.memory.words import MAX_POSTINGS, keys_of, query_words
from headrace.errors import HeadraceError, NotFound
from headrace.model.embedder import Embedder

DEPTH = 50
"""How far down each ranking is looked before they are fused."""

_MOST_WAITING = 1000
_SPARE = 4
_LONGEST_QUESTION = 8_000
"""Characters of a question that are searched for: its end, where people say what they want."""

_log = logging.getLogger(__name__)


class Searcher:
    """Searches by words, and where there is an embedder by vectors."""

    def __init__(
        self,
        database: Database,
        embedder: Embedder | None,
        vectors: VectorMemory | None,
        executor: Executor,
    ) -> None:
        self._database = database
        self._embedder = embedder
        self._vectors = vectors
        self._executor = executor

    async def recall(self, scope: Scope, question: str, limit: int, timeout_s: float) -> Recall:
        """The best `limit` chunks. Raises `ConversationNotFound`."""
        asked = question[-_LONGEST_QUESTION:]
        rankings = await _in_time(
            {"words": self._by_words(scope, asked), "vectors": self._by_vectors(scope, asked)},
            timeout_s,
        )
        found = {name: ranking for name, ranking in rankings.items() if ranking is not None}
        missing = tuple(name for name in rankings if name not in found)
        scores = fused(found.values())
        try:
            async with asyncio.timeout(timeout_s):
                return await self._database.read(
                    lambda c: self._fetch(c, scope, scores, limit, missing)
                )
        except TimeoutError:
            return Recall(missing=tuple(rankings))

    async def _by_words(self, scope: Scope, question: str) -> Sequence[int]:
        def search(connection: Connection) -> Sequence[int]:
            conversation = rows.number_of(connection, scope)
            keys = keys_of(query_words(question), conversation)
            postings = chunks_with(connection, keys)
            num_chunks = rows.count_up_to(connection, conversation, 2 * MAX_POSTINGS)
            return by_words(postings, num_chunks, DEPTH)

        return await self._database.read(search)

    async def _by_vectors(self, scope: Scope, question: str) -> Sequence[int] | None:
        embedder, vectors = self._embedder, self._vectors
        if embedder is None or vectors is None:
            return None
        loop = asyncio.get_running_loop()
        embedded = await loop.run_in_executor(self._executor, embedder.embed, [question])

        def search(connection: Connection) -> Sequence[int]:
            place = Place(rows.number_of(connection, scope), embedder.identity)
            return vectors.nearest(connection, place, embedded.vectors[0], DEPTH)

        return await self._database.read(search)

    def _fetch(
        self,
        connection: Connection,
        scope: Scope,
        scores: Mapping[int, float],
        limit: int,
        missing: tuple[str, ...],
    ) -> Recall:
        conversation = rows.number_of(connection, scope)
        # Some more than are wanted, as a text may be there twice.
        best = list(scores)[: 2 * limit + _SPARE]
        chunks = rows.chunks_of(connection, conversation, best)
        found = (Found(chunks[key], scores[key]) for key in best if key in chunks)
        num_waiting = 0
        if self._embedder is not None and self._vectors is not None:
            num_waiting = rows.count_waiting(
                connection, conversation, self._embedder.identity, _MOST_WAITING
            )
        return Recall(tuple(distinct(found)[:limit]), missing, num_waiting)


async def _in_time(
    searches: Mapping[str, Awaitable[Sequence[int] | None]], timeout_s: float
) -> dict[str, Sequence[int] | None]:
    """What each gave; None for those that failed or took too long. Raises `NotFound`."""
    tasks = {name: asyncio.ensure_future(search) for name, search in searches.items()}
    try:
        await asyncio.wait(tasks.values(), timeout=timeout_s)
        return {name: _outcome(name, task) for name, task in tasks.items()}
    finally:
        for task in tasks.values():
            if not task.cancel() and not task.cancelled():
                task.exception()  # or it would be said to have gone unheard


def _outcome(name: str, task: asyncio.Future[Sequence[int] | None]) -> Sequence[int] | None:
    if not task.done():
        _log.warning("a memory's %s did not answer in time", name)
        return None
    try:
        return task.result()
    except NotFound:
        raise
    except HeadraceError as error:
        _log.warning("a memory's %s cannot be searched: %s", name, error)
        return None
