"""A list that grows at its end, and whose beginning may lie packed, in memory or on disk.

In: values in order. Out: the same, from any place on. Thread: the event loop. Next: `log.py`.
"""

from __future__ import annotations

import os
import pickle
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from headrace.errors import StreamGone

Value = TypeVar("Value")

_CHUNK = 256
"""Values that are read from disk together."""


class Place(NamedTuple):
    """Where something lies in a file, in bytes."""

    start: int
    length: int


class ShelfFile:
    """One file for all shelves of a stream: for its owner's eyes only, until it is deleted. It is
    open only while it is used, so ten thousand of them take no file handles."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.num_bytes = 0

    def append(self, data: bytes) -> Place:
        """Raises `OSError`."""
        flags = os.O_WRONLY | os.O_CREAT | (0 if self.num_bytes else os.O_TRUNC)
        file = os.open(self._path, flags, 0o600)
        try:
            place = Place(self.num_bytes, os.pwrite(file, data, self.num_bytes))
        finally:
            os.close(file)
        if place.length < len(data):
            raise OSError("a write was cut short")
        self.num_bytes += place.length
        return place

    def read(self, place: Place) -> bytes:
        """Raises `StreamGone` where it cannot be read."""
        try:
            file = os.open(self._path, os.O_RDONLY)
            try:
                data = os.pread(file, place.length, place.start)
            finally:
                os.close(file)
        except OSError as error:
            raise StreamGone(f"the stream cannot be read from disk: {error.strerror}") from error
        if len(data) < place.length:
            raise StreamGone("the stream cannot be read from disk: its file was cut")
        return data

    def delete(self) -> None:
        """Any number of times; nothing can be read after that."""
        self._path.unlink(missing_ok=True)


class _OnDisk(NamedTuple):
    file: ShelfFile
    place: Place


class Shelf(Generic[Value]):
    """Values by number, from 0."""

    def __init__(self, stays: Callable[[Value], bool] = lambda value: False) -> None:
        """Values that `stays` says are never packed, nor put on disk; there are few of them."""
        self._stays = stays
        self._recent: list[Value] = []
        self._num_away = 0
        self._starts: list[int] = []
        """The number of each chunk's first value."""
        self._chunks: list[bytes | _OnDisk] = []
        self._staying: dict[int, Value] = {}
        self.num_packed_bytes = 0
        """In memory, beside `recent`."""

    def __len__(self) -> int:
        return self._num_away + len(self._recent)

    @property
    def recent(self) -> Sequence[Value]:
        """Those in memory and not packed: the last ones."""
        return self._recent

    def append(self, value: Value) -> None:
        self._recent.append(value)

    def since(self, start: int) -> Sequence[Value]:
        """All from number `start` on."""
        if start >= self._num_away:
            return self._recent[start - self._num_away :]
        return list(self.iterate(start))

    def iterate(self, start: int = 0) -> Iterator[Value]:
        """All there are now from number `start` on, reading no more of the disk than is taken.
        Raises `StreamGone` where it cannot be read."""
        while start < self._num_away:
            values, first = self._chunk_of(start)
            yield from values[start - first :]
            start = first + len(values)
        yield from self._recent[start - self._num_away :]

    def pack_some(self) -> bool:
        """Put some of it together that is in memory: it takes a part of the room, and the collector
        of garbage has nothing to look through. Whoever reads it unpacks it. Whether there is
        more."""
        if self._recent:
            self._put_away(self._keep_packed)
        return bool(self._recent)

    def spill(self, file: ShelfFile) -> None:
        """Put all of it on disk that is in memory. Raises `OSError`, and then some of it is not."""
        for index, chunk in enumerate(self._chunks):
            if isinstance(chunk, bytes):
                self._chunks[index] = _OnDisk(file, file.append(chunk))
                self.num_packed_bytes -= len(chunk)
        while self._recent:
            self._put_away(lambda data: _OnDisk(file, file.append(data)))

    def _keep_packed(self, data: bytes) -> bytes:
        self.num_packed_bytes += len(data)
        return data

    def _put_away(self, put: Callable[[bytes], bytes | _OnDisk]) -> None:
        """The first chunk of those in memory."""
        values = self._recent[:_CHUNK]
        staying = {at: value for at, value in enumerate(values) if self._stays(value)}
        written = [None if at in staying else value for at, value in enumerate(values)]
        # Read by nobody but this process: after its death a stream is made of its tokens.
        chunk = put(pickle.dumps(written, pickle.HIGHEST_PROTOCOL))
        self._staying.update((self._num_away + at, v) for at, v in staying.items())
        self._starts.append(self._num_away)
        self._chunks.append(chunk)
        self._num_away += len(values)
        del self._recent[: len(values)]

    def _chunk_of(self, number: int) -> tuple[list[Value], int]:
        """The values that lie together with that one, and the number of their first."""
        index = bisect_right(self._starts, number) - 1
        chunk, first = self._chunks[index], self._starts[index]
        values = pickle.loads(chunk if isinstance(chunk, bytes) else chunk.file.read(chunk.place))
        for at in range(first, first + len(values)) if self._staying else ():
            if at in self._staying:
                values[at - first] = self._staying[at]
        return values, first
