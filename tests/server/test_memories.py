"""What a server remembers with, while its embedder is being loaded and afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.conversations.database import Database
from headrace.conversations.memory.loose import LooseText
from headrace.conversations.memory.values import Source
from headrace.errors import DatabaseFailed
from headrace.server.memories import Memories
from headrace.testing import FakeEmbedder
from support.asgi import run, settle

TEXTS = [LooseText(Source("document", "wheel", "Wheels", 0), "The water wheel turns.")]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.open(f"sqlite:///{tmp_path}/c.db")
    yield database
    database.close()


@pytest.mark.parametrize("first", ["loose", "kept"])
def test_both_memories_hear_of_the_embedder(database: Database, first: str) -> None:
    loaded: list[FakeEmbedder] = []

    async def get() -> FakeEmbedder | None:
        return loaded[0] if loaded else None

    async def play() -> None:
        async def there() -> Database:
            return database

        memories = Memories(there, get)

        async def kept() -> bool:
            return (await memories.kept()).has_vectors

        async def loose() -> bool:
            return not (await memories.loose()).recall("anna", TEXTS, "wheel", 1).missing

        asked = [loose, kept] if first == "loose" else [kept, loose]
        assert [await each() for each in asked] == [False, False]
        loaded.append(FakeEmbedder())
        assert [await each() for each in asked] == [True, True]
        assert await memories.kept() is await memories.kept()
        assert await memories.loose() is await memories.loose()
        memories.stop()

    run(play)


def test_questions_wait_for_the_embedder_side_by_side() -> None:
    async def play() -> None:
        num_waiting = 0
        is_loaded = asyncio.Event()

        async def get() -> FakeEmbedder:
            nonlocal num_waiting
            num_waiting += 1
            await is_loaded.wait()
            return FakeEmbedder()

        async def none() -> Database:
            raise DatabaseFailed("none")

        memories = Memories(none, get)
        loose = [asyncio.ensure_future(memories.loose()) for _ in range(2)]
        kept = [asyncio.ensure_future(memories.kept()) for _ in range(2)]
        await settle()
        assert num_waiting == 4
        is_loaded.set()
        first, second, *failed = await asyncio.gather(*loose, *kept, return_exceptions=True)
        assert first is second
        assert all(isinstance(each, DatabaseFailed) for each in failed)

    run(play)
