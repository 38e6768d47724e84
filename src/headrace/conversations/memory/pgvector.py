"""Vectors in PostgreSQL, by its extension pgvector.

A small conversation is compared whole, which is exact; a large one by an HNSW index over all
vectors of as many numbers, whose scan goes on until enough of them are the conversation's own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DBAPIError

from headrace.conversations.memory.vectors import Place
from headrace.errors import SettingsError

if TYPE_CHECKING:
    from headrace.model.embedder import Vectors

_MAX_EXACT = 5_000
"""Vectors of one conversation that are compared one by one."""
_MAX_INDEXED = 2_000
"""Numbers of a vector that pgvector has an index for."""
_SEARCH_WIDTH = 400
"""Candidates that the index keeps in view (`hnsw.ef_search`). Of the 50 nearest among 5,600 chunks
it found 88 % with 120 in view, and 96 % with 400, in less than twice the time."""
_TABLES = (
    "CREATE EXTENSION IF NOT EXISTS vector",
    """CREATE TABLE IF NOT EXISTS vectors (
        chunk BIGINT PRIMARY KEY REFERENCES chunks(number) ON DELETE CASCADE,
        conversation BIGINT NOT NULL,
        embedder VARCHAR(200) NOT NULL,
        vector VECTOR NOT NULL)
    """,
    "CREATE INDEX IF NOT EXISTS vectors_of_conversation ON vectors (conversation, embedder)",
)
_LOCK = 0x6865_6164_0001
"""Among PostgreSQL's advisory locks: who makes the tables."""
_ADD = text(
    "INSERT INTO vectors(chunk, conversation, embedder, vector) "
    "VALUES (:chunk, :conversation, :embedder, CAST(:vector AS vector)) "
    "ON CONFLICT (chunk) DO UPDATE SET conversation = excluded.conversation, "
    "embedder = excluded.embedder, vector = excluded.vector"
)
_COUNT = text(
    "SELECT count(*) FROM (SELECT 1 FROM vectors "
    "WHERE conversation = :conversation AND embedder = :embedder LIMIT :most) AS counted"
)
_EXACT = text(
    "SELECT chunk FROM vectors WHERE conversation = :conversation AND embedder = :embedder "
    "ORDER BY vector <#> CAST(:vector AS vector), chunk LIMIT :limit"
)


class PostgreSQLVectors:
    """Implements `VectorMemory`."""

    def __init__(self, dim: int) -> None:
        self._dim = dim

    def prepare(self, connection: Connection) -> None:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        try:
            for statement in _TABLES:
                connection.execute(text(statement))
        except DBAPIError as error:
            raise SettingsError(
                "retrieval in PostgreSQL needs its extension `vector`, which this database does "
                "not have and this user may not create: see https://github.com/pgvector/pgvector",
                param="database",
            ) from error
        if self._dim <= _MAX_INDEXED:
            connection.execute(
                text(
                    f"CREATE INDEX IF NOT EXISTS vectors_near_{self._dim} ON vectors "
                    f"USING hnsw ((vector::vector({self._dim})) vector_ip_ops) "
                    f"WHERE vector_dims(vector) = {self._dim}"
                )
            )

    def add(
        self, connection: Connection, place: Place, chunks: Sequence[int], vectors: Vectors
    ) -> None:
        rows = [
            {
                "chunk": chunk,
                "conversation": place.conversation,
                "embedder": place.embedder,
                "vector": _spelled(vector),
            }
            for chunk, vector in zip(chunks, vectors, strict=True)
        ]
        if rows:
            connection.execute(_ADD, rows)

    def nearest(
        self, connection: Connection, place: Place, vector: Vectors, limit: int
    ) -> list[int]:
        wanted = {
            "conversation": place.conversation,
            "embedder": place.embedder,
            "most": _MAX_EXACT + 1,
            "vector": _spelled(vector),
            "limit": limit,
        }
        num_vectors = connection.execute(_COUNT, wanted).scalar_one()
        if num_vectors <= _MAX_EXACT or self._dim > _MAX_INDEXED:
            return [row[0] for row in connection.execute(_EXACT, wanted)]
        connection.execute(text(f"SET LOCAL hnsw.ef_search = {_SEARCH_WIDTH}"))
        connection.execute(text("SET LOCAL hnsw.iterative_scan = strict_order"))
        return [row[0] for row in connection.execute(self._indexed(), wanted)]

    @property
    def has_broken(self) -> bool:
        """The database checks what it takes, and what it reads."""
        return False

    def broken(self) -> list[int]:
        return []

    def delete(self, connection: Connection, chunks: Collection[int]) -> None:
        connection.execute(
            text("DELETE FROM vectors WHERE chunk = ANY(:chunks)"), {"chunks": list(chunks)}
        )

    def held(self) -> set[int]:
        """Nothing is in memory."""
        return set()

    def forget(self, conversation: int, chunks: Collection[int] | None = None) -> None:
        pass

    def _indexed(self) -> TextClause:
        """The same question in the words of the index."""
        dim = self._dim
        return text(
            "SELECT chunk FROM vectors "
            "WHERE conversation = :conversation AND embedder = :embedder "
            f"AND vector_dims(vector) = {dim} "
            f"ORDER BY vector::vector({dim}) <#> CAST(:vector AS vector({dim})) LIMIT :limit"
        )


def _spelled(vector: Vectors) -> str:
    """As pgvector reads it; each number is the same float again."""
    return "[" + ",".join(map(repr, vector.tolist())) + "]"
