"""What a server has of conversations: nothing until it is opened, then a store and its turns.

Thread: `open` and `close` block; all else is the event loop's.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING

from headrace.errors import DatabaseFailed, HeadraceError

if TYPE_CHECKING:
    from headrace.conversations.store import ConversationStore
    from headrace.conversations.turns import Turns
    from headrace.conversations.values import StoreConfig

PATIENCE_S = 3.0
"""How long a request waits for a database that is being opened."""
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
        self._opening: Future[None] | None = None
        self._failed = ""

    def expect(self) -> None:
        """It will be opened soon: requests wait for that."""
        self._opening = Future()

    def open(self, url: str | None, *, is_synced: bool = False) -> None:
        """Raises as `Database.open` does."""
        try:
            self._open(url, is_synced)
        except DatabaseFailed as error:
            self._failed = error.message
            raise
        finally:
            if self._opening is not None and not self._opening.done():
                self._opening.set_result(None)

    def _open(self, url: str | None, is_synced: bool) -> None:
        # These take half a second to import, the memory's among them, which are needed later on the
        # event loop.
        from headrace.conversations.database import Database
        from headrace.conversations.memory import memory  # noqa: F401
        from headrace.conversations.store import ConversationStore
        from headrace.conversations.turn_rows import free_all
        from headrace.conversations.turns import Turns

        database = Database.open(url, is_synced=is_synced)
        self._store = ConversationStore(database, self._config)
        self._turns = Turns(self._store)
        if database.is_alone:
            database.write_now(free_all)

    async def opened(self) -> None:
        """Returns when it is open, cannot be opened, or is not expected to be; or in any case after
        a while."""
        if self._opening is not None and not self._opening.done():
            opening = asyncio.shield(asyncio.wrap_future(self._opening))
            with suppress(TimeoutError):
                await asyncio.wait_for(opening, PATIENCE_S)

    @property
    def is_open(self) -> bool:
        return self._store is not None

    @property
    def store(self) -> ConversationStore:
        """Raises `DatabaseFailed` where there is none."""
        if self._store is None:
            raise self._not_open()
        return self._store

    @property
    def turns(self) -> Turns:
        """Raises `DatabaseFailed` where there is no store."""
        if self._turns is None:
            raise self._not_open()
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

    def _not_open(self) -> DatabaseFailed:
        if self._failed:  # which waiting does not mend
            return DatabaseFailed(f"conversations are not kept on this server: {self._failed}")
        return DatabaseFailed(
            "conversations cannot be kept now: their database is not open; ask again in a moment",
            retry_after_s=1.0,
        )
