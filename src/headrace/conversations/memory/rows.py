"""What the memory asks of its tables: plain functions of a connection, run by the database.

Each begins with the scope: a tenant and a conversation's id give the number that all rows carry, so
nothing is read or written without having been asked for by its owner.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    select,
    text,
    update,
)

from headrace.conversations.memory.postings import add_words
from headrace.conversations.memory.splitting import Piece
from headrace.conversations.memory.tables import chunks, documents
from headrace.conversations.memory.values import Chunk, Scope, Source
from headrace.conversations.memory.words import keys_of, words_of
from headrace.conversations.tables import conversations, messages
from headrace.errors import ConversationNotFound, DocumentExists, DocumentNotFound

_VARIABLES = 500
"""In one statement."""

# Questions wait for these: made once, as making a statement takes longer than to run it.
_NUMBER = text("SELECT number FROM conversations WHERE tenant = :tenant AND id = :id")
_COUNT = text(
    "SELECT count(*) FROM (SELECT 1 FROM chunks WHERE conversation = :conversation LIMIT :most) "
    "AS counted"
)
# The ways not to be settled by an embedder, apart, so that each is a range of an index.
_WAITING = text(
    " UNION ALL ".join(
        "SELECT count(*) FROM (SELECT 1 FROM chunks "
        f"WHERE conversation = :conversation AND embedder {condition} LIMIT :most) AS counted"
        for condition in ("IS NULL", "< :embedder", "> :embedder")
    )
)
_CHUNKS = (
    "SELECT chunks.number, chunks.position, chunks.text, "
    "documents.id, documents.title, documents.number, messages.id, messages.role, messages.number "
    "FROM chunks LEFT JOIN documents ON documents.number = chunks.document "
    "LEFT JOIN messages ON messages.number = chunks.message "
)
_CHUNKS_POSTGRESQL = text(
    _CHUNKS + "WHERE chunks.conversation = :conversation AND chunks.number = ANY(:numbers)"
)
_CHUNKS_SQLITE = text(
    # The plus keeps SQLite from walking over the whole conversation by its index.
    _CHUNKS + "WHERE +chunks.conversation = :conversation "
    "AND chunks.number IN (SELECT value FROM json_each(:numbers))"
)


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document of a conversation, and how far its embedding is."""

    id: str
    title: str
    num_chars: int
    created_at: float
    num_chunks: int
    num_embedded: int
    num_failed: int
    problem: str | None
    """Why the first of those that failed did."""

    @property
    def status(self) -> str:
        if self.num_embedded + self.num_failed < self.num_chunks:
            return "in_progress"
        return "failed" if self.num_failed else "completed"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A chunk that is to be embedded."""

    number: int
    conversation: int
    text: str


def number_of(connection: Connection, scope: Scope) -> int:
    """The conversation's number. Raises `ConversationNotFound`."""
    wanted = {"tenant": scope.tenant, "id": scope.conversation}
    number = connection.execute(_NUMBER, wanted).scalar()
    if number is None:
        raise ConversationNotFound(
            f"there is no conversation `{scope.conversation[:100]}`", param="conversation"
        )
    return int(number)


def existing(connection: Connection, numbers: Collection[int]) -> set[int]:
    """Those of these conversations that there are."""
    wanted = conversations.c.number.in_(numbers)
    return set(connection.execute(select(conversations.c.number).where(wanted)).scalars())


def add_document(
    connection: Connection,
    scope: Scope,
    name: str,
    title: str,
    said: str,
    pieces: Sequence[Piece],
) -> None:
    """Raises `ConversationNotFound`, and `DocumentExists` where the conversation has one of that
    id."""
    conversation = number_of(connection, scope)
    if _document_number(connection, conversation, name) is not None:
        raise DocumentExists(f"there is a document `{name}` already; delete it first", param="id")
    row = {
        "conversation": conversation,
        "id": name,
        "title": title,
        "num_chars": len(said),
        "created_at": time.time(),
    }
    number = connection.execute(insert(documents).returning(documents.c.number), row).scalar_one()
    _add_chunks(connection, conversation, {"document": number, "message": None}, pieces)


