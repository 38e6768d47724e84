"""Summaries of kept conversations, in the database: made once, there after a restart.

In: summaries by their digests. Out: the same. Thread: an event loop. Next: `database.py`.

They go with their conversation. A digest names all that a summary depends on, so one that was made
of other messages, after a rollback, say, is just never asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select

from headrace.conversations.database import Database
from headrace.conversations.tables import conversations, summaries


@dataclass(frozen=True, slots=True)
class KeptSummary:
    """One row."""

    conversation: int
    up_to_message_id: str
    """The last message that it stands for."""
    digest: str
    text: str
    num_tokens: int
    created_at: float
    """Unix seconds."""


async def summaries_of(database: Database, conversation: int) -> Mapping[str, str]:
    """By digest. Raises `DatabaseFailed`."""
    wanted = select(summaries.c.settings_digest, summaries.c.text).where(
        summaries.c.conversation == conversation
    )

    def work(connection: Connection) -> Mapping[str, str]:
        return {row.settings_digest: row.text for row in connection.execute(wanted)}

    return await database.read(work)


async def keep_summary(database: Database, made: KeptSummary) -> bool:
    """Whether it is kept: not where its conversation was deleted meanwhile. Raises
    `DatabaseFailed`."""
    names = {
        "conversation": made.conversation,
        "up_to_message_id": made.up_to_message_id,
        "settings_digest": made.digest,
    }
    text = made.text.replace("\0", " ")  # which PostgreSQL does not take
    told = {"text": text, "num_tokens": made.num_tokens, "created_at": made.created_at}
    same = [summaries.c[name] == value for name, value in names.items()]
    whose = select(conversations.c.number).where(conversations.c.number == made.conversation)

    def work(connection: Connection) -> bool:
        if connection.execute(whose).first() is None:
            return False
        connection.execute(delete(summaries).where(*same))
        connection.execute(insert(summaries), names | told)
        return True

    return await database.write(work)
