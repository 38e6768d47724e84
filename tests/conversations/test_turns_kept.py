"""Turns that go wrong: saves that come late, servers that die, answers that cannot be read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import func, select

from headrace.conversations import rows
from headrace.conversations import turns as turns_module
from headrace.conversations.database import Database
from headrace.conversations.kept_responses import delete_response, find_response, told_before
from headrace.conversations.open_turn import OpenTurn
from headrace.conversations.store import ConversationStore
from headrace.conversations.tables import conversations, messages, responses
from headrace.conversations.turn_rows import LEASE_S, free_all
from headrace.conversations.turns import Turns
from headrace.conversations.values import Answer, StoredMessage
from headrace.errors import ConversationNotFound, StreamGone
from headrace.wire.ask import Place

IN_C = Place(conversation_id="c", creates=True)
PART = Answer({"role": "assistant", "content": "Hel"}, (1,), "in_progress")
DONE = Answer(
    {"role": "assistant", "content": "Hello"},
    (1, 2),
    "completed",
    shown={"status": "completed", "usage": 7},
)
TABLES = (conversations, messages, responses)
WHOLE = Answer({"role": "assistant", "content": "Hello"}, (1, 2), "completed")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database.open(database_url)
    yield database
    database.close()


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is saved but where a test says so."""
    monkeypatch.setattr(turns_module, "SAVE_S", 1000.0)


