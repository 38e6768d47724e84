"""The files of a journal: appended to, one after the other, and deleted from the eldest on.

In: bytes. Out: the same in a file, all of a write or nothing of it. Thread: any, one at a time.
Next: `journal.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from headrace.errors import JournalFailed
from headrace.streams.records import MAGIC

_SUFFIX = ".journal"

synchronize = getattr(os, "fdatasync", os.fsync)
"""Returns when what was written to a file survives the machine."""


class Segments:
    """Those of one folder; of them the last one grows."""

    def __init__(
        self, folder: Path, numbers: Sequence[int], *, segment_bytes: int, is_synchronized: bool
    ) -> None:
        """`numbers`: of the segments that are there. A segment of `segment_bytes` is full."""
        self._folder = folder
        self._numbers = list(numbers)
        self._segment_bytes = segment_bytes
        self._is_synchronized = is_synchronized
        self._next = 1 + max(numbers, default=0)
        self._file: int | None = None
        self._size = 0

    @property
    def last(self) -> int:
        """Number of the one that was written to last."""
        return self._numbers[-1]

    def append(self, data: bytes) -> int | None:
        """Write `data`, all or nothing. Returns a handle to synchronize and to close, where that is
        wanted. Raises `OSError`."""
        file = self._writable()
        try:
            _write_all(file, data)
        except OSError:
            self._undo(file)
            raise
        self._size += len(data)
        return os.dup(file) if self._is_synchronized else None

    def leave(self) -> None:
        """Write no more to the last one; the next write begins another."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def drop(self, first_needed: int | None) -> None:
        """Delete those before that number; None: whatever is not being written to."""
        end = self._next if first_needed is None else first_needed
        if self._file is not None:
            end = min(end, self.last)
        while self._numbers and self._numbers[0] < end:
            with contextlib.suppress(OSError):
                path_of(self._folder, self._numbers[0]).unlink(missing_ok=True)
            del self._numbers[0]

    def _undo(self, file: int) -> None:
        """Take back half of a write; where not even that can be, go on in another segment."""
        try:
            os.ftruncate(file, self._size)
        except OSError:
            self.leave()

    def _writable(self) -> int:
        if self._file is not None and self._size >= self._segment_bytes:
            if self._is_synchronized:
                synchronize(self._file)  # it may hold beginnings that wait for what is said first
            self.leave()
        return self._begin() if self._file is None else self._file

    def _begin(self) -> int:
        path = path_of(self._folder, self._next)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _write_all(file, MAGIC)
            if self._is_synchronized:
                _synchronize_folder(self._folder)
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        self._file, self._size = file, len(MAGIC)
        self._numbers.append(self._next)
        self._next += 1
        return file


def numbers_in(folder: Path) -> list[int]:
    """Of the segments in the folder, eldest first."""
    return sorted(int(path.stem) for path in folder.glob(f"*{_SUFFIX}") if path.stem.isdecimal())


def path_of(folder: Path, number: int) -> Path:
    return folder / f"{number:08}{_SUFFIX}"


@contextlib.contextmanager
def failing(folder: Path) -> Iterator[None]:
    """What the system refuses is a `JournalFailed`."""
    try:
        yield
    except OSError as error:
        raise failure(folder, error) from error


def failure(folder: Path, error: OSError) -> JournalFailed:
    return JournalFailed(
        f"streams cannot be kept in {folder}: {error.strerror or error}; see to it that there is "
        "room and that it may be written"
    )


def _write_all(file: int, data: bytes) -> None:
    num_written = os.write(file, data)
    while num_written < len(data):
        num_written += os.write(file, data[num_written:])


def _synchronize_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
