"""A memory as a whole: documents and messages in, chunks out; on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, insert, select, text

from headrace.conversations.database import Database
from headrace.conversations.memory import rows
from headrace.conversations.memory.memory import Memory, MemoryLimits
from headrace.conversations.memory.tables import chunks
from headrace.conversations.memory.values import Recall, Scope
from headrace.conversations.tables import conversations, messages
from headrace.errors import (
    ConversationNotFound,
    ConversationTooLarge,
    DocumentExists,
    DocumentNotFound,
    ModelError,
)
from headrace.model.embedder import Embedded, Embedder
from headrace.testing import FakeEmbedder

ANNA = Scope("anna", "mill")
BEN = Scope("ben", "mill")
WHEEL = "The water wheel of the mill turns at eleven revolutions a minute."
SLUICE = "The sluice gate opens when the pond is full."
MANUAL = f"# Wheel\n\n{WHEEL}\n\n# Sluice\n\n{SLUICE}\n"


def converse(*scopes: Scope) -> Callable[[Connection], None]:
    def work(connection: Connection) -> None:
        for scope in scopes:
            row = {
                "tenant": scope.tenant,
                "id": scope.conversation,
                "metadata": {},
                "created_at": 1.0,
                "updated_at": 1.0,
            }
            connection.execute(insert(conversations), row)

    return work


def say(scope: Scope, role: str, said: str, name: str, status: str = "completed") -> Any:
    def work(connection: Connection) -> None:
        found = select(conversations.c.number).where(
            conversations.c.tenant == scope.tenant, conversations.c.id == scope.conversation
        )
        row = {
            "conversation": connection.scalar(found),
            "id": name,
            "role": role,
            "message": {"role": role, "content": said},
            "text": said,
            "status": status,
            "metadata": {},
            "created_at": 1.0,
        }
        connection.execute(insert(messages), row)

    return work


@asynccontextmanager
async def opened(
    url: str, embedder: Embedder | None, limits: MemoryLimits | None = None
) -> AsyncIterator[tuple[Memory, Database]]:
    database = Database.open(url)
    try:
        memory = await Memory.open(database, embedder, limits)
        try:
            yield memory, database
        finally:
            await memory.close()
    finally:
        database.close()


def play(
    url: str,
    scene: Callable[[Memory, Database], Awaitable[None]],
    embedder: Embedder | None = None,
    limits: MemoryLimits | None = None,
) -> None:
    async def run() -> None:
        async with opened(url, embedder or FakeEmbedder(), limits) as (memory, database):
            await asyncio.wait_for(scene(memory, database), 60)

    asyncio.run(run())


def texts(recall: Recall) -> list[str]:
    return [found.chunk.text for found in recall.found]


def sources(recall: Recall) -> list[str]:
    return [found.chunk.source.id for found in recall.found]


async def count(database: Database, table: str) -> int:
    return int(await database.read(lambda c: c.scalar(text(f"SELECT count(*) FROM {table}"))) or 0)


def test_a_document_answers_a_question(database_url: str) -> None:
    async def scene(memory: Memory, database: Database) -> None:
        await database.write(converse(ANNA))
        kept = await memory.add_document(ANNA, MANUAL, name="manual", title="manual.md")
        assert (kept.id, kept.title, kept.num_chars) == ("manual", "manual.md", len(MANUAL))
        await memory.idle()
        kept = await memory.document(ANNA, "manual")
        assert kept.status == "completed"
        assert kept.num_embedded == kept.num_chunks > 0
        recall = await memory.recall(ANNA, "How fast does the water wheel turn?")
        assert not recall.missing
        assert recall.num_waiting == 0
        best = recall.found[0].chunk
        assert WHEEL in best.text
        assert (best.source.kind, best.source.id, best.source.title) == (
            "document",
            "manual",
            "manual.md",
        )
        assert MANUAL[best.position :].startswith(best.text)

    play(database_url, scene)


def test_messages_are_remembered_after_the_turn(database_url: str) -> None:
    async def scene(memory: Memory, database: Database) -> None:
        await database.write(converse(ANNA))
        await database.write(say(ANNA, "user", "My dog is called Kelpie.", "m1"))
        await database.write(say(ANNA, "assistant", "What a nice name!", "m2"))
        await database.write(say(ANNA, "system", "Be kind to dogs called Kelpie.", "m3"))
        await database.write(say(ANNA, "assistant", "Kelpie is", "m4", status="in_progress"))
        for _ in range(2):  # nothing is remembered twice
            memory.remember(ANNA)
            await memory.idle()
        recall = await memory.recall(ANNA, "What is my dog called?")
        assert sources(recall)[0] == "m1"
        assert sorted(sources(recall)) == ["m1", "m2"]
        assert recall.found[0].chunk.source.title == "user"
        await database.write(lambda c: c.execute(delete(messages).where(messages.c.id == "m1")))
        assert sources(await memory.recall(ANNA, "What is my dog called?")) == ["m2"]

    play(database_url, scene)


def test_what_is_said_while_others_are_read_is_remembered_too(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(memory: Memory, database: Database) -> None:
        await database.write(converse(ANNA))
        await database.write(say(ANNA, "user", "My dog is called Kelpie.", "m1"))
        find, was_told = rows.untold_messages, False

        def late(connection: Connection, *args: Any) -> Any:
            nonlocal was_told
            found = find(connection, *args)
            if not found and not was_told:
                was_told = True
                more = database.write(say(ANNA, "user", "My cat is called Alfonso.", "m2"))
                asyncio.run_coroutine_threadsafe(more, loop).result(30)
                loop.call_soon_threadsafe(memory.remember, ANNA)
                time.sleep(0.05)  # until it was called
            return found

        loop = asyncio.get_running_loop()
        with monkeypatch.context() as patched:
            patched.setattr(rows, "untold_messages", late)
            memory.remember(ANNA)
            await memory.idle()
        assert "m2" in sources(await memory.recall(ANNA, "What is Alfonso?"))

    play(database_url, scene)


def test_words_are_found_before_anything_is_embedded(database_url: str) -> None:
    class Stuck(FakeEmbedder):
        def embed(self, some: Sequence[str]) -> Embedded:
            if not is_free.wait(timeout=30):
                raise ModelError("stuck")
            return super().embed(some)

    is_free = threading.Event()

    async def scene(memory: Memory, database: Database) -> None:
        await database.write(converse(ANNA))
        kept = await memory.add_document(ANNA, MANUAL)
        assert kept.status == "in_progress"
        recall = await memory.recall(ANNA, "sluice gate", timeout_s=3)
        assert recall.missing == ("vectors",)
        assert recall.num_waiting == kept.num_chunks
        assert SLUICE in texts(recall)[0]
        is_free.set()
        await memory.idle()
        recall = await memory.recall(ANNA, "sluice gate", timeout_s=30)
        assert not recall.missing
        assert recall.num_waiting == 0

    play(database_url, scene, Stuck())


def test_without_an_embedder_words_do(database_url: str) -> None:
    async def scene() -> None:
        async with opened(database_url, None) as (memory, database):
            await database.write(converse(ANNA))
            await memory.add_document(ANNA, MANUAL)
            await database.write(say(ANNA, "user", "The sluice is stuck.", "m1"))
            memory.remember(ANNA)
            await memory.idle()
            recall = await memory.recall(ANNA, "sluice")
            assert recall.missing == ("vectors",)
            assert len(recall.found) == 2

    asyncio.run(scene())


def test_deleting_a_document_deletes_all_of_it(database_url: str) -> None:
    async def scene(memory: Memory, database: Database) -> None:
        await database.write(converse(ANNA))
        await memory.add_document(ANNA, MANUAL, name="manual")
        await memory.add_document(ANNA, "The miller sleeps.", name="other")
        await memory.idle()
        await memory.recall(ANNA, "wheel")
        await memory.delete_document(ANNA, "manual")
        assert [kept.id for kept in await memory.documents(ANNA)] == ["other"]
        assert texts(await memory.recall(ANNA, "water wheel sluice")) == ["The miller sleeps."]
        for table in ("documents", "chunks", "chunk_words", "vectors"):
            assert await count(database, table) == 1
        with pytest.raises(DocumentNotFound):
            await memory.delete_document(ANNA, "manual")

    play(database_url, scene)


def test_deleting_a_conversation_deletes_its_memory(database_url: str) -> None:
    async def scene(memory: Memory, database: Database) -> None:
        await database.write(converse(ANNA, BEN))
        await memory.add_document(ANNA, MANUAL)
        await database.write(say(ANNA, "user", "The wheel squeaks.", "m1"))
        memory.remember(ANNA)
        await memory.idle()
        await memory.recall(ANNA, "wheel")
        await database.write(
            lambda c: c.execute(delete(conversations).where(conversations.c.tenant == "anna"))
        )
        memory.wake()
        await memory.idle()
        assert memory.num_held == 0
        for table in ("documents", "chunks", "chunk_words", "vectors"):
            assert await count(database, table) == 0
        with pytest.raises(ConversationNotFound):
            await memory.recall(ANNA, "wheel")

    play(database_url, scene)


def test_after_a_restart_all_is_there_and_what_waited_goes_on(database_url: str) -> None:
    async def before() -> None:
        async with opened(database_url, FakeEmbedder()) as (memory, database):
            await database.write(converse(ANNA))
            await memory.add_document(ANNA, MANUAL, name="manual")
            await memory.idle()
        # Kept, and then the server dies before anything is embedded.
        async with opened(database_url, None) as (memory, database):
            await memory.add_document(ANNA, "The miller sleeps at noon.", name="late")

    asyncio.run(before())

    async def scene(memory: Memory, database: Database) -> None:
        await memory.idle()
        assert [kept.status for kept in await memory.documents(ANNA)] == ["completed"] * 2
        assert sources(await memory.recall(ANNA, "The miller sleeps at noon?"))[0] == "late"
        assert sources(await memory.recall(ANNA, "How fast is the water wheel?"))[0] == "manual"

    play(database_url, scene)


def test_a_new_embedder_embeds_all_again(database_url: str) -> None:
    async def before(memory: Memory, database: Database) -> None:
        await database.write(converse(ANNA))
        await memory.add_document(ANNA, MANUAL)
        await memory.idle()

    async def after(memory: Memory, database: Database) -> None:
        await memory.idle()
        recall = await memory.recall(ANNA, "How fast does the water wheel turn?")
        assert not recall.missing
        assert recall.num_waiting == 0
        assert WHEEL in texts(recall)[0]
        num_chunks = await count(database, "chunks")
        assert await count(database, "vectors") == num_chunks
        made = await database.read(
            lambda c: c.execute(text("SELECT DISTINCT embedder FROM vectors")).scalars().all()
        )
        assert made == [FakeEmbedder(64).identity]

    play(database_url, before, FakeEmbedder(256))
    play(database_url, after, FakeEmbedder(64))


def test_what_cannot_be_embedded_is_named_and_holds_up_nobody(database_url: str) -> None:
    class Picky(FakeEmbedder):
        def embed(self, some: Sequence[str]) -> Embedded:
            if any("poison" in one for one in some):
                raise ModelError("NaN")
            return super().embed(some)

    async def scene(memory: Memory, database: Database) -> None:
        await database.write(converse(ANNA))
        await memory.add_document(ANNA, "poison", name="bad")
        await memory.add_document(ANNA, WHEEL, name="good")
        await memory.idle()
        bad, good = await memory.documents(ANNA)
        assert (bad.status, bad.num_failed, bad.problem) == ("failed", 1, "NaN")
        assert good.status == "completed"
        assert sources(await memory.recall(ANNA, "poison bottle"))[0] == "bad"  # by its words

    play(database_url, scene, Picky())


def test_a_chunk_that_is_too_long_is_cut_again(database_url: str) -> None:
    async def scene(memory: Memory, database: Database) -> None:
        await database.write(converse(ANNA))
        said = " ".join(f"w{i}" for i in range(600))
        await memory.add_document(ANNA, said, name="dense")
        await memory.idle()
        kept = await memory.document(ANNA, "dense")
        assert kept.status == "completed"
        found = await database.read(
            lambda c: c.execute(select(chunks.c.text).order_by(chunks.c.position)).scalars().all()
        )
        assert " ".join(found) == said
        assert max(len(one.split()) for one in found) <= 30
        recall = await memory.recall(ANNA, "w599")
        assert "w599" in texts(recall)[0]

    play(database_url, scene, FakeEmbedder(max_tokens=32))


def test_limits_and_doubles_are_refused(database_url: str) -> None:
    async def scene(memory: Memory, database: Database) -> None:
        with pytest.raises(ConversationNotFound):
            await memory.add_document(ANNA, MANUAL)
        await database.write(converse(ANNA))
        await memory.add_document(ANNA, WHEEL, name="one")
        with pytest.raises(DocumentExists):
            await memory.add_document(ANNA, SLUICE, name="one")
        with pytest.raises(ConversationTooLarge, match="at most 2"):
            await memory.add_document(ANNA, "\n\n".join(["Long. " * 200] * 3))
        assert await count(database, "documents") == await count(database, "chunks") == 1

    play(database_url, scene, limits=MemoryLimits(max_chunks=2))


def test_common_words_do_not_drown_rare_ones(database_url: str) -> None:
    async def scene() -> None:
        async with opened(database_url, None) as (memory, database):
            await database.write(converse(ANNA))
            days = "\n\n".join(f"# Day {i}\n\n{WHEEL} {SLUICE} " * 4 for i in range(40))
            await memory.add_document(ANNA, days)
            broken = "The water wheel of the mill broke: bearing X17."
            await memory.add_document(ANNA, broken, name="rare")
            recall = await memory.recall(ANNA, "bearing of the water wheel of the mill, X17?")
            assert sources(recall)[0] == "rare"

    asyncio.run(scene())


WORDS = ["wheel", "sluice", "pond", "miller", "flour"]
STEP = st.tuples(
    st.sampled_from(["add", "say", "delete", "drop", "search"]),
    st.sampled_from([Scope(t, c) for t in ("anna", "ben") for c in ("a", "b")]),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=4),
)


@given(st.lists(STEP, max_size=14))
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_tenant_ever_finds_anothers(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Scope, list[str]]]
) -> None:
    """Each text names its scope. Whatever is done in which order, a search finds its own alone, and
    nothing that was deleted."""

    async def scene(memory: Memory, database: Database) -> None:
        alive: dict[Scope, set[str]] = {}
        for number, (what, scope, words) in enumerate(steps):
            mark = f"{scope.tenant}{scope.conversation}{number}"
            told = " ".join([*words, mark])
            if scope not in alive:
                await database.write(converse(scope))
                alive[scope] = set()
            if what == "add":
                await memory.add_document(scope, told, name=f"d{number}")
                alive[scope].add(f"d{number}")
            elif what == "say":
                await database.write(say(scope, "user", told, f"m{number}"))
                memory.remember(scope)
                alive[scope].add(f"m{number}")
            elif what == "delete":
                for name in sorted(alive[scope]):
                    if name.startswith("d"):
                        await memory.delete_document(scope, name)
                        alive[scope].discard(name)
            elif what == "drop":
                where = (conversations.c.tenant == scope.tenant) & (
                    conversations.c.id == scope.conversation
                )
                await database.write(lambda c, w=where: c.execute(delete(conversations).where(w)))
                memory.wake()
                del alive[scope]
            await check(memory, alive, words)
        await memory.idle()
        await check(memory, alive, WORDS)
        for scope, names in alive.items():
            found = await memory.recall(scope, " ".join(WORDS))
            assert set(sources(found)) == names

    async def check(memory: Memory, alive: dict[Scope, set[str]], words: list[str]) -> None:
        for scope in alive:
            recall = await memory.recall(scope, " ".join(words), timeout_s=30)
            assert set(sources(recall)) <= alive[scope]
            for found in texts(recall):
                assert f"{scope.tenant}{scope.conversation}" in found

    play(f"sqlite:///{tmp_path_factory.mktemp('m')}/m.db", scene, FakeEmbedder(32))


def test_broken_vectors_are_made_again(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/m.db"

    async def before(memory: Memory, database: Database) -> None:
        await database.write(converse(ANNA))
        await memory.add_document(ANNA, MANUAL, name="manual")
        await memory.idle()
        await database.write(lambda c: c.execute(text("UPDATE vectors SET vector = x'00ff'")))

    async def after(memory: Memory, database: Database) -> None:
        await memory.recall(ANNA, "zzz", timeout_s=30)
        await memory.idle()
        recall = await memory.recall(ANNA, "How fast does the water wheel turn?", timeout_s=30)
        assert WHEEL in texts(recall)[0]
        assert (
            await database.read(
                lambda c: c.scalar(text("SELECT count(*) FROM vectors WHERE length(vector) < 9"))
            )
            == 0
        )

    play(url, before)
    play(url, after)
