"""What a server remembers with: nothing until it is asked for, then a memory and an embedder.

Thread: the event loop; the embedder is loaded beside it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from headrace.conversations.memory.loose import LooseMemory
from headrace.conversations.memory.values import Scope
from headrace.errors import HeadraceError
from headrace.model.embedder import Embedder

if TYPE_CHECKING:
    from headrace.conversations.database import Database
    from headrace.conversations.memory.memory import Memory

T = TypeVar("T")
GetDatabase: TypeAlias = "Callable[[], Awaitable[Database]]"
"""Raises `DatabaseFailed`."""
GetEmbedder: TypeAlias = Callable[[], Awaitable[Embedder | None]]
"""None where the server has none. May take long, and raise; it is asked again then."""

PATIENCE_S = 2.0
"""How long a question waits for an embedder that is being loaded; till it is there, memories go by
words."""

_log = logging.getLogger(__name__)


class Memories:
    """Opened by the first question that needs it, so that nobody else pays for it."""

    def __init__(self, get_database: GetDatabase, get_embedder: GetEmbedder) -> None:
        self._get_database = get_database
        self._get_embedder = get_embedder
        self._lock = asyncio.Lock()
        self._embedder: Embedder | None = None
        self._loose: LooseMemory | None = None
        self._loose_with: Embedder | None = None
        self._kept: Memory | None = None
        self._kept_with: Embedder | None = None
        # Few, so that embedding what came with questions holds up nothing but its like.
        self._searches = ThreadPoolExecutor(2, "headrace-loose")

    async def kept(self) -> Memory:
        """The memory of the conversations that are kept. Raises `DatabaseFailed`."""
        await self._look_for_embedder()
        database = await self._get_database()
        from headrace.conversations.memory.memory import Memory  # which came with the database

        async with self._lock:
            embedder = self._embedder
            if self._kept is None or self._kept_with is not embedder:
                self._let_go()
                self._kept = await Memory.open(database, embedder)
                self._kept_with = embedder
            return self._kept

    async def loose(self) -> LooseMemory:
        """For texts that came with a question."""
        await self._look_for_embedder()
        if self._loose is None or self._loose_with is not self._embedder:
            self._loose, self._loose_with = LooseMemory(self._embedder), self._embedder
        return self._loose

    async def search(self, work: Callable[[], T]) -> T:
        """Do something that embeds loose texts, on a thread for such."""
        return await asyncio.get_running_loop().run_in_executor(self._searches, work)

    def remember(self, scope: Scope) -> None:
        """The conversation has new messages, and questions have been asked of it before."""
        if self._kept is not None:
            self._kept.remember(scope)

    def wake(self) -> None:
        """Conversations were deleted, or have documents that nobody gave to the memory."""
        if self._kept is not None:
            self._kept.wake()

    def stop(self) -> None:
        """Before the database is closed, for good."""
        self._let_go()
        self._searches.shutdown(wait=False, cancel_futures=True)

    def _let_go(self) -> None:
        """What is not embedded yet will be the next memory's."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.stop()

    async def _look_for_embedder(self) -> None:
        """Each question waits by itself, so that none waits for another's patience. The first
        embedder stays."""
        if self._embedder is not None:
            return
        try:
            async with asyncio.timeout(PATIENCE_S):
                found = await self._get_embedder()
        except (HeadraceError, TimeoutError) as error:
            _log.warning("no embedder yet, so memories go by words alone: %s", error)
        else:
            self._embedder = self._embedder or found
