"""The memory's tables, as `migrations/` makes them.

A chunk is of a document or of a message and goes when that goes; its vector and its words go with
it. `chunks.embedder` names who has dealt with it: what has another name there waits to be embedded,
be it new, left over from before a restart, or from before a change of embedder.
"""

from __future__ import annotations

from sqlalchemy import (
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from headrace.conversations.tables import MAX_ID, NUMBER, metadata, of_conversation

MAX_EMBEDDER = 200
"""Characters of an embedder's identity."""

documents = Table(
    "documents",
    metadata,
    Column("number", NUMBER, primary_key=True),
    of_conversation(),
    Column("id", String(MAX_ID), nullable=False),
    Column("title", Text, nullable=False),
    Column("num_chars", Integer, nullable=False),
    Column("created_at", Float(53), nullable=False),
    UniqueConstraint("conversation", "id", name="documents_of_conversation"),
    sqlite_autoincrement=True,
)

chunks = Table(
    "chunks",
    metadata,
    Column("number", NUMBER, primary_key=True),
    of_conversation(),
    Column("document", NUMBER, ForeignKey("documents.number", ondelete="CASCADE")),
    Column("message", NUMBER, ForeignKey("messages.number", ondelete="CASCADE")),
    Column("position", Integer, nullable=False),
    # Where it begins in the text, in characters.
    Column("text", Text, nullable=False),
    Column("embedder", String(MAX_EMBEDDER)),
    Column("problem", Text),
    # Why it could not be embedded.
    Index("chunks_of_conversation", "conversation", "embedder"),
    Index("chunks_by_document", "document"),
    Index("chunks_by_message", "message"),
    Index("chunks_by_embedder", "embedder"),
    sqlite_autoincrement=True,
)
