"""Vectors in databases: the same tests for each kind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Connection, delete, insert, text

from headrace.conversations.database import Database
from headrace.conversations.memory import pgvector
from headrace.conversations.memory.pgvector import PostgreSQLVectors
from headrace.conversations.memory.sqlite import SQLiteVectors
from headrace.conversations.memory.tables import chunks
from headrace.conversations.memory.vectors import Place, VectorMemory
from headrace.conversations.tables import conversations

DIM = 32


def units(num: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((num, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Kept:
    """Vectors in a database, asked without waiting."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.vectors: VectorMemory = (
            PostgreSQLVectors(DIM) if database.is_postgresql else SQLiteVectors(10**6)
        )
        asyncio.run(database.write(self.vectors.prepare))

    def conversation(self, name: str, num_chunks: int) -> tuple[Place, list[int]]:
        """With chunks that have no vectors yet."""

        def work(connection: Connection) -> tuple[Place, list[int]]:
            row = {"tenant": "t", "id": name, "metadata": {}, "created_at": 1.0, "updated_at": 1.0}
            added = insert(conversations).returning(conversations.c.number)
            number = connection.execute(added, row).scalar_one()
            some = [{"conversation": number, "position": 0, "text": "x"}] * num_chunks
            new = connection.execute(insert(chunks).returning(chunks.c.number), some).scalars()
            return Place(number, "e:1"), sorted(new)

        return asyncio.run(self.database.write(work))

    def add(self, place: Place, numbers: list[int], vectors: NDArray[np.float32]) -> None:
        asyncio.run(self.database.write(lambda c: self.vectors.add(c, place, numbers, vectors)))

    def nearest(self, place: Place, vector: NDArray[np.float32], limit: int) -> list[int]:
        return asyncio.run(
            self.database.read(lambda c: self.vectors.nearest(c, place, vector, limit))
        )

    def run(self, statement: object) -> None:
        asyncio.run(self.database.write(lambda c: c.execute(statement)))  # type: ignore[call-overload]


@pytest.fixture
def kept(database_url: str) -> Iterator[Kept]:
    database = Database.open(database_url)
    yield Kept(database)
    database.close()


def exact(
    vectors: NDArray[np.float32], numbers: list[int], query: NDArray[np.float32]
) -> list[int]:
    return [numbers[i] for i in np.argsort(-(vectors @ query), kind="stable")]


def test_the_nearest_come_first_exactly(kept: Kept) -> None:
    place, numbers = kept.conversation("a", 300)
    vectors = units(300)
    kept.add(place, numbers[:200], vectors[:200])
    for query in units(5, seed=1):
        assert kept.nearest(place, query, 10) == exact(vectors[:200], numbers, query)[:10]
    kept.add(place, numbers[200:], vectors[200:])
    for query in units(5, seed=2):
        assert kept.nearest(place, query, 10) == exact(vectors, numbers, query)[:10]


def test_one_conversation_never_sees_anothers(kept: Kept) -> None:
    one, ones = kept.conversation("a", 20)
    other, others = kept.conversation("b", 20)
    vectors = units(20)
    kept.add(one, ones, vectors)
    assert kept.nearest(other, vectors[0], 100) == []
    kept.add(other, others[:5], vectors[:5])
    assert set(kept.nearest(other, vectors[0], 100)) == set(others[:5])
    assert set(kept.nearest(one, vectors[0], 100)) == set(ones)


def test_vectors_of_another_embedder_are_never_compared(kept: Kept) -> None:
    place, numbers = kept.conversation("a", 10)
    kept.add(place, numbers, units(10))
    renewed = Place(place.conversation, "e:2")
    assert kept.nearest(renewed, units(1)[0], 10) == []
    kept.add(renewed, numbers[:3], units(3))
    assert set(kept.nearest(renewed, units(1)[0], 10)) == set(numbers[:3])
    assert set(kept.nearest(place, units(1)[0], 10)) == set(numbers[3:])