def copy_documents(connection: Connection, source: int, target: int) -> None:
    """All documents of one conversation, by number, into another that has none. They are found by
    their words there; their vectors are made again, in the background."""
    told = select(documents).where(documents.c.conversation == source).order_by(documents.c.number)
    for document in connection.execute(told).all():
        row = {
            "conversation": target,
            "id": document.id,
            "title": document.title,
            "num_chars": document.num_chars,
            "created_at": document.created_at,
        }
        added = insert(documents).returning(documents.c.number)
        number = connection.execute(added, row).scalar_one()
        parts = (
            select(chunks.c.position, chunks.c.text)
            .where(chunks.c.document == document.number)
            .order_by(chunks.c.position)
        )
        pieces = [(position, said) for position, said in connection.execute(parts)]
        _add_chunks(connection, target, {"document": number, "message": None}, pieces)


def count_chunks(connection: Connection, scope: Scope) -> int:
    """Of documents and messages together."""
    conversation = number_of(connection, scope)
    counted = select(func.count()).where(chunks.c.conversation == conversation)
    return int(connection.execute(counted).scalar_one())


def list_documents(
    connection: Connection, scope: Scope, embedder: str, name: str | None = None
) -> list[StoredDocument]:
    """In the order in which they came. Raises `ConversationNotFound`, and `DocumentNotFound` where
    one is asked for that is not there."""
    conversation = number_of(connection, scope)
    is_failed = chunks.c.problem.is_not(None)
    is_embedded = and_(chunks.c.embedder == embedder, chunks.c.problem.is_(None))
    columns = (
        documents.c.id,
        documents.c.title,
        documents.c.num_chars,
        documents.c.created_at,
        func.count(chunks.c.number),
        func.coalesce(func.sum(case((is_embedded, 1), else_=0)), 0),
        func.coalesce(func.sum(case((is_failed, 1), else_=0)), 0),
        func.min(chunks.c.problem),
    )
    asked = (
        select(*columns)
        .select_from(documents.outerjoin(chunks, chunks.c.document == documents.c.number))
        .where(documents.c.conversation == conversation)
        .group_by(documents.c.number)
        .order_by(documents.c.number)
    )
    if name is not None:
        asked = asked.where(documents.c.id == name)
    found = [StoredDocument(*row) for row in connection.execute(asked)]
    if name is not None and not found:
        raise _no_document(name)
    return found


def delete_document(connection: Connection, scope: Scope, name: str) -> tuple[int, list[int]]:
    """The conversation's number, and those of the chunks that went with it. Raises
    `ConversationNotFound` and `DocumentNotFound`."""
    conversation = number_of(connection, scope)
    number = _document_number(connection, conversation, name)
    if number is None:
        raise _no_document(name)
    gone = connection.execute(select(chunks.c.number).where(chunks.c.document == number))
    numbers = list(gone.scalars())
    connection.execute(delete(documents).where(documents.c.number == number))
    return conversation, numbers


def untold_messages(connection: Connection, scope: Scope, limit: int) -> list[tuple[int, int, str]]:
    """Complete messages with text that are not in the memory yet, the oldest first: the numbers of
    the conversation and of the message, and the text. Raises `ConversationNotFound`."""
    conversation = number_of(connection, scope)
    is_told = select(chunks.c.number).where(chunks.c.message == messages.c.number).exists()
    asked = (
        select(messages.c.number, messages.c.text)
        .where(
            messages.c.conversation == conversation,
            messages.c.role.in_(("user", "assistant")),
            messages.c.status != "in_progress",
            messages.c.text != "",
            ~is_told,
        )
        .order_by(messages.c.number)
        .limit(limit)
    )
    return [(conversation, number, said) for number, said in connection.execute(asked)]


def add_message(
    connection: Connection, conversation: int, message: int, pieces: Sequence[Piece]
) -> None:
    """Into the memory. Nothing happens where the message has gone, or is in it already."""
    is_there = select(messages.c.number).where(messages.c.number == message)
    is_told = select(chunks.c.number).where(chunks.c.message == message).limit(1)
    if connection.execute(is_there).first() and not connection.execute(is_told).first():
        _add_chunks(connection, conversation, {"document": None, "message": message}, pieces)


def waiting(connection: Connection, embedder: str, limit: int) -> list[Waiting]:
    """Chunks that `embedder` has not dealt with, the oldest first of each kind."""
    found: list[Waiting] = []
    for condition in _not_by(embedder):
        asked = select(chunks.c.number, chunks.c.conversation, chunks.c.text).where(condition)
        rows = connection.execute(asked.order_by(chunks.c.number).limit(limit - len(found)))
        found += [Waiting(*row) for row in rows]
        if len(found) == limit:
            break
    return found


