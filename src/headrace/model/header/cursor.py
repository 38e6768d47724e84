"""A file's bytes, front to back: no length or count is believed that the file cannot hold.

Reading is by plain reads, not `mmap`, so that a file which shrinks meanwhile is an error and not a
SIGBUS.
"""

from __future__ import annotations

from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO

from headrace.errors import InvalidModelFile, UnsupportedModel

MAX_ARRAY_ITEMS = 1 << 22
"""Most items in one metadata array; the largest vocabularies known have a quarter of that."""
MAX_ENTRIES = 1 << 16
"""Most metadata keys, and most tensors, in one file."""
MAX_STRING_BYTES = 1 << 24
MAX_NAME_BYTES = 65_535
"""Most bytes in a metadata key or a tensor's name; the format's own limit for keys."""
FETCH_AGAIN = "the file is truncated or broken: fetch it again"
U32 = Struct("<I")
U64 = Struct("<Q")

_CHUNK_BYTES = 1 << 20


class Cursor:
    """Reads a file front to back and keeps the bytes so far: at most twice the header."""

    def __init__(self, file: BinaryIO, path: Path, num_bytes: int) -> None:
        self._file = file
        self._path = path
        self._data = b""
        self.position = 0
        self.num_bytes = num_bytes

    @property
    def num_left(self) -> int:
        return self.num_bytes - self.position

    def invalid(self, part: str, problem: str) -> InvalidModelFile:
        return InvalidModelFile(f"{self._path}: {part}: {problem}")

    def unsupported(self, part: str, problem: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self._path}: {part}: {problem}")

    def unpack(self, layout: Struct, part: str) -> tuple[Any, ...]:
        self._fill(layout.size, part)
        values = layout.unpack_from(self._data, self.position)
        self.position += layout.size
        return values

    def numbers(self, code: str, count: int, part: str) -> tuple[Any, ...]:
        return self.unpack(Struct(f"<{count}{code}"), part)

    def take(self, num_bytes: int, part: str) -> bytes:
        self._fill(num_bytes, part)
        start, self.position = self.position, self.position + num_bytes
        return self._data[start : self.position]

    def string(self, part: str, limit: int = MAX_STRING_BYTES) -> str:
        (num_bytes,) = self.unpack(U64, part)
        self._check_length(num_bytes, part, limit)
        try:
            return self.take(num_bytes, part).decode()
        except UnicodeDecodeError as error:
            raise self.invalid(part, f"is not UTF-8 text: {error}") from error

    def strings(self, count: int, part: str) -> tuple[str, ...]:
        """`count` strings in a row: a vocabulary may have half a million, so decoded in bulk."""
        parts: list[bytes] = []
        while self._collect(parts, count) < count:
            # The next one is not wholly in the buffer, or not in the file; this tells which.
            item = f"{part}[{len(parts)}]"
            self._fill(U64.size, item)
            (num_bytes,) = U64.unpack_from(self._data, self.position)
            self._check_length(num_bytes, item, MAX_STRING_BYTES)
            self._fill(U64.size + num_bytes, item)
        # A null byte cannot be part of a longer character, so the whole is UTF-8 if each one is.
        joined = b"\0".join(parts)
        try:
            text = joined.decode()
        except UnicodeDecodeError as error:
            index = joined.count(b"\0", 0, error.start)
            raise self.invalid(part, f"near item {index}: is not UTF-8 text: {error}") from error
        if text.count("\0") == len(parts) - 1:
            return tuple(text.split("\0"))
        return tuple(item.decode() for item in parts)

    def _collect(self, parts: list[bytes], count: int) -> int:
        """Append the strings that lie in the buffer; how many `parts` there are now."""
        data, start, end = self._data, self.position, len(self._data)
        length_at, append = U64.unpack_from, parts.append
        for _ in range(count - len(parts)):
            text_at = start + 8
            if text_at > end:
                break
            stop = text_at + length_at(data, start)[0]
            if stop > end:
                break
            append(data[text_at:stop])
            start = stop
        self.position = start
        return len(parts)

    def _check_length(self, num_bytes: int, part: str, limit: int) -> None:
        if num_bytes > self.num_left:
            raise self.invalid(
                part,
                f"claims {num_bytes:,} bytes where the file has {self.num_left:,} left; "
                f"{FETCH_AGAIN}",
            )
        if num_bytes > limit:
            raise self.invalid(part, f"is {num_bytes:,} bytes long; at most {limit:,} are read")

    def _fill(self, num_bytes: int, part: str) -> None:
        """Have the next `num_bytes` in the buffer, which grows by doubling."""
        end = self.position + num_bytes
        if end <= len(self._data):
            return
        if end <= self.num_bytes:
            target = min(max(end, 2 * len(self._data), _CHUNK_BYTES), self.num_bytes)
            self._data += self._file.read(target - len(self._data))
        if end > len(self._data):
            raise self.invalid(
                part,
                f"needs the bytes up to {end:,}, the file ends at {self.num_bytes:,}; "
                f"{FETCH_AGAIN}",
            )


def check_count(
    cursor: Cursor, part: str, count: int, min_bytes: int, limit: int = MAX_ARRAY_ITEMS
) -> None:
    """Refuse a count that the bytes left could not hold, before anything is done for it."""
    if count * min_bytes > cursor.num_left:
        raise cursor.invalid(
            part,
            f"claims {count:,} items where the file has {cursor.num_left:,} bytes left; "
            f"{FETCH_AGAIN}",
        )
    if count > limit:
        raise cursor.invalid(part, f"has {count:,} items; at most {limit:,} are read")


def shown(name: str) -> str:
    """A name from the file made safe to print: no control characters, no endless ones."""
    plain = name.encode("unicode_escape").decode()
    return plain if len(plain) <= 80 else f"{plain[:77]}..."
