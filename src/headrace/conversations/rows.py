"""Rows and values: what each statement on the tables means. Functions of a connection.

Thread: the database's. Next: `database.py`. Whose a row is, is asked in one place: `find`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    Select,
    bindparam,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    update,
)

from headrace.conversations.memory.tables import chunks
from headrace.conversations.tables import conversations, messages, summaries
from headrace.conversations.values import Conversation, StoredMessage
from headrace.errors import ConversationNotFound

_MAX_SHOWN = 100
CONVERSATION = (
    conversations.c.number,
    conversations.c.tenant,
    conversations.c.id,
    conversations.c.title,
    conversations.c["metadata"],
    conversations.c.context,
    conversations.c.head_id,
    conversations.c.created_at,
    conversations.c.updated_at,
)
"""The columns, in the order of `Conversation`."""
MESSAGE = (
    messages.c.id,
    messages.c.parent_id,
    messages.c.role,
    messages.c.message,
    messages.c.token_ids,
    messages.c.status,
    messages.c.created_at,
    messages.c.num_tokens,
    messages.c.turn_id,
    messages.c["metadata"],
)
"""The columns, in the order of `StoredMessage`."""


def no_conversation(conversation_id: str) -> ConversationNotFound:
    shown = conversation_id[:_MAX_SHOWN]
    return ConversationNotFound(f"there is no conversation `{shown}`", param="conversation")


def no_message(message_id: str) -> ConversationNotFound:
    shown = message_id[:_MAX_SHOWN]
    return ConversationNotFound(f"there is no message `{shown}` in this conversation")


def _message(row: Sequence[Any]) -> StoredMessage:
    return StoredMessage(*row)


def find(
    connection: Connection, tenant: str, conversation_id: str, *, locks: bool = False
) -> Conversation:
    """Raises `ConversationNotFound`, also for another tenant's. `locks`: what is read of it stays
    true until the transaction ends; others who lock it wait."""
    asked = _FIND_AND_LOCK if locks else _FIND
    row = connection.execute(asked, {"of": tenant, "named": conversation_id}).first()
    if row is None:
        raise no_conversation(conversation_id)
    return Conversation(*row)


def take_idle(
    connection: Connection, tenant: str, conversation_id: str, lease: Mapping[str, Any]
) -> Conversation | None:
    """A conversation in which nobody has a turn, now that its columns `turn_id` and `turn_until`
    are those of `lease`; None where there is no such."""
    wanted = {
        "of": tenant,
        "named": conversation_id,
        "whose": lease["turn_id"],
        "until": lease["turn_until"],
    }
    row = connection.execute(_TAKE_IDLE, wanted).first()
    return Conversation(*row) if row is not None else None


_TAKE_IDLE = (
    update(conversations)
    .where(
        conversations.c.tenant == bindparam("of"),
        conversations.c.id == bindparam("named"),
        conversations.c.is_hidden == 0,
        conversations.c.turn_id.is_(None),
    )
    .values(turn_id=bindparam("whose"), turn_until=bindparam("until"))
    .returning(*CONVERSATION)
)


def lease(connection: Connection, number: int) -> tuple[str | None, float]:
    """Whose turn it is, and until when."""
    row = connection.execute(_LEASE, {"of": number}).one()
    return row.turn_id, row.turn_until or 0.0


_FIND = select(*CONVERSATION).where(
    conversations.c.tenant == bindparam("of"),
    conversations.c.id == bindparam("named"),
    conversations.c.is_hidden == 0,
)
# SQLite has one writer at a time, and no such clause. Messages may still be added meanwhile, so the
# memory and answers that grow wait for nobody.
_FIND_AND_LOCK = _FIND.with_for_update(key_share=True)
_LEASE = select(conversations.c.turn_id, conversations.c.turn_until).where(
    conversations.c.number == bindparam("of")
)


def add_conversation(connection: Connection, values: Mapping[str, Any]) -> int:
    """Its number."""
    row = {"is_hidden": 0, "metadata": {}, **values}
    key = connection.execute(insert(conversations), row).inserted_primary_key
    assert key is not None
    return int(key[0])


def add_if_new(connection: Connection, values: Mapping[str, Any]) -> bool:
    """Whether it was added: not where the tenant has one of that id. Another server that adds the
    same one is waited for."""
    return connection.execute(_ADD_IF_NEW, values).rowcount == 1


_ADD_IF_NEW = text(
    "INSERT INTO conversations"
    "(tenant, id, is_hidden, metadata, created_at, updated_at, turn_id, turn_until) "
    "VALUES (:tenant, :id, 0, '{}', :created_at, :updated_at, :turn_id, :turn_until) "
    "ON CONFLICT DO NOTHING"
)


def change(connection: Connection, number: int, **values: Any) -> None:
    """Set columns of a conversation."""
    connection.execute(update(conversations).where(conversations.c.number == number), values)


def add_messages(connection: Connection, number: int, added: Sequence[StoredMessage]) -> None:
    if added:
        connection.execute(_INSERT, [_row(number, message) for message in added])


_INSERT = insert(messages)


def _row(number: int, message: StoredMessage) -> dict[str, Any]:
    return {
        "conversation": number,
        "id": message.id,
        "parent_id": message.parent_id,
        "turn_id": message.turn_id,
        "role": message.role,
        "message": message.message,
        "text": searchable(message.message),
        "token_ids": message.token_ids,
        "num_tokens": message.num_tokens,
        "status": message.status,
        "metadata": message.metadata,
        "created_at": message.created_at,
    }


def searchable(message: Mapping[str, Any]) -> str:
    """The text of a message. PostgreSQL's has no zero characters."""
    content = message.get("content")
    return content.replace("\0", " ") if isinstance(content, str) else ""


