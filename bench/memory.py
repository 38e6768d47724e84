"""What a conversation's memory costs a question, and what it finds: 100,000 chunks, planted facts.

    python bench/memory.py [--quick] [--database URL] [--embedder NAME|fake]

Fills one conversation's memory with chunks of made-up prose, some of which tell a fact, asks for
the facts in other words, and prints each figure with its bar: a question's time, its embedding
included, and how many facts are among the five chunks that were found first. `--database` asks a
PostgreSQL with pgvector instead of SQLite. Five hundred chunks of the prose are embedded, and the
vectors of the others are mixed from those: to embed all would take minutes and change no figure.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import Connection, insert, select

from headrace.bench.figures import percentile
from headrace.conversations.database import Database
from headrace.conversations.memory import rows
from headrace.conversations.memory.matrix import ByteMatrix
from headrace.conversations.memory.memory import Memory, vectors_in
from headrace.conversations.memory.tables import chunks
from headrace.conversations.memory.values import Scope
from headrace.conversations.memory.vectors import Place
from headrace.conversations.tables import conversations
from headrace.settings import DEFAULT_EMBEDDING_MODEL

if TYPE_CHECKING:
    from headrace.model.embedder import Embedder, Vectors

SCOPE = Scope("bench", "memory")
BARS = {"p95_ms": 15.0, "recall_at_5": 0.9}
NUM_CHUNKS = 100_000
NUM_FACTS = 200
NUM_EMBEDDED = 500
_PART = 1_000
_MIX = 0.6
"""How much of a mixed vector is another's."""

_ALIKE = 0.01
"""Of the sentences of prose."""

_NAMES: Mapping[str, Sequence[str]] = {
    name: words.split()
    for name, words in {
        "place": "Lund Graz Porto Turku Ghent Bergen Kassel Nantes Leeds Parma Split Vilnius Cork",
        "thing": "turbine boiler archive vault sluice bakery foundry cellar library kiln dock",
        "kind": "northern copper hidden marble wooden narrow crimson lower ancient silent outer",
        "owner": "Ines Okafor Lindqvist Moreau Tanaka Brandt Silva Novak Haddad Keane Rossi Weber",
        "word": "water stone market river winter bread window garden letter road music forest lamp "
        "bridge teacher engine paper cloud summer village tower field coat glass morning silver "
        "island kitchen season number weather promise journey corner history council worker wheel",
    }.items()
}
_SHAPES: Sequence[tuple[str, str]] = (
    (
        "For the record, the {kind} {thing} in {place} opens with the code {number}.",
        "What is the code of the {kind} {thing} in {place}?",
    ),
    (
        "It was agreed that {owner} looks after the {kind} {thing} in {place}; extension {number}.",
        "Whom do I call about the {kind} {thing} in {place}?",
    ),
    (
        "The {kind} {thing} in {place} was last inspected in {number} by {owner}.",
        "When did somebody last check the {kind} {thing} in {place}?",
    ),
)


@dataclass(frozen=True, slots=True)
class Fact:
    told: str
    question: str


def facts(chance: random.Random, number: int) -> list[Fact]:
    """Each about another thing."""
    names = list(product(_NAMES["kind"], _NAMES["thing"], _NAMES["place"]))
    made = []
    for kind, thing, place in chance.sample(names, number):
        told, question = chance.choice(_SHAPES)
        said = {
            "kind": kind,
            "thing": thing,
            "place": place,
            "owner": chance.choice(_NAMES["owner"]),
            "number": chance.randint(1000, 9999),
        }
        made.append(Fact(told.format(**said), question.format(**said)))
    return made


def prose(chance: random.Random, num_sentences: int = 6) -> str:
    """As long as a chunk is. Some of it speaks of the same places and kinds as facts do."""
    sentences = []
    for _ in range(num_sentences):
        words = chance.choices(_NAMES["word"], k=10)
        if chance.random() < _ALIKE:
            words += [chance.choice(_NAMES["place"]), chance.choice(_NAMES["kind"])]
        sentences.append("The " + " ".join(chance.sample(words, len(words))) + ".")
    return " ".join(sentences)


def filled(database: Database, embedder: Embedder, told: Sequence[str], num_chunks: int) -> None:
    """All in one document; the facts somewhere among the prose."""
    chance, numbers = random.Random(1), np.random.default_rng(1)
    texts = [prose(chance) for _ in range(num_chunks - len(told))]
    places = sorted(chance.sample(range(len(texts) + 1), len(told)))
    for offset, (place, fact) in enumerate(zip(places, told, strict=True)):
        texts.insert(place + offset, f"{prose(chance, 2)} {fact}")
    pool = embedder.embed([*texts[: min(NUM_EMBEDDED, num_chunks)]]).vectors
    is_fact = (
        {text for text in texts if any(text.endswith(fact) for fact in told)} if told else set()
    )
    store = vectors_in(database, embedder, 2**30)
    asyncio.run(database.write(store.prepare))
    owner = Place(asyncio.run(database.write(_conversation)), embedder.identity)
    for start in range(0, num_chunks, _PART):
        part = texts[start : start + _PART]
        vectors = mixed(pool, len(part), numbers)
        own = [i for i, text in enumerate(part) if text in is_fact]
        if own:
            vectors[own] = embedder.embed([part[i] for i in own]).vectors
        asyncio.run(database.write(_adding(store, owner, start, part, vectors)))


