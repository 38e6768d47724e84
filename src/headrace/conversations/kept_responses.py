"""Stored responses, in the database: an answer under a name of its own, and what it answers.

In: a response's id. Out: what is kept of it. Thread: an event loop; the functions of a connection
are the database's. Next: `database.py`.

An answer of a conversation goes with the conversation, and a name that is deleted leaves the
conversation as it is. What no conversation names goes with its last response.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, select, update

from headrace.conversations import rows
from headrace.conversations.database import Database
from headrace.conversations.tables import conversations, messages, responses
from headrace.conversations.values import Data, StoredMessage
from headrace.errors import ConversationNotFound

_MAX_SHOWN = 100


@dataclass(frozen=True, slots=True)
class KeptResponse:
    """One that is stored."""

    answer: StoredMessage
    shown: Data
    """The response object without its output, as far as it is known."""


async def find_response(database: Database, tenant: str, named: str) -> KeptResponse:
    """Raises `ConversationNotFound`, also for another tenant's, and `DatabaseFailed`."""

    def work(connection: Connection) -> KeptResponse:
        row = _row(connection, tenant, named, "response_id")
        return KeptResponse(
            rows.message(connection, row.conversation, row.message_id), row.shown or {}
        )

    return await database.read(work)


async def told_before(database: Database, tenant: str, named: str) -> list[StoredMessage]:
    """What a response answers, from its conversation's beginning. Raises as `find_response`."""

    def work(connection: Connection) -> list[StoredMessage]:
        row = _row(connection, tenant, named, "response_id")
        answer = rows.message(connection, row.conversation, row.message_id)
        return rows.branch(connection, row.conversation, answer.parent_id)

    return await database.read(work)


async def delete_response(database: Database, tenant: str, named: str) -> None:
    """With all that only it stood on, unless a conversation holds that. Raises as
    `find_response`."""

    def work(connection: Connection) -> None:
        number = _row(connection, tenant, named, "response_id").conversation
        connection.execute(
            delete(responses).where(responses.c.tenant == tenant, responses.c.id == named)
        )
        hidden = select(conversations.c.is_hidden).where(conversations.c.number == number)
        if connection.execute(hidden).scalar():
            _tidy(connection, number)

    await database.write(work)


def place_of(connection: Connection, tenant: str, named: str) -> tuple[int, str]:
    """The conversation's number and the answer's id. Raises `ConversationNotFound`."""
    row = _row(connection, tenant, named, "previous_response_id")
    return row.conversation, row.message_id


def show(connection: Connection, tenant: str, named: str, shown: Mapping[str, Any]) -> None:
    """Keep what its object says now."""
    own = responses.c.tenant == tenant, responses.c.id == named
    connection.execute(update(responses).where(*own), {"shown": shown})


def _row(connection: Connection, tenant: str, named: str, param: str) -> Any:
    asked = select(responses.c.conversation, responses.c.message_id, responses.c.shown).where(
        responses.c.tenant == tenant, responses.c.id == named
    )
    row = connection.execute(asked).first()
    if row is None:
        raise ConversationNotFound(
            f"there is no stored response `{named[:_MAX_SHOWN]}`", param=param
        )
    return row


def _tidy(connection: Connection, number: int) -> None:
    """Let go of what leads to no response any more."""
    wanted = select(responses.c.message_id).where(responses.c.conversation == number)
    tree = select(messages.c.id, messages.c.parent_id).where(messages.c.conversation == number)
    parents = {row.id: row.parent_id for row in connection.execute(tree)}
    needed: set[str] = set()
    for head in connection.execute(wanted).scalars():
        at: str | None = head
        while at is not None and at in parents and at not in needed:
            needed.add(at)
            at = parents[at]
    if not needed:
        rows.delete_conversation(connection, number)
        return
    gone = [{"of": number, "named": each} for each in parents.keys() - needed]
    if gone:
        connection.execute(rows.DELETE_MESSAGE, gone)
