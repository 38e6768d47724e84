"""A played conversation as a server keeps it, so that what was said can be found again.

In: what is said, turn by turn; questions. Out: `Recalled`. Thread: the event loop.

It is kept in a database of its own, on disk, which goes with the play.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from headrace.conversations.database import Database
from headrace.conversations.memory.values import Scope
from headrace.conversations.passages import Recalled
from headrace.conversations.store import ConversationStore
from headrace.conversations.strategies import Message
from headrace.conversations.values import StoredMessage, Turn
from headrace.errors import ModelNotFound
from headrace.model.catalogue import DEFAULT_EMBEDDER
from headrace.model.embedder import Embedder
from headrace.server.contexts import Contexts
from headrace.server.memories import Memories
from headrace.server.recalling import found_for
from headrace.settings import ServerSettings
from headrace.wire.ask import Ask

_NAME = "bench"


def installed_embedder(threads: int | None = None) -> Embedder | None:
    """The model that a server would embed with; None where it is not on this machine. Raises what
    loading it raises."""
    from headrace.model.embedding import folder, native

    try:
        found = folder.resolve(DEFAULT_EMBEDDER)
    except ModelNotFound:
        return None
    return native.load(found, name=DEFAULT_EMBEDDER, threads=threads)


@dataclass
class KeptTalk:
    """One conversation with its memory; made by `kept_talk`."""

    tenant: str
    memories: Memories
    store: ConversationStore
    file: Path
    history: list[StoredMessage] = field(default_factory=list)

    async def add(self, said: Sequence[Message]) -> None:
        """Keep messages. Returns when they can be found: that is done between turns."""
        self.history += await self.store.append(self.tenant, _NAME, said)
        memory = await self.memories.kept()
        memory.remember(Scope(self.tenant, _NAME))
        await memory.idle()

    async def find(self, contexts: Contexts, ask: Ask) -> Recalled:
        """As a server looks for it."""
        turn = Turn(_NAME, self.tenant, _NAME, None, None, tuple(self.history))
        timeout_s = ServerSettings().retrieval_timeout_s
        return await found_for(self.memories, contexts, ask, self.tenant, turn, timeout_s=timeout_s)

    @property
    def num_bytes(self) -> int:
        """Of the conversation on disk, with its words and vectors."""
        files = self.file.parent.glob(f"{self.file.name}*")
        return sum(file.stat().st_size for file in files)


@asynccontextmanager
async def kept_talk(tenant: str, embedder: Embedder | None) -> AsyncIterator[KeptTalk]:
    """A conversation that is kept while the block runs."""

    async def get() -> Embedder | None:
        return embedder

    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        file = Path(folder) / "conversations.db"
        database = await asyncio.to_thread(Database.open, f"sqlite:///{file}")

        async def get_database() -> Database:
            return database

        memories = Memories(get_database, get)
        try:
            store = ConversationStore(database)
            await store.create(tenant, conversation_id=_NAME)
            yield KeptTalk(tenant, memories, store, file)
        finally:
            memories.stop()
            await asyncio.to_thread(database.close)
