"""The tables, as `migrations/` makes them.

A conversation belongs to a tenant, under an id that is the tenant's own choice. Its messages are a
tree: each names its parent, and the conversation's head is the end of the branch that is told. A
fork has rows of its own, so that what is deleted is deleted, whoever forked it.
"""

from __future__ import annotations

from array import array
from typing import Any

import orjson
from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeDecorator

MAX_ID = 128
"""Characters of a conversation's id."""

metadata = MetaData()

NUMBER = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite counts up in columns that are just INTEGER."""


def of_conversation() -> Column[int]:
    """Whose row it is: it goes when the conversation goes."""
    goes = ForeignKey("conversations.number", ondelete="CASCADE")
    return Column("conversation", NUMBER, goes, nullable=False)


class JSONText(TypeDecorator[Any]):
    """JSON as text, the same bytes in every database."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        return None if value is None else orjson.dumps(value).decode()

    def process_result_value(self, value: str | None, dialect: Any) -> Any:
        return None if value is None else orjson.loads(value)


class TokenIds(TypeDecorator[tuple[int, ...]]):
    """Token ids as 32-bit words, the lowest byte first."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> bytes | None:
        return None if value is None else array("I", value).tobytes()

    def process_result_value(self, value: bytes | None, dialect: Any) -> tuple[int, ...] | None:
        return None if value is None else tuple(memoryview(value).cast("I"))


conversations = Table(
    "conversations",
    metadata,
    Column("number", NUMBER, primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("id", String(MAX_ID), nullable=False),
    Column("is_hidden", Integer, nullable=False, default=0),
    # Holds responses that were stored without a conversation; nobody lists it.
    Column("title", Text),
    Column("metadata", JSONText, nullable=False),
    Column("context", JSONText),
    # How it becomes a prompt, where a request does not say.
    Column("head_id", String(MAX_ID)),
    Column("created_at", Float(53), nullable=False),
    Column("updated_at", Float(53), nullable=False),
    Column("turn_id", String(MAX_ID)),
    Column("turn_until", Float(53)),
    # Whose turn it is, and until when that holds without a sign of life.
    UniqueConstraint("tenant", "id", name="conversations_of_tenant"),
    Index("conversations_by_time", "tenant", "is_hidden", "created_at", "number"),
    Index("conversations_by_use", "is_hidden", "updated_at"),
    sqlite_autoincrement=True,
)

messages = Table(
    "messages",
    metadata,
    Column("number", NUMBER, primary_key=True),
    of_conversation(),
    Column("id", String(MAX_ID), nullable=False),
    Column("parent_id", String(MAX_ID)),
    Column("turn_id", String(MAX_ID)),
    Column("role", String(32), nullable=False),
    Column("message", JSONText, nullable=False),
    # As the wire has it.
    Column("text", Text, nullable=False, default=""),
    # What can be searched.
    Column("token_ids", TokenIds),
    Column("num_tokens", Integer),
    Column("status", String(16), nullable=False),
    Column("metadata", JSONText, nullable=False),
    Column("created_at", Float(53), nullable=False),
    UniqueConstraint("conversation", "id", name="messages_of_conversation"),
    sqlite_autoincrement=True,
)

responses = Table(
    "responses",
    metadata,
    Column("tenant", String(64), nullable=False),
    Column("id", String(MAX_ID), nullable=False),
    of_conversation(),
    Column("message_id", String(MAX_ID), nullable=False),
    # The answer.
    Column("shown", JSONText),
    # The response object without its output.
    PrimaryKeyConstraint("tenant", "id", name="responses_of_tenant"),
    Index("responses_of_conversation", "conversation"),
)

summaries = Table(
    "summaries",
    metadata,
    of_conversation(),
    Column("up_to_message_id", String(MAX_ID), nullable=False),
    Column("settings_digest", String(64), nullable=False),
    Column("text", Text, nullable=False),
    Column("num_tokens", Integer, nullable=False),
    Column("created_at", Float(53), nullable=False),
    PrimaryKeyConstraint(
        "conversation", "up_to_message_id", "settings_digest", name="summaries_of_conversation"
    ),
)
