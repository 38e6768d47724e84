"""Banks on disk: files that are written whole, trusted never, and bounded together.

In: a bank's name and bytes. Out: the same bytes, or nothing. Thread: any, one that writes and one
that reads; any number of processes may share a folder. Next: the disk.

    banks/<name>.bank      one bank; its name says all that its content depends on
    banks/<owner>.list     the names of a conversation's banks, all that it ever had

Who writes a bank twice writes the same, so nobody needs a lock: a file is written beside and
renamed. What is not what its name and checksum say is deleted. Nothing is synced: a file that a
crash of the machine tore is found out like any other. Used last, deleted last; the first bank of a
conversation counts as used after those that need it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

FORMAT: Final = 1
"""Changes with the files here, and with the order of what `export_bank` gives."""

NAME_BYTES: Final = 32
_MAGIC: Final = b"headrace bank %3d" % FORMAT
_HEAD_BYTES: Final = len(_MAGIC) + NAME_BYTES + 32
_BANK, _LIST, _DRAFT = ".bank", ".list", ".new"
_SPARE: Final = 0.1
"""Of all bytes, freed at once when there are too many: looking at all files takes time."""
_STALE_S: Final = 3600.0
"""Drafts and lists that belong to nothing are left alone so long: somebody may be at it."""


class BankFile(NamedTuple):
    """One bank that is there, or seems to be."""

    name: bytes
    num_bytes: int
    used_ns: int


class BankFiles:
    """One folder of banks."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._num_bytes = 0
        """As far as this process knows."""

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def open(self) -> list[bytes]:
        """Make the folder if need be, for this user's eyes only; the names of what is there. Raises
        `OSError`."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        found = self._scan()
        self._clear_up({file.name for file in found})
        return [file.name for file in found]

    def write(self, name: bytes, data: bytes, used_ns: int) -> list[bytes]:
        """Keep a bank; returns the names of those that were deleted for it. Raises `OSError`, and
        then keeps nothing."""
        draft = self._folder / f"{name.hex()}.{os.getpid()}-{id(self)}{_DRAFT}"
        try:
            with open(draft, "wb", opener=_private) as file:
                file.write(_MAGIC + name + _checksum(name, data))
                file.write(data)
            os.utime(draft, ns=(used_ns, used_ns))
            draft.replace(self._path(name))
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        self._num_bytes += _HEAD_BYTES + len(data)
        return self._shrink() if self._num_bytes > self._max_bytes else []

    def read(self, name: bytes) -> bytes | None:
        """A bank's bytes, just as they were written; None, and no such file any more, where they
        are not."""
        try:
            with self._path(name).open("rb") as file:
                head, data = file.read(_HEAD_BYTES), file.read()
        except OSError:
            return None
        if head == _MAGIC + name + _checksum(name, data):
            return data
        self._delete(name)
        return None

    def touch(self, names: Iterable[bytes]) -> None:
        """Note that these banks are used, which go on from one another in this order."""
        used_ns = time.time_ns()
        for depth, name in enumerate(names):
            with contextlib.suppress(OSError):
                os.utime(self._path(name), ns=(used_ns - depth, used_ns - depth))

    def belong(self, owner: bytes, names: Sequence[bytes]) -> None:
        """Note whose banks these are. Raises `OSError`."""
        path = self._folder / (owner.hex() + _LIST)
        known = set(_names_in(path))
        new = b"".join(name for name in names if name not in known)
        with open(path, "ab", opener=_private) as file:
            # Half a name, from a machine that crashed, becomes one that nothing has.
            file.write(bytes(-file.tell() % NAME_BYTES) + new)

    def knows(self, owner: bytes) -> bool:
        """Whether anything was noted for this owner since it was last forgotten."""
        return (self._folder / (owner.hex() + _LIST)).exists()

    def forget(self, owner: bytes) -> list[bytes]:
        """Delete what belongs to this owner alone; returns the names."""
        path = self._folder / (owner.hex() + _LIST)
        names = set(_names_in(path))
        path.unlink(missing_ok=True)
        for other in self._folder.glob("*" + _LIST) if names else ():
            names.difference_update(_names_in(other))
        for name in names:
            self._delete(name)
        return list(names)

    def _shrink(self) -> list[bytes]:
        """Delete the files that were used longest ago, other processes' among them."""
        found = self._scan()
        spare = int(self._max_bytes * _SPARE)
        doomed = _longest_unused(found, self._num_bytes - self._max_bytes + spare)
        for file in doomed:
            self._delete(file.name)
            self._num_bytes -= file.num_bytes
        self._clear_up({file.name for file in set(found).difference(doomed)})
        return [file.name for file in doomed]

    def _scan(self) -> list[BankFile]:
        found = list(self._files())
        self._num_bytes = sum(file.num_bytes for file in found)
        return found

    def _files(self) -> Iterator[BankFile]:
        for entry in os.scandir(self._folder):
            name = _name_of(entry.name)
            if name is None:
                continue
            with contextlib.suppress(OSError):  # another process has just deleted it
                status = entry.stat()
                yield BankFile(name, status.st_size, status.st_mtime_ns)

    def _clear_up(self, names: set[bytes]) -> None:
        """Delete old drafts, and old lists of which nothing is left that others have not too."""
        before = time.time() - _STALE_S
        paths = list(self._folder.iterdir())
        lists = {path: names.intersection(_names_in(path)) for path in paths if _is_list(path)}
        num_owners = Counter(name for listed in lists.values() for name in listed)
        for path in paths:
            listed = lists.get(path, set())
            is_needless = path.suffix == _DRAFT or path in lists
            if is_needless and all(num_owners[name] > 1 for name in listed):
                with contextlib.suppress(OSError):
                    if path.stat().st_mtime < before:
                        path.unlink()
                        num_owners.subtract(listed)

    def _path(self, name: bytes) -> Path:
        return self._folder / (name.hex() + _BANK)

    def _delete(self, name: bytes) -> None:
        with contextlib.suppress(OSError):
            self._path(name).unlink()


def _longest_unused(files: Iterable[BankFile], num_bytes: int) -> list[BankFile]:
    """Files of that many bytes together, or all."""
    doomed = []
    for file in sorted(files, key=lambda file: file.used_ns):
        if num_bytes <= 0:
            break
        doomed.append(file)
        num_bytes -= file.num_bytes
    return doomed


def _checksum(name: bytes, data: bytes) -> bytes:
    digest = hashlib.sha256(name)
    digest.update(data)
    return digest.digest()


def _name_of(file_name: str) -> bytes | None:
    stem, _, suffix = file_name.partition(".")
    try:
        name = bytes.fromhex(stem)
    except ValueError:
        return None
    return name if "." + suffix == _BANK and len(name) == NAME_BYTES else None


def _is_list(path: Path) -> bool:
    return path.suffix == _LIST


def _names_in(path: Path) -> Iterator[bytes]:
    """The names of a list; half a one at its end is left out."""
    try:
        data = path.read_bytes()
    except OSError:
        return
    for start in range(0, len(data) - NAME_BYTES + 1, NAME_BYTES):
        yield data[start : start + NAME_BYTES]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