def test_a_vector_that_is_given_again_counts(kept: Kept) -> None:
    place, numbers = kept.conversation("a", 3)
    kept.add(place, numbers, units(3))
    query = units(1, seed=5)[0]
    kept.nearest(place, query, 3)
    kept.add(place, numbers[2:], query[None])
    assert kept.nearest(place, query, 3)[0] == numbers[2]
    assert sorted(kept.nearest(place, query, 10)) == numbers


def test_what_is_deleted_is_gone_whoever_deleted_it(kept: Kept) -> None:
    place, numbers = kept.conversation("a", 30)
    vectors = units(30)
    kept.add(place, numbers, vectors)
    assert kept.nearest(place, vectors[0], 1) == numbers[:1]
    kept.run(delete(chunks).where(chunks.c.number == numbers[0]))
    assert numbers[0] not in kept.nearest(place, vectors[0], 30)
    assert len(kept.nearest(place, vectors[0], 30)) == 29
    kept.run(delete(conversations))
    assert kept.nearest(place, vectors[0], 30) == []
    left = asyncio.run(kept.database.read(lambda c: c.scalar(text("SELECT count(*) FROM vectors"))))
    assert left == 0


def test_what_is_forgotten_leaves_memory(kept: Kept) -> None:
    place, numbers = kept.conversation("a", 4)
    kept.add(place, numbers, units(4))
    kept.nearest(place, units(1)[0], 1)
    kept.vectors.forget(place.conversation, numbers[:1])
    kept.vectors.forget(place.conversation)
    assert kept.vectors.held() == set()
    assert len(kept.nearest(place, units(1)[0], 10)) == 4  # read again: the database has them


def test_another_process_finds_all(kept: Kept) -> None:
    place, numbers = kept.conversation("a", 50)
    vectors = units(50)
    kept.add(place, numbers, vectors)
    again = Kept(kept.database)
    assert again.nearest(place, vectors[7], 5) == exact(vectors, numbers, vectors[7])[:5]


def test_the_index_of_a_large_conversation_finds_its_own(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgvector, "_MAX_EXACT", 10)
    place, numbers = kept.conversation("a", 200)
    other, others = kept.conversation("b", 200)
    vectors = units(400)
    kept.add(place, numbers, vectors[:200])
    kept.add(other, others, vectors[200:])
    hits = 0
    for query in units(10, seed=3):
        found = kept.nearest(place, query, 10)
        assert set(found) <= set(numbers)
        hits += len(set(found) & set(exact(vectors[:200], numbers, query)[:10]))
    assert hits >= 95


def test_matrices_stay_within_their_room(tmp_path: object) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/m.db")
    try:
        kept = Kept(database)
        vectors = SQLiteVectors(max_bytes=9_000)
        kept.vectors = vectors
        for name in "abcd":
            place, numbers = kept.conversation(name, 64)
            kept.add(place, numbers, units(64))
            assert len(kept.nearest(place, units(1)[0], 64)) == 64
            assert vectors.num_bytes <= 9_000
        assert len(vectors.held()) == 3
    finally:
        database.close()


@pytest.mark.parametrize("broken", [b"", b"short", b"\xff" * (4 * DIM)], ids=["none", "cut", "nan"])
def test_a_broken_vector_is_left_out_and_named(tmp_path: object, broken: bytes) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/m.db")
    try:
        kept = Kept(database)
        place, numbers = kept.conversation("a", 5)
        kept.add(place, numbers, units(5))
        change = text("UPDATE vectors SET vector = :broken WHERE chunk = :chunk")
        kept.run(change.bindparams(broken=broken, chunk=numbers[2]))
        found = kept.nearest(place, units(1)[0], 10)
        assert sorted(found) == [n for n in numbers if n != numbers[2]]
        assert kept.vectors.has_broken
        assert kept.vectors.broken() == [numbers[2]]
        assert not kept.vectors.has_broken
    finally:
        database.close()
