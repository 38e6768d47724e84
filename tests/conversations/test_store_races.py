"""Two servers on one database at the same moment: what one reads of a conversation holds until it
has written."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection

from headrace.conversations import rows
from headrace.conversations.database import Database
from headrace.conversations.store import ConversationStore
from headrace.conversations.strategies.values import Message
from headrace.conversations.turns import Turns
from headrace.conversations.values import Conversation, StoredMessage
from headrace.errors import ConversationBusy
from headrace.wire.ask import Place

_LONG_ENOUGH_S = 0.5
"""For the second to come as far as it gets while the first stands still."""


@pytest.fixture
def servers(database_url: str) -> Iterator[tuple[Database, Database]]:
    both = Database.open(database_url), Database.open(database_url)
    yield both
    for each in both:
        each.close()


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> threading.Barrier:
    """The first two that have read a conversation wait for each other, if both get so far."""
    barrier, find = threading.Barrier(2), rows.find

    def slow(connection: Connection, *names: str, **how: Any) -> Conversation:
        found = find(connection, *names, **how)
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(_LONG_ENOUGH_S)
        return found

    monkeypatch.setattr(rows, "find", slow)
    return barrier


def said(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_messages_of_two_servers_are_on_one_branch(
    servers: tuple[Database, Database], meeting: threading.Barrier
) -> None:
    one, other = map(ConversationStore, servers)

    async def play() -> None:
        await one.create("t", conversation_id="c")
        meeting.reset()
        await asyncio.gather(one.append("t", "c", [said("a")]), other.append("t", "c", [said("b")]))
        told = [message.message["content"] for message in await one.branch("t", "c")]
        assert sorted(told) == ["a", "b"]

    asyncio.run(play())


def test_one_of_two_servers_takes_a_turn(
    servers: tuple[Database, Database], meeting: threading.Barrier
) -> None:
    one, other = map(ConversationStore, servers)

    async def play() -> None:
        await one.create("t", conversation_id="c")
        meeting.reset()
        place = Place(conversation_id="c")
        begun = await asyncio.gather(
            Turns(one).begin("t", place), Turns(other).begin("t", place), return_exceptions=True
        )
        assert sum(isinstance(each, ConversationBusy) for each in begun) == 1

    asyncio.run(play())


def test_of_two_parts_that_are_removed_at_once_neither_comes_back(
    servers: tuple[Database, Database], meeting: threading.Barrier
) -> None:
    one, other = map(ConversationStore, servers)

    def without(name: str) -> Callable[[StoredMessage], Message]:
        return lambda gone: {key: value for key, value in gone.message.items() if key != name}

    async def play() -> None:
        answer = {"role": "assistant", "reasoning": "a", "content": "b", "name": "c"}
        made = await one.create("t", [answer], conversation_id="c")
        assert made.head_id is not None
        meeting.reset()
        await asyncio.gather(
            one.remove("t", "c", made.head_id, without("content")),
            other.remove("t", "c", made.head_id, without("reasoning")),
        )
        (left,) = await one.branch("t", "c")
        assert left.message == {"role": "assistant", "name": "c"}

    asyncio.run(play())
