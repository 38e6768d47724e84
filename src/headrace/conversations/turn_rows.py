"""Turns in the tables: their leases, and their answers as they grow.

In: a connection, turns. Out: rows. Thread: the database's. Next: `rows.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, bindparam, exists, or_, select, update

from headrace.conversations import rows
from headrace.conversations.kept_responses import place_of
from headrace.conversations.memory.tables import documents
from headrace.conversations.open_turn import OpenTurn
from headrace.conversations.store import busy
from headrace.conversations.tables import conversations, messages
from headrace.conversations.values import Answer, Turn
from headrace.errors import ConversationNotFound

LEASE_S = 15.0
"""How long a turn without a sign of life keeps others out."""

SAVE = (
    update(messages)
    .where(messages.c.conversation == bindparam("of"), messages.c.id == bindparam("named"))
    .values(
        message=bindparam("said"),
        text=bindparam("words"),
        token_ids=bindparam("ids"),
        num_tokens=bindparam("num"),
        status=bindparam("how"),
        metadata=bindparam("beside"),
    )
)
GROW = SAVE.where(messages.c.status == "in_progress")
"""Not over an answer that is whole: PostgreSQL's writers may overtake each other."""
BREAK_OFF = (
    update(messages)
    .where(messages.c.conversation == bindparam("of"), messages.c.id == bindparam("named"))
    .values(status="incomplete")
)
_TAKE = (
    update(conversations)
    .where(
        conversations.c.number == bindparam("of"),
        or_(
            conversations.c.turn_id.is_(None),
            conversations.c.turn_id == bindparam("whose"),
            conversations.c.turn_until < bindparam("now"),
        ),
    )
    .values(turn_id=bindparam("whose"), turn_until=bindparam("until"))
)
"""Not from one that was let in meanwhile: then what goes on is a branch beside it."""
_MOVE = (
    update(conversations)
    .where(conversations.c.number == bindparam("of"), conversations.c.turn_id == bindparam("whose"))
    .values(head_id=bindparam("head"), updated_at=bindparam("now"))
)
_TOUCH = (
    update(conversations)
    .where(conversations.c.number == bindparam("of"))
    .values(updated_at=bindparam("now"))
)
FREE = (
    update(conversations)
    .where(conversations.c.number == bindparam("of"), conversations.c.turn_id == bindparam("whose"))
    .values(turn_id=None, turn_until=None, updated_at=bindparam("now"))
)
RENEW = (
    update(conversations)
    .where(conversations.c.number == bindparam("of"), conversations.c.turn_id == bindparam("whose"))
    .values(turn_until=bindparam("until"))
)


def with_history(connection: Connection, turn: Turn) -> Turn:
    """Who has the lease reads what the turn stands on beside the writers: nobody changes it now."""
    if turn.number is None or turn.parent_id is None:
        return turn
    return replace(turn, history=rows.branch(connection, turn.number, turn.parent_id))


def free_all(connection: Connection) -> None:
    """No turn is going on anywhere: those that were had their servers die. Turns that stood aside
    had no lease, and are all there is in hidden conversations."""
    died = conversations.c.turn_id.is_not(None)
    had_turns = select(conversations.c.number).where(or_(died, conversations.c.is_hidden == 1))
    connection.execute(
        update(messages)
        .where(messages.c.status == "in_progress", messages.c.conversation.in_(had_turns))
        .values(status="incomplete")
    )
    connection.execute(update(conversations).where(died).values(turn_id=None, turn_until=None))


def saved(opened: OpenTurn, answer: Answer) -> dict[str, Any]:
    return {
        "of": opened.number,
        "named": opened.answer_id,
        "said": answer.message,
        "words": rows.searchable(answer.message),
        "ids": answer.token_ids,
        "num": len(answer.token_ids),
        "how": answer.status,
        "beside": answer.metadata,
    }


def check_lease(connection: Connection, number: int, now: float) -> None:
    """Raises `ConversationBusy`. Of a turn whose server died, what it said is marked."""
    turn_id, until = rows.lease(connection, number)
    if turn_id is None:
        return
    if until > now:
        raise busy()
    connection.execute(
        update(messages).where(
            messages.c.conversation == number, messages.c.status == "in_progress"
        ),
        {"status": "incomplete"},
    )


def withdraw(connection: Connection, turn: Turn) -> None:
    """By its name, as the number is not known where only reading failed."""
    own = (
        conversations.c.tenant == turn.tenant,
        conversations.c.id == turn.conversation_id,
        conversations.c.turn_id == turn.id,
    )
    if turn.is_new and turn.number is not None:
        untouched = (
            conversations.c.updated_at == conversations.c.created_at,
            ~exists().where(messages.c.conversation == conversations.c.number),
            ~exists().where(documents.c.conversation == conversations.c.number),
        )
        if connection.execute(select(conversations.c.number).where(*own, *untouched)).first():
            rows.delete_conversation(connection, turn.number)
            return
    connection.execute(update(conversations).where(*own), {"turn_id": None, "turn_until": None})


def moved(connection: Connection, turn: Turn, number: int, head_id: str, now: float) -> bool:
    """Whether the conversation is there still. Its head moves on, unless the turn stands aside, or
    has lost its lease: then it is a branch."""
    change: dict[str, Any] = {"of": number, "now": now}
    if turn.conversation_id is not None:
        move = change | {"whose": turn.id, "head": head_id}
        if connection.execute(_MOVE, move).rowcount:
            return True
    return bool(connection.execute(_TOUCH, change).rowcount)


def resume(connection: Connection, opened: OpenTurn, now: float) -> int | None:
    """Take the lease again. The conversation's number; None where it is gone."""
    turn, number = opened.turn, opened.turn.number
    if number is not None and turn.conversation_id is not None:
        lease = {"of": number, "whose": turn.id, "now": now, "until": now + LEASE_S}
        connection.execute(_TAKE, lease)
    if number is not None or opened.response_id is None:
        return number
    try:
        return place_of(connection, turn.tenant, opened.response_id)[0]
    except ConversationNotFound:
        return None


def reopened(connection: Connection, number: int, answer_id: str) -> bool:
    """Whether the answer is there already. It grows on, whoever took its turn for dead."""
    own = messages.c.conversation == number, messages.c.id == answer_id
    return bool(
        connection.execute(update(messages).where(*own), {"status": "in_progress"}).rowcount
    )


def is_cut(connection: Connection, number: int, answer_id: str) -> bool:
    """Whether the answer is there, and was not kept to its end."""
    status = connection.execute(
        select(messages.c.status).where(
            messages.c.conversation == number, messages.c.id == answer_id
        )
    ).scalar()
    return status is not None and status not in ("completed", "failed")
