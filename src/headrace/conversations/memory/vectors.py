"""Where vectors are kept and found: one protocol for all databases.

In: a connection, and a conversation's number. Out: numbers of its chunks. Thread: a database's.
A conversation belongs to one tenant, and no number is ever used again; so what is asked for one
conversation's number never sees another's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import Connection

if TYPE_CHECKING:
    from headrace.model.embedder import Vectors


@dataclass(frozen=True, slots=True)
class Place:
    """Whose vectors, and what made them: those of different embedders cannot be compared."""

    conversation: int
    """Its number in the database."""
    embedder: str
    """An identity."""


class VectorMemory(Protocol):
    """Vectors of length 1 by the numbers of their chunks."""

    def prepare(self, connection: Connection) -> None:
        """Make what tables it needs. Raises `SettingsError` where the database cannot do it."""

    def add(
        self, connection: Connection, place: Place, chunks: Sequence[int], vectors: Vectors
    ) -> None:
        """One for each chunk, in the place of the one that it may have had."""

    def nearest(
        self, connection: Connection, place: Place, vector: Vectors, limit: int
    ) -> list[int]:
        """The chunks whose dot products with `vector`, shape (`dim`,), are the greatest, the best
        first."""

    @property
    def has_broken(self) -> bool:
        """Whether `broken` would give any."""

    def broken(self) -> list[int]:
        """Chunks whose vectors were found to be unusable since this was asked last."""

    def delete(self, connection: Connection, chunks: Collection[int]) -> None:
        """Let go of their vectors, where the chunks themselves stay."""

    def held(self) -> set[int]:
        """The conversations of which something is in memory."""

    def forget(self, conversation: int, chunks: Collection[int] | None = None) -> None:
        """Chunks, or all of them, are gone from the database: let go of what is in memory."""