def all_messages(connection: Connection, number: int) -> list[StoredMessage]:
    """The whole tree, eldest first."""
    asked = select(*MESSAGE).where(messages.c.conversation == number).order_by(messages.c.number)
    return [_message(row) for row in connection.execute(asked)]


def count_messages(connection: Connection, number: int) -> int:
    asked = select(func.count()).where(messages.c.conversation == number)
    return connection.execute(asked).scalar_one()


def message(connection: Connection, number: int, message_id: str) -> StoredMessage:
    """Raises `ConversationNotFound`."""
    row = connection.execute(_ONE, {"of": number, "named": message_id}).first()
    if row is None:
        raise no_message(message_id)
    return _message(row)


_ONE = select(*MESSAGE).where(
    messages.c.conversation == bindparam("of"), messages.c.id == bindparam("named")
)


def branch(connection: Connection, number: int, head_id: str | None) -> list[StoredMessage]:
    """From the beginning to `head_id`."""
    if head_id is None:
        return []
    rows = connection.execute(_BRANCH, {"of": number, "head": head_id})
    return [_message(row) for row in rows]


def _branch() -> Select[Any]:
    """From the head up, and turned round."""
    up = (
        select(messages.c.number, messages.c.parent_id, literal(0).label("height"))
        .where(messages.c.conversation == bindparam("of"), messages.c.id == bindparam("head"))
        .cte("up", recursive=True)
    )
    up = up.union_all(
        select(messages.c.number, messages.c.parent_id, up.c.height + 1).where(
            messages.c.conversation == bindparam("of"), messages.c.id == up.c.parent_id
        )
    )
    joined = up.join(messages, messages.c.number == up.c.number)
    return select(*MESSAGE).select_from(joined).order_by(up.c.height.desc())


_BRANCH = _branch()


def remove(connection: Connection, number: int, gone: StoredMessage) -> None:
    """Take one message out of the tree: what followed it follows what it followed."""
    own = messages.c.conversation == number
    connection.execute(
        update(messages).where(own, messages.c.parent_id == gone.id),
        {"parent_id": gone.parent_id},
    )
    connection.execute(DELETE_MESSAGE, {"of": number, "named": gone.id})
    connection.execute(
        update(conversations).where(
            conversations.c.number == number, conversations.c.head_id == gone.id
        ),
        {"head_id": gone.parent_id},
    )
    _forget_summaries(connection, number)


def _forget_summaries(connection: Connection, number: int) -> None:
    """They say word for word what may be there no more."""
    connection.execute(delete(summaries).where(summaries.c.conversation == number))


DELETE_MESSAGE = delete(messages).where(
    messages.c.conversation == bindparam("of"), messages.c.id == bindparam("named")
)


def replace_message(
    connection: Connection, number: int, message_id: str, said: Mapping[str, Any]
) -> None:
    """Of what it said, this much stays; its tokens are not its any more, and what the memory has
    of it is forgotten: it is read anew with what is said next."""
    own = messages.c.conversation == number, messages.c.id == message_id
    connection.execute(
        update(messages).where(*own),
        {"message": said, "text": searchable(said), "token_ids": None, "num_tokens": None},
    )
    replaced = select(messages.c.number).where(*own)
    connection.execute(delete(chunks).where(chunks.c.message.in_(replaced)))
    _forget_summaries(connection, number)


def delete_conversation(connection: Connection, number: int) -> None:
    """All that is kept of it; what hangs on it goes by its foreign keys."""
    connection.execute(delete(messages).where(messages.c.conversation == number))
    connection.execute(delete(conversations).where(conversations.c.number == number))


_SQLITE_SEARCH = text(
    "SELECT messages.number FROM messages_fts"
    " JOIN messages ON messages.number = messages_fts.rowid"
    " JOIN conversations ON conversations.number = messages.conversation"
    " WHERE messages_fts MATCH :words AND conversations.tenant = :tenant"
    " AND conversations.is_hidden = 0 ORDER BY messages_fts.rank LIMIT :limit"
)
_POSTGRESQL_SEARCH = text(
    "SELECT messages.number FROM messages"
    " JOIN conversations ON conversations.number = messages.conversation,"
    " plainto_tsquery('simple', :words) AS asked"
    " WHERE to_tsvector('simple', left(text, 200000)) @@ asked AND conversations.tenant = :tenant"
    " AND conversations.is_hidden = 0 AND messages.status <> 'in_progress'"
    " ORDER BY ts_rank(to_tsvector('simple', left(text, 200000)), asked) DESC LIMIT :limit"
)


def search(connection: Connection, tenant: str, words: str, limit: int) -> list[Sequence[Any]]:
    """Messages in which all the words stand, best first: the columns of `CONVERSATION` and
    `MESSAGE`."""
    is_postgresql = connection.dialect.name == "postgresql"
    asked = _POSTGRESQL_SEARCH if is_postgresql else _SQLITE_SEARCH
    words = words.replace("\0", " ")
    if not is_postgresql:
        # Each word as a string: nothing in it is an operator.
        words = " ".join('"' + word.replace('"', '""') + '"' for word in words.split())
    if not words.strip():
        return []
    bound = {"words": words, "tenant": tenant, "limit": limit}
    numbers = list(connection.execute(asked, bound).scalars())
    found = connection.execute(
        select(messages.c.number, *CONVERSATION, *MESSAGE)
        .join(conversations, conversations.c.number == messages.c.conversation)
        .where(messages.c.number.in_(numbers))
    )
    place = {number: index for index, number in enumerate(numbers)}
    return sorted(found.all(), key=lambda row: place[row[0]])
