"""Vectors in SQLite: floats in the file, and bytes of them in memory for who searches.

A conversation's matrix is read when it is first searched, grows by what was added since, and is
let go of when others need the room. The rows that it finds are compared again as the floats in the
file, which also tells whether they are still there.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import orjson
from sqlalchemy import Connection

from headrace.conversations.memory.matrix import ByteMatrix
from headrace.conversations.memory.vectors import Place

if TYPE_CHECKING:
    from headrace.model.embedder import Vectors

_log = logging.getLogger(__name__)
_EXTRA = 2
"""So many times more rows are compared as floats than are wanted."""
_ROWS_READ = 4096
_VECTORS = (
    "SELECT chunk, vector FROM vectors "
    "WHERE chunk IN (SELECT value FROM json_each(?)) AND embedder = ?"
)


class _Loaded:
    """A conversation's matrix, and up to which row of the table it has been read."""

    def __init__(self, dim: int) -> None:
        self.matrix = ByteMatrix(dim)
        self.last = 0
        self.lock = threading.Lock()


class SQLiteVectors:
    """Implements `VectorMemory`, for any number of threads."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: of all matrices together; the one in use may be larger."""
        self._max_bytes = max_bytes
        self._loaded: OrderedDict[Place, _Loaded] = OrderedDict()
        self._broken: set[int] = set()
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        with self._lock:
            return sum(loaded.matrix.num_bytes for loaded in self._loaded.values())

    def prepare(self, connection: Connection) -> None:
        """Its table is made by the migrations."""

    def add(
        self, connection: Connection, place: Place, chunks: Sequence[int], vectors: Vectors
    ) -> None:
        self.delete(connection, chunks)
        rows = [
            (chunk, place.conversation, place.embedder, row.astype("<f4").tobytes())
            for chunk, row in zip(chunks, vectors, strict=True)
        ]
        connection.exec_driver_sql(
            "INSERT INTO vectors(chunk, conversation, embedder, vector) VALUES (?, ?, ?, ?)", rows
        )

    def nearest(
        self, connection: Connection, place: Place, vector: Vectors, limit: int
    ) -> list[int]:
        found = self._near(connection, place, vector, limit)
        if found is None:
            # Rows went that we did not hear of: somebody else deleted them.
            self._drop(place)
            found = self._near(connection, place, vector, limit)
        return found or []

    @property
    def has_broken(self) -> bool:
        return bool(self._broken)

    def broken(self) -> list[int]:
        with self._lock:
            found, self._broken = self._broken, set()
        return sorted(found)

    def delete(self, connection: Connection, chunks: Collection[int]) -> None:
        rows = [(chunk,) for chunk in chunks]
        if rows:
            connection.exec_driver_sql("DELETE FROM vectors WHERE chunk = ?", rows)

    def held(self) -> set[int]:
        with self._lock:
            return {place.conversation for place in self._loaded}

    def forget(self, conversation: int, chunks: Collection[int] | None = None) -> None:
        with self._lock:
            touched = [place for place in self._loaded if place.conversation == conversation]
            parts = [self._loaded[place] for place in touched]
            if chunks is None:
                for place in touched:
                    del self._loaded[place]
        if chunks is not None:
            for part in parts:
                with part.lock:
                    part.matrix.remove(chunks)

    def _near(
        self, connection: Connection, place: Place, vector: Vectors, limit: int
    ) -> list[int] | None:
        """None where the matrix has rows that the table has not."""
        loaded = self._use(place, len(vector))
        with loaded.lock:
            self._read_on(connection, place, loaded)
            candidates = loaded.matrix.nearest(vector, limit * _EXTRA)
        self._make_room()
        scores = dict(self._scores(connection, place, candidates, vector))
        if len(scores) < len(set(candidates)):
            return None
        return sorted(scores, key=lambda chunk: (-scores[chunk], chunk))[:limit]

    def _scores(
        self, connection: Connection, place: Place, chunks: Sequence[int], vector: Vectors
    ) -> Iterable[tuple[int, float]]:
        # The driver's own rows: SQLAlchemy's take longer than the search.
        cursor = connection.connection.cursor()
        cursor.execute(_VECTORS, (orjson.dumps(chunks).decode(), place.embedder))
        rows = cursor.fetchall()
        floats = np.frombuffer(b"".join(row[1] for row in rows), "<f4")
        scores = floats.reshape(len(rows), len(vector)) @ vector
        return zip((row[0] for row in rows), scores.tolist(), strict=True)

    def _read_on(self, connection: Connection, place: Place, loaded: _Loaded) -> None:
        """What was added to the table since it was read last."""
        rows = connection.exec_driver_sql(
            "SELECT number, chunk, vector FROM vectors "
            "WHERE conversation = ? AND embedder = ? AND number > ? ORDER BY number",
            (place.conversation, place.embedder, loaded.last),
        )
        while part := rows.fetchmany(_ROWS_READ):
            sound = [row for row in part if len(row[2]) == 4 * loaded.matrix.dim]
            floats = np.frombuffer(b"".join(row[2] for row in sound), "<f4")
            vectors = floats.reshape(len(sound), loaded.matrix.dim)
            is_finite = np.isfinite(vectors).all(axis=1)
            keys = np.array([row[1] for row in sound], np.int64)
            loaded.matrix.add(keys[is_finite], vectors[is_finite])
            loaded.last = part[-1][0]
            self._note_broken({row[1] for row in part} - set(keys[is_finite].tolist()))

    def _note_broken(self, chunks: set[int]) -> None:
        if chunks:
            _log.warning("%d vectors on disk are broken; they are made again", len(chunks))
            with self._lock:
                self._broken |= chunks

    def _use(self, place: Place, dim: int) -> _Loaded:
        with self._lock:
            loaded = self._loaded.setdefault(place, _Loaded(dim))
            self._loaded.move_to_end(place)
            return loaded

    def _make_room(self) -> None:
        """Let go of the matrices that were not used for longest; the last one used stays."""
        with self._lock:
            total = sum(loaded.matrix.num_bytes for loaded in self._loaded.values())
            while total > self._max_bytes and len(self._loaded) > 1:
                _, gone = self._loaded.popitem(last=False)
                total -= gone.matrix.num_bytes

    def _drop(self, place: Place) -> None:
        with self._lock:
            self._loaded.pop(place, None)
