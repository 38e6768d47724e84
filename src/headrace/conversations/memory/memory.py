"""The memory of conversations: documents and messages in, what answers a question out.

In: texts and questions, each in a scope. Out: chunks, the most telling first.
Thread: the event loop; the database and the embedder on threads. Next: `rows.py`, `indexing.py`.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import Connection

from headrace.conversations.database import Database
from headrace.conversations.memory import rows
from headrace.conversations.memory.indexing import NO_EMBEDDER, WINDOW, Indexer
from headrace.conversations.memory.pgvector import PostgreSQLVectors
from headrace.conversations.memory.rows import StoredDocument
from headrace.conversations.memory.searching import DEPTH, Searcher
from headrace.conversations.memory.splitting import Piece, split
from headrace.conversations.memory.sqlite import SQLiteVectors
from headrace.conversations.memory.values import Recall, Scope
from headrace.conversations.memory.vectors import VectorMemory
from headrace.errors import ConversationTooLarge, SettingsError
from headrace.model.embedder import Embedder

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """How much a memory takes."""

    max_chunks: int = 200_000
    """Of one conversation."""
    max_matrix_bytes: int = 256 * 2**20
    """Of the vectors that are held in memory, of all conversations."""


class Memory:
    """Use `Memory.open`, from the loop that it will serve; `await close()` at the end."""

    def __init__(
        self,
        database: Database,
        embedder: Embedder | None,
        vectors: VectorMemory | None,
        limits: MemoryLimits,
    ) -> None:
        """`vectors` is None where only words can be searched; without an embedder it is."""
        self._database = database
        self._embedder = embedder
        self._vectors = vectors if embedder is not None else None
        self._limits = limits
        # One for the background, so that a question finds the other free.
        self._executor = ThreadPoolExecutor(2, "headrace-memory")
        self._searcher = Searcher(database, embedder, self._vectors, self._executor)
        self._indexer = Indexer(database, embedder, self._vectors, self._executor)
        self._indexer.wake()

    @classmethod
    async def open(
        cls, database: Database, embedder: Embedder | None, limits: MemoryLimits | None = None
    ) -> Memory:
        """A memory in `database`. Where that cannot hold vectors, or there is no embedder, words
        alone are searched. Raises `DatabaseFailed`."""
        limits = limits or MemoryLimits()
        vectors: VectorMemory | None = None
        if embedder is not None:
            vectors = vectors_in(database, embedder, limits.max_matrix_bytes)
            try:
                await database.write(vectors.prepare)
            except SettingsError as error:
                _log.warning("memories go by words alone: %s", error)
                vectors = None
        return cls(database, embedder, vectors, limits)

    async def close(self) -> None:
        await self._indexer.close()
        self.stop()

    def stop(self) -> None:
        """As `close`, for who does not wait, or has no loop any more."""
        self._indexer.stop()
        self._executor.shutdown(wait=False, cancel_futures=True)

    @property
    def has_vectors(self) -> bool:
        return self._vectors is not None

    @property
    def num_held(self) -> int:
        """Conversations whose vectors are in memory."""
        return len(self._vectors.held()) if self._vectors is not None else 0

    async def add_document(
        self, scope: Scope, text: str, *, name: str | None = None, title: str = ""
    ) -> StoredDocument:
        """Keep a document; it is found by its words at once, and by its meaning when it is
        embedded. Raises `ConversationNotFound`, `DocumentExists`, `ConversationTooLarge`."""
        name = name or f"doc_{uuid4().hex}"
        pieces = await self._split(text)

        def keep(connection: Connection) -> StoredDocument:
            num_chunks = rows.count_chunks(connection, scope) + len(pieces)
            if num_chunks > self._limits.max_chunks:
                raise ConversationTooLarge(
                    f"with this document the conversation's memory would have {num_chunks} chunks; "
                    f"at most {self._limits.max_chunks} are allowed"
                )
            rows.add_document(connection, scope, name, title, text, pieces)
            return rows.list_documents(connection, scope, self._identity, name)[0]

        kept = await self._database.write(keep)
        self._indexer.wake()
        return kept

    async def documents(self, scope: Scope) -> list[StoredDocument]:
        """In the order in which they came. Raises `ConversationNotFound`."""
        return await self._database.read(lambda c: rows.list_documents(c, scope, self._identity))

    async def document(self, scope: Scope, name: str) -> StoredDocument:
        """Raises `ConversationNotFound` and `DocumentNotFound`."""
        found = await self._database.read(
            lambda c: rows.list_documents(c, scope, self._identity, name)
        )
        return found[0]

    async def delete_document(self, scope: Scope, name: str) -> None:
        """With its chunks, words and vectors. Raises as `document` does."""
        conversation, gone = await self._database.write(
            lambda c: rows.delete_document(c, scope, name)
        )
        if self._vectors is not None:
            self._vectors.forget(conversation, gone)

    def remember(self, scope: Scope) -> None:
        """The conversation's new messages, soon, in the background."""
        self._indexer.read(scope)

    def wake(self) -> None:
        """The tables have changed. Of conversations that were deleted, soon nothing is in memory,
        either; what came without us is embedded."""
        self._indexer.wake()

    async def idle(self) -> None:
        """Wait until nothing waits to be embedded."""
        await self._indexer.idle()

    async def recall(
        self, scope: Scope, question: str, *, limit: int = DEPTH, timeout_s: float = 2.0
    ) -> Recall:
        """The chunks of the scope that most likely answer a question. Each part of the search may
        take `timeout_s`. Raises `ConversationNotFound`."""
        recall = await self._searcher.recall(scope, question, limit, timeout_s)
        if recall.num_waiting or (self._vectors is not None and self._vectors.has_broken):
            self._indexer.wake()
        return recall

    async def _split(self, text: str) -> list[Piece]:
        most = WINDOW if self._embedder is None else self._embedder.max_tokens
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, split, text, most)

    @property
    def _identity(self) -> str:
        return NO_EMBEDDER if self._embedder is None else self._embedder.identity


def vectors_in(database: Database, embedder: Embedder, max_bytes: int) -> VectorMemory:
    """What keeps vectors in such a database."""
    if database.is_postgresql:
        return PostgreSQLVectors(embedder.dim)
    return SQLiteVectors(max_bytes)
