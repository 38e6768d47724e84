"""What a server has of conversations: nothing until it is opened, then a store and its turns.

Thread: `open` and `close` block; all else is the event loop's.
"""

from __future__ import annotations

import asyncio
import logging

from headrace.conversations.database import Database
from headrace.conversations.store import ConversationStore, StoreConfig
from headrace.conversations.turns import Turns, free_all
from headrace.errors import DatabaseFailed, HeadraceError

EXPIRE_S = 600.0
"""How often what is too old is deleted."""

_log = logging.getLogger(__name__)


class Conversations:
    """Handlers reach the store and the turns through this."""

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self._store: ConversationStore | None = None
        self._turns: Turns | None = None
        self._tending: asyncio.Task[None] | None = None

    def open(self, url: str | None, *, is_synced: bool = False) -> None:
        """Raises as `Database.open` does."""
        database = Database.open(url, is_synced=is_synced)
        self._store = ConversationStore(database, self._config)
        self._turns = Turns(self._store)
        if database.is_alone:
            database.write_now(free_all)

    @property
    def is_open(self) -> bool:
        return self._store is not None

    @property
    def store(self) -> ConversationStore:
        """Raises `DatabaseFailed` where there is none."""
        if self._store is None:
            raise _not_open()
        return self._store

    @property
    def turns(self) -> Turns:
        """Raises `DatabaseFailed` where there is no store."""
        if self._turns is None:
            raise _not_open()
        return self._turns

    @property
    def num_open(self) -> int:
        """Turns that are not kept to their end yet."""
        return self._turns.num_open if self._turns else 0

    def tend(self) -> None:
        """On the event loop: delete what is too old, from now on."""
        if self._store is not None and self._tending is None:
            self._tending = asyncio.create_task(self._expire(self._store))

    async def _expire(self, store: ConversationStore) -> None:
        while True:
            try:
                await store.expire()
            except HeadraceError as error:
                _log.warning("old conversations were not deleted: %s", error.message)
            await asyncio.sleep(EXPIRE_S)

    def close(self) -> None:
        """What waits is written first."""
        store, self._store, self._turns = self._store, None, None
        if store is not None:
            store.database.close()


def _not_open() -> DatabaseFailed:
    return DatabaseFailed(
        "conversations cannot be kept now: their database is not open; ask again in a moment",
        retry_after_s=1.0,
    )
