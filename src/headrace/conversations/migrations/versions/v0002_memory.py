"""Documents, chunks of them and of messages, the words that each has, and their vectors."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_SQLITE = (
    # Each chunk's words, each once, as keys: see memory/words.py. Ranks are our own.
    """CREATE VIRTUAL TABLE chunk_words USING fts5(
        words, detail='none', columnsize=0, tokenize='ascii')
    """,
    """CREATE TRIGGER chunks_gone AFTER DELETE ON chunks
    BEGIN
        DELETE FROM chunk_words WHERE rowid = old.number;
    END""",
    # Rows are only ever added and deleted, so what is new has a greater number.
    """CREATE TABLE vectors (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        chunk INTEGER NOT NULL UNIQUE REFERENCES chunks(number) ON DELETE CASCADE,
        conversation INTEGER NOT NULL,
        embedder VARCHAR(200) NOT NULL,
        vector BLOB NOT NULL)
    """,
    "CREATE INDEX vectors_of_conversation ON vectors (conversation, embedder, number)",
)
# `vectors` is made when it is first used: it needs an extension that not every server has.
_POSTGRESQL = (
    """CREATE TABLE chunk_words (
        chunk BIGINT PRIMARY KEY REFERENCES chunks(number) ON DELETE CASCADE,
        words TSVECTOR NOT NULL)
    """,
    "CREATE INDEX chunks_by_words ON chunk_words USING gin (words)",
)


def upgrade() -> None:
    op.create_table(
        "documents",
        sa.Column("number", _NUMBER, primary_key=True),
        _owner("conversation", "conversations", nullable=False),
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("num_chars", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.UniqueConstraint("conversation", "id", name="documents_of_conversation"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "chunks",
        sa.Column("number", _NUMBER, primary_key=True),
        _owner("conversation", "conversations", nullable=False),
        _owner("document", "documents", nullable=True),
        _owner("message", "messages", nullable=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("embedder", sa.String(200)),
        sa.Column("problem", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("chunks_of_conversation", "chunks", ["conversation", "embedder"])
    for column in ("document", "message", "embedder"):
        op.create_index(f"chunks_by_{column}", "chunks", [column])
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    for statement in _POSTGRESQL if is_postgresql else _SQLITE:
        op.execute(statement)


def _owner(name: str, table: str, *, nullable: bool) -> sa.Column[int]:
    key = sa.ForeignKey(f"{table}.number", ondelete="CASCADE")
    return sa.Column(name, _NUMBER, key, nullable=nullable)