def mixed(pool: Vectors, number: int, chance: np.random.Generator) -> Vectors:
    one, other = (pool[chance.integers(0, len(pool), number)] for _ in range(2))
    vectors = one + _MIX * other
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def _conversation(connection: Connection) -> int:
    row = {
        "tenant": SCOPE.tenant,
        "id": SCOPE.conversation,
        "metadata": {},
        "created_at": 0.0,
        "updated_at": 0.0,
    }
    return int(
        connection.execute(
            insert(conversations).returning(conversations.c.number), row
        ).scalar_one()
    )


def _adding(
    store: Any, place: Place, start: int, part: Sequence[str], vectors: Vectors
) -> Callable[[Connection], None]:
    def work(connection: Connection) -> None:
        name = f"part{start}"
        rows.add_document(connection, SCOPE, name, name, "", list(enumerate(part, start)))
        newest = select(chunks.c.number).order_by(chunks.c.number.desc()).limit(len(part))
        new = sorted(connection.execute(newest).scalars())
        rows.settle(connection, place.embedder, new)
        store.add(connection, place, new, vectors)

    return work


async def measured(
    database: Database, embedder: Embedder, asked: Sequence[Fact]
) -> dict[str, float]:
    memory = await Memory.open(database, embedder)
    try:
        start = time.perf_counter()
        await memory.recall(SCOPE, "warm", timeout_s=300)
        figures = {"first_s": time.perf_counter() - start}
        times, num_found, busy = [], 0, time.process_time()
        for fact in asked:
            start = time.perf_counter()
            recall = await memory.recall(SCOPE, fact.question, limit=5, timeout_s=60)
            times.append((time.perf_counter() - start) * 1e3)
            num_found += any(one.chunk.text.endswith(fact.told) for one in recall.found)
        busy = time.process_time() - busy
        embedding = list(_embedding_times(embedder, asked))
        return figures | {
            "p50_ms": percentile(times, 50),
            "p95_ms": percentile(times, 95),
            "processor_ms": busy * 1e3 / len(asked),
            "embed_p50_ms": percentile(embedding, 50),
            "recall_at_5": num_found / len(asked),
            "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    finally:
        await memory.close()


def _embedding_times(embedder: Embedder, asked: Sequence[Fact]) -> Iterator[float]:
    for fact in asked[:50]:
        start = time.perf_counter()
        embedder.embed([fact.question])
        yield (time.perf_counter() - start) * 1e3


def scans(num_rows: int, dim: int) -> dict[str, float]:
    """One vector against all: as bytes by our loop, and as floats by numpy."""
    chance = np.random.default_rng(2)
    vectors = mixed(chance.standard_normal((1_000, dim)).astype(np.float32), num_rows, chance)
    matrix = ByteMatrix(dim)
    matrix.add(np.arange(num_rows), vectors)
    ways: dict[str, Callable[[Vectors], object]] = {
        "bytes_p50_ms": lambda vector: matrix.nearest(vector, 100),
        "floats_p50_ms": lambda vector: np.argpartition(vectors @ vector, -100)[-100:],
    }
    figures = {}
    for name, search in ways.items():
        times = []
        for vector in vectors[:40]:
            start = time.perf_counter()
            search(vector)
            times.append((time.perf_counter() - start) * 1e3)
        figures[name] = percentile(times, 50)
    return figures | {"matrix_mb": matrix.num_bytes / 2**20}


def show(figures: dict[str, float], num_chunks: int) -> None:
    print(f"{num_chunks:,} chunks")
    for name, value in figures.items():
        bar = BARS.get(name)
        verdict = ""
        if bar is not None:
            is_met = value <= bar if name.endswith("_ms") else value >= bar
            verdict = f"   bar {bar:g}: {'met' if is_met else 'MISSED'}"
        print(f"  {name:14} {value:10.3f}{verdict}")


def embedder_named(name: str) -> Embedder:
    if name == "fake":
        from headrace.testing import FakeEmbedder

        return FakeEmbedder(384)
    from headrace.model.embedding import native, pull

    return native.load(pull.ensure(name), name=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="5,000 chunks")
    parser.add_argument("--chunks", type=int, default=None)
    parser.add_argument("--database", help="a PostgreSQL, empty; SQLite in a new file otherwise")
    parser.add_argument("--embedder", default=DEFAULT_EMBEDDING_MODEL, help="or `fake`")
    options = parser.parse_args()
    num_chunks = options.chunks or (5_000 if options.quick else NUM_CHUNKS)
    embedder = embedder_named(options.embedder)
    asked = facts(random.Random(7), NUM_FACTS)
    with tempfile.TemporaryDirectory(prefix="headrace-memory-") as folder:
        database = Database.open(options.database or f"sqlite:///{folder}/memory.db")
        try:
            start = time.perf_counter()
            filled(database, embedder, [fact.told for fact in asked], num_chunks)
            print(f"filled in {time.perf_counter() - start:.1f} s")
            figures = asyncio.run(measured(database, embedder, asked))
            show(figures | scans(num_chunks, embedder.dim), num_chunks)
        finally:
            database.close()


if __name__ == "__main__":
    main()
