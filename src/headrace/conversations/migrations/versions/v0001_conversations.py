"""Conversations, their messages, stored responses, summaries; full text over the messages."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ID = sa.String(128)
_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# FTS5 keeps an index only, over the text in `messages`. A message that still grows is not in it.
_SQLITE = (
    """CREATE VIRTUAL TABLE messages_fts USING fts5(
        text, content='messages', content_rowid='number', tokenize='unicode61 remove_diacritics 2')
    """,
    """CREATE TRIGGER messages_told AFTER INSERT ON messages WHEN new.status <> 'in_progress'
    BEGIN
        INSERT INTO messages_fts(rowid, text) VALUES (new.number, new.text);
    END""",
    """CREATE TRIGGER messages_retold AFTER UPDATE OF text, status ON messages
    BEGIN
        INSERT INTO messages_fts(messages_fts, rowid, text)
        SELECT 'delete', old.number, old.text WHERE old.status <> 'in_progress';
        INSERT INTO messages_fts(rowid, text)
        SELECT new.number, new.text WHERE new.status <> 'in_progress';
    END""",
    """CREATE TRIGGER messages_gone AFTER DELETE ON messages WHEN old.status <> 'in_progress'
    BEGIN
        INSERT INTO messages_fts(messages_fts, rowid, text)
        VALUES ('delete', old.number, old.text);
    END""",
)
# A longer text than PostgreSQL indexes is found by its beginning.
_POSTGRESQL = (
    """CREATE INDEX messages_by_words ON messages
    USING gin (to_tsvector('simple', left(text, 200000)))
    """,
)


def upgrade() -> None:
    op.create_table(
        "conversations",
        sa.Column("number", _NUMBER, primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("id", _ID, nullable=False),
        sa.Column("is_hidden", sa.Integer, nullable=False),
        sa.Column("title", sa.Text),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("context", sa.Text),
        sa.Column("head_id", _ID),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("updated_at", sa.Float(53), nullable=False),
        sa.Column("turn_id", _ID),
        sa.Column("turn_until", sa.Float(53)),
        sa.UniqueConstraint("tenant", "id", name="conversations_of_tenant"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "conversations_by_time", "conversations", ["tenant", "is_hidden", "created_at", "number"]
    )
    op.create_index("conversations_by_use", "conversations", ["is_hidden", "updated_at"])
    op.create_table(
        "messages",
        sa.Column("number", _NUMBER, primary_key=True),
        _conversation(),
        sa.Column("id", _ID, nullable=False),
        sa.Column("parent_id", _ID),
        sa.Column("turn_id", _ID),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("token_ids", sa.LargeBinary),
        sa.Column("num_tokens", sa.Integer),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.UniqueConstraint("conversation", "id", name="messages_of_conversation"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "responses",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("id", _ID, nullable=False),
        _conversation(),
        sa.Column("message_id", _ID, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="responses_of_tenant"),
    )
    op.create_index("responses_of_conversation", "responses", ["conversation"])
    op.create_table(
        "summaries",
        _conversation(),
        sa.Column("up_to_message_id", _ID, nullable=False),
        sa.Column("settings_digest", sa.String(64), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("num_tokens", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint(
            "conversation", "up_to_message_id", "settings_digest", name="summaries_of_conversation"
        ),
    )
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    for statement in _POSTGRESQL if is_postgresql else _SQLITE:
        op.execute(statement)


def _conversation() -> sa.Column[int]:
    key = sa.ForeignKey("conversations.number", ondelete="CASCADE")
    return sa.Column("conversation", _NUMBER, key, nullable=False)
