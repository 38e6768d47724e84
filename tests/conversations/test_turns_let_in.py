"""Turns are let in, or leave no trace: refused, left, deleted under their feet, asked for twice."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection

from headrace.conversations import rows
from headrace.conversations.database import Database
from headrace.conversations.memory.rows import add_document
from headrace.conversations.memory.values import Scope
from headrace.conversations.open_turn import OpenTurn
from headrace.conversations.store import ConversationStore, StoreConfig
from headrace.conversations.turns import Turns
from headrace.conversations.values import Answer, Conversation, StoredMessage
from headrace.errors import (
    ConversationBusy,
    ConversationNotFound,
    ConversationTooLarge,
    DatabaseFailed,
)
from headrace.wire.ask import Place

IN_C = Place(conversation_id="c", creates=True)
WHOLE = Answer({"role": "assistant", "content": "Hello"}, (1, 2), "completed")
_LONG_ENOUGH_S = 0.5


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database.open(database_url)
    yield database
    database.close()


def said(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


async def whole_turn(turns: Turns, text: str = "Hi") -> OpenTurn:
    opened = await turns.begin("t", IN_C)
    turns.keep(opened, [said(text)], lambda: WHOLE, lambda: None)
    turns.end(opened)
    await opened.done
    return opened


async def lease(store: ConversationStore) -> tuple[str | None, float]:
    found = await store.get("t", "c")
    return await store.database.read(lambda c: rows.lease(c, found.number))


def test_a_turn_stands_on_what_was_said(database: Database) -> None:
    turns = Turns(ConversationStore(database))

    async def play() -> None:
        first, second = await whole_turn(turns, "one"), await whole_turn(turns, "two")
        assert list(first.turn.history) == []
        assert [each.message["content"] for each in second.turn.history] == ["one", "Hello"]
        third = await turns.begin("t", Place(conversation_id="c", after=first.answer_id))
        assert [each.message["content"] for each in third.turn.history] == ["one", "Hello"]
        await turns.give_up(third)
        root = await turns.begin("t", Place(conversation_id="c", after="root"))
        assert list(root.turn.history) == []

    asyncio.run(play())


def test_who_is_refused_for_what_was_said_before_holds_nobody_up(database: Database) -> None:
    store = ConversationStore(database, StoreConfig(max_messages=2))
    turns = Turns(store)

    async def play() -> None:
        await whole_turn(turns)
        with pytest.raises(ConversationTooLarge):
            await turns.begin("t", IN_C)
        assert await lease(store) == (None, 0.0)
        assert turns.num_open == 0

    asyncio.run(play())


def test_a_conversation_that_goes_while_a_turn_is_let_in_is_not_there(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ConversationStore(database)
    turns, branch = Turns(store), rows.branch

    def late(connection: Connection, number: int, head_id: str | None) -> list[StoredMessage]:
        database.write_now(lambda c: rows.delete_conversation(c, number))
        connection.rollback()  # of its own state of the database, which is the earlier one
        return branch(connection, number, head_id)

    async def play() -> None:
        await whole_turn(turns)
        monkeypatch.setattr(rows, "branch", late)
        with pytest.raises(ConversationNotFound):
            await turns.begin("t", IN_C)
        assert turns.num_open == 0

    asyncio.run(play())


def test_who_leaves_while_being_let_in_holds_nobody_up(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ConversationStore(database)
    turns, take = Turns(store), rows.take_idle
    is_taking, may_take = threading.Event(), threading.Event()

    def slow(*args: Any) -> Conversation | None:
        is_taking.set()
        may_take.wait(10)
        return take(*args)

    async def play() -> None:
        await whole_turn(turns)
        monkeypatch.setattr(rows, "take_idle", slow)
        leaving = asyncio.create_task(turns.begin("t", IN_C))
        await asyncio.to_thread(is_taking.wait, 10)
        leaving.cancel()
        may_take.set()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert await lease(store) == (None, 0.0)
        assert turns.num_open == 0

    asyncio.run(play())


def test_all_messages_of_a_conversation_count_those_of_other_branches_too(
    database: Database,
) -> None:
    store = ConversationStore(database, StoreConfig(max_messages=5))
    turns = Turns(store)

    async def play() -> None:
        await whole_turn(turns)
        for after in (None, "root"):
            place = Place(conversation_id="c", after=after)
            await turns.give_up(await turns.begin("t", place, num_asked=2))
            with pytest.raises(ConversationTooLarge):
                await turns.begin("t", place, num_asked=3)
        assert await lease(store) == (None, 0.0)

    asyncio.run(play())


def test_a_lease_is_given_back_where_only_reading_failed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ConversationStore(database)
    turns = Turns(store)

    def broken(*args: Any) -> list[StoredMessage]:
        raise DatabaseFailed("the disk cannot be read now")

    async def play() -> None:
        await whole_turn(turns)
        with monkeypatch.context() as patched:
            patched.setattr(rows, "branch", broken)
            with pytest.raises(DatabaseFailed):
                await turns.begin("t", IN_C)
        assert await lease(store) == (None, 0.0)
        await turns.give_up(await turns.begin("t", IN_C))

    asyncio.run(play())


def test_a_first_turn_that_is_refused_takes_nothing_along_that_others_put_there(
    database: Database,
) -> None:
    store = ConversationStore(database)
    turns = Turns(store)

    async def play() -> None:
        opened = await turns.begin("t", IN_C)
        await database.write(
            lambda c: add_document(c, Scope("t", "c"), "doc", "title", "text", [(0, "text")])
        )
        await turns.give_up(opened)
        assert (await store.get("t", "c")).id == "c"
        assert await lease(store) == (None, 0.0)
        await turns.give_up(await turns.begin("t", Place(conversation_id="d", creates=True)))
        with pytest.raises(ConversationNotFound):
            await store.get("t", "d")

    asyncio.run(play())


def test_of_two_servers_that_begin_the_same_conversation_one_is_let_in(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other hears that it is busy, as it would a moment later, or waits where it may."""
    both = Database.open(database_url), Database.open(database_url)
    barrier, take = threading.Barrier(2), rows.take_idle

    def slow(connection: Connection, *names: Any) -> Conversation | None:
        found = take(connection, *names)
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(_LONG_ENOUGH_S)
        return found

    monkeypatch.setattr(rows, "take_idle", slow)

    async def play() -> None:
        one, other = (Turns(ConversationStore(each)) for each in both)
        begun = await asyncio.gather(
            one.begin("t", IN_C), other.begin("t", IN_C), return_exceptions=True
        )
        assert sum(isinstance(each, OpenTurn) for each in begun) == 1
        assert sum(isinstance(each, ConversationBusy) for each in begun) == 1

    try:
        asyncio.run(play())
    finally:
        for each in both:
            each.close()