def said(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


async def kept(opened: OpenTurn) -> None:
    """What it was asked is in the database."""
    await asyncio.gather(*opened.jobs)


async def taken_up_when_over(store: ConversationStore, opened: OpenTurn) -> None:
    """By another server, which finds its answer whole."""
    turns = Turns(store)
    again = turns.resumed(opened.mark(), is_over=True)
    turns.keep(again, [said("Hi")], lambda: WHOLE, lambda: None)
    turns.end(again)
    await again.done


async def answer_of(database: Database, opened: OpenTurn) -> StoredMessage:
    number = opened.number
    assert number is not None
    return await database.read(lambda c: rows.message(c, number, opened.answer_id))


def test_a_late_save_is_not_over_the_whole_answer(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another writer's transaction is the faster one."""
    store = ConversationStore(database)
    turns, write = Turns(store), database.write

    async def play() -> None:
        opened = await turns.begin("t", IN_C)
        turns.keep(opened, [said("Hi")], lambda: WHOLE if opened.is_ending else PART, lambda: None)
        await kept(opened)

        async def late(work: Any) -> Any:
            monkeypatch.setattr(database, "write", write)
            turns.end(opened)
            await opened.done
            return await write(work)

        monkeypatch.setattr(database, "write", late)
        await turns._save_grown()
        found = await answer_of(database, opened)
        assert (found.message, found.status) == (WHOLE.message, "completed")

    asyncio.run(play())


@pytest.mark.parametrize("place", [IN_C, Place()])
def test_answers_of_servers_that_died_are_incomplete(database: Database, place: Place) -> None:
    """Also of a turn that no conversation names; and one that is taken up again grows on."""
    turns = Turns(ConversationStore(database))

    async def play() -> None:
        opened = await turns.begin("t", place)
        opened.name("resp_1")
        turns.keep(opened, [said("Hi")], lambda: PART, lambda: None)
        await kept(opened)
        await database.write(free_all)
        assert (await answer_of(database, opened)).status == "incomplete"
        other = Turns(ConversationStore(database))
        again = other.resumed(opened.mark())
        other.keep(again, [said("Hi")], lambda: PART, lambda: None)
        await kept(again)
        await other._save_grown()
        found = await answer_of(database, again)
        assert (found.message, found.status) == (PART.message, "in_progress")

    asyncio.run(play())


@pytest.mark.parametrize("is_deleted", [False, True], ids=["cut", "deleted"])
def test_what_had_ended_is_kept_to_its_end_and_not_made_anew(
    database: Database, is_deleted: bool
) -> None:
    """Its server died before it was kept whole; or its owner has deleted it since."""
    store = ConversationStore(database)
    turns = Turns(store)

    async def play() -> None:
        opened = await turns.begin("t", IN_C)
        turns.keep(opened, [said("Hi")], lambda: PART, lambda: None)
        await kept(opened)
        await database.write(free_all)
        if is_deleted:
            _, there = await store.tree("t", "c")
            for message in there:
                await store.remove("t", "c", message.id)
        await taken_up_when_over(store, opened)
        _, there = await store.tree("t", "c")
        statuses = [message.status for message in there]
        assert statuses == ([] if is_deleted else ["completed", "completed"])

    asyncio.run(play())


def test_an_answer_of_which_a_part_was_deleted_stays_so(database: Database) -> None:
    store = ConversationStore(database)
    turns = Turns(store)

    async def play() -> None:
        opened = await turns.begin("t", IN_C)
        turns.keep(opened, [said("Hi")], lambda: WHOLE, lambda: None)
        turns.end(opened)
        await opened.done
        left = {"role": "assistant", "content": "Hell"}
        await store.remove("t", "c", opened.answer_id, lambda _: left)
        await taken_up_when_over(store, opened)
        _, there = await store.tree("t", "c")
        assert there[-1].message == left

    asyncio.run(play())


def test_a_turn_whose_answer_cannot_be_read_ends(database: Database) -> None:
    """What was saved of it stays, others are saved, and the next turn is let in."""
    turns = Turns(ConversationStore(database))
    read: list[Answer] = [PART]

    def broken() -> Answer:
        if not read:
            raise StreamGone("the file has gone")
        return read.pop()

    async def play() -> None:
        opened, beside = await turns.begin("t", IN_C), await turns.begin("t", Place())
        turns.keep(opened, [said("Hi")], broken, lambda: None)
        await kept(opened)
        await turns._save_grown()
        turns.keep(beside, [said("Hi")], lambda: PART, lambda: None)
        await kept(beside)
        await turns._save_grown()
        assert (await answer_of(database, beside)).message == PART.message
        turns.end(opened)
        await asyncio.wait_for(opened.done, 10)
        found = await answer_of(database, opened)
        assert (found.message, found.status) == (PART.message, "incomplete")
        await turns.begin("t", IN_C)

    asyncio.run(play())


def test_a_lease_is_renewed_before_the_answer_begins(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns_module, "SAVE_S", 0.01)
    now = 1000.0
    turns = Turns(ConversationStore(database, clock=lambda: now))

    async def play() -> None:
        nonlocal now
        opened = await turns.begin("t", IN_C)
        number = opened.number
        assert number is not None
        now += LEASE_S - 1
        async with asyncio.timeout(10):
            while (await database.read(lambda c: rows.lease(c, number)))[1] < now + LEASE_S:
                await asyncio.sleep(0.01)

    asyncio.run(play())


def test_a_turn_that_lost_its_lease_is_a_branch(database: Database) -> None:
    now = 1000.0
    store = ConversationStore(database, clock=lambda: now)
    turns, other = Turns(store), Turns(store)

    async def play() -> None:
        nonlocal now
        late = await turns.begin("t", IN_C)
        now += LEASE_S + 1
        opened = await other.begin("t", IN_C)
        for server, each in (other, opened), (turns, late):
            server.keep(each, [said("Hi")], lambda: WHOLE, lambda: None)
            await kept(each)
            server.end(each)
            await each.done
        assert [each.id for each in await store.branch("t", "c")][-1] == opened.answer_id
        assert (await answer_of(database, late)).message == WHOLE.message

    asyncio.run(play())


def test_a_response_is_found_followed_and_let_go_of(database: Database) -> None:
    """What another response stands on stays until that goes, too."""
    store = ConversationStore(database)
    turns = Turns(store)

    async def play() -> None:
        names = ("resp_" + "0" * 26, "resp_" + "1" * 26)
        previous = None
        for named in names:
            opened = await turns.begin("t", Place(previous_response_id=previous, stores=True))
            opened.name(named)
            opened.shown = {"id": named, "status": "in_progress", "usage": None}
            turns.keep(opened, [said(f"to {named}")], lambda: DONE, lambda: None)
            await kept(opened)
            found = await find_response(database, "t", named)
            assert (found.answer.status, found.shown["status"]) == ("in_progress", "in_progress")
            turns.end(opened)
            await opened.done
            found = await find_response(database, "t", named)
            assert found.answer.message == DONE.message
            assert found.shown == {"id": named, "status": "completed", "usage": 7}
            previous = named
        first, second = names
        with pytest.raises(ConversationNotFound):
            await delete_response(database, "another", first)
        await delete_response(database, "t", first)
        told = [str(each.message["content"]) for each in await told_before(database, "t", second)]
        assert told == [f"to {first}", "Hello", f"to {second}"]
        await delete_response(database, "t", second)
        left = await database.read(
            lambda c: [c.execute(select(func.count()).select_from(t)).scalar() for t in TABLES]
        )
        assert left == [0, 0, 0]

    asyncio.run(play())
