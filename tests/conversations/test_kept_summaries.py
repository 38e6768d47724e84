"""Summaries in the database, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio

from sqlalchemy import Connection, insert

from headrace.conversations.database import Database
from headrace.conversations.kept_summaries import KeptSummary, keep_summary, summaries_of
from headrace.conversations.tables import conversations, messages


def _conversation(connection: Connection) -> int:
    told = {"metadata": {}, "created_at": 1.0}
    row = {"tenant": "t", "id": "mill", "updated_at": 1.0, **told}
    key = insert(conversations).values(row).returning(conversations.c.number)
    number = int(connection.execute(key).scalar_one())
    row = {"conversation": number, "id": "m1", "role": "user", "message": {}, **told}
    connection.execute(insert(messages), {**row, "status": "completed"})
    return number


def test_a_nul_in_a_summary_is_a_space(database_url: str) -> None:
    database = Database.open(database_url)

    async def play() -> None:
        number = await database.write(_conversation)
        made = KeptSummary(number, "m1", "digest", "The mill\0turns.", 4, 1.0)
        assert await keep_summary(database, made)
        assert await summaries_of(database, number) == {"digest": "The mill turns."}

    try:
        asyncio.run(play())
    finally:
        database.close()