def settle(
    connection: Connection, embedder: str, numbers: Iterable[int], problem: str | None = None
) -> list[int]:
    """Note that `embedder` has dealt with these; gives those that are still there."""
    wanted = list(numbers)
    there = [
        row
        for start in range(0, len(wanted), _VARIABLES)
        for row in connection.execute(
            select(chunks.c.number).where(chunks.c.number.in_(wanted[start : start + _VARIABLES]))
        ).scalars()
    ]
    if there:
        change = update(chunks).where(chunks.c.number == bindparam("chunk"))
        change = change.values(embedder=embedder, problem=problem)
        connection.execute(change, [{"chunk": number} for number in there])
    return there


def unsettle(connection: Connection, numbers: Collection[int]) -> None:
    """These wait again."""
    change = update(chunks).where(chunks.c.number == bindparam("chunk"))
    connection.execute(change.values(embedder=None), [{"chunk": one} for one in numbers])


def replace_chunk(connection: Connection, number: int, pieces: Sequence[Piece]) -> None:
    """A chunk that was too long for its embedder becomes several, in its place."""
    row = connection.execute(select(chunks).where(chunks.c.number == number)).first()
    if row is None:
        return
    connection.execute(delete(chunks).where(chunks.c.number == number))
    owner = {"document": row.document, "message": row.message}
    moved = [(row.position + position, said) for position, said in pieces]
    _add_chunks(connection, row.conversation, owner, moved)


def count_waiting(connection: Connection, conversation: int, embedder: str, most: int) -> int:
    """Chunks of a conversation that `embedder` has not dealt with, counted up to `most` or so."""
    wanted = {"conversation": conversation, "embedder": embedder, "most": most}
    return sum(connection.execute(_WAITING, wanted).scalars())


def count_up_to(connection: Connection, conversation: int, most: int) -> int:
    """Chunks of a conversation, counted up to `most`."""
    wanted = {"conversation": conversation, "most": most}
    return int(connection.execute(_COUNT, wanted).scalar_one())


def chunks_of(
    connection: Connection, conversation: int, numbers: Sequence[int]
) -> dict[int, Chunk]:
    """By number; those that are not this conversation's, or have gone, are not there."""
    if not numbers:
        return {}
    is_postgresql = connection.dialect.name == "postgresql"
    asked = _CHUNKS_POSTGRESQL if is_postgresql else _CHUNKS_SQLITE
    listed = list(numbers) if is_postgresql else orjson.dumps(numbers).decode()
    wanted = {"conversation": conversation, "numbers": listed}
    found = {}
    for number, position, said, *owner in connection.execute(asked, wanted):
        found[number] = Chunk(_source(*owner), position, said)
    return found


def _source(
    document: str | None,
    title: str | None,
    document_order: int | None,
    message: str | None,
    role: str | None,
    message_order: int | None,
) -> Source:
    if document is not None:
        return Source("document", document, title or "", document_order or 0)
    return Source("message", message or "", role or "", message_order or 0)


def _add_chunks(
    connection: Connection,
    conversation: int,
    owner: dict[str, int | None],
    pieces: Sequence[Piece],
) -> None:
    rows = [
        # PostgreSQL takes no NUL.
        {
            "conversation": conversation,
            **owner,
            "position": position,
            "text": said.replace("\0", " "),
        }
        for position, said in pieces
    ]
    if not rows:
        return
    added = insert(chunks).returning(chunks.c.number, sort_by_parameter_order=True)
    numbers = connection.execute(added, rows).scalars()
    keys = (
        (number, keys_of(words_of(said), conversation))
        for number, (_, said) in zip(numbers, pieces, strict=True)
    )
    add_words(connection, keys)


def _not_by(embedder: str) -> tuple[ColumnElement[bool], ...]:
    """The ways not to be settled by it, apart, so that each is a range of an index."""
    settled_by = chunks.c.embedder
    return settled_by.is_(None), settled_by < embedder, settled_by > embedder


def _document_number(connection: Connection, conversation: int, name: str) -> int | None:
    wanted = and_(documents.c.conversation == conversation, documents.c.id == name)
    return connection.execute(select(documents.c.number).where(wanted)).scalar()


def _no_document(name: str) -> DocumentNotFound:
    return DocumentNotFound(f"no document `{name}` in this conversation", param="document_id")
