"""What all kinds of source share: progress, the work folder, disk errors, checks of bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from headrace.errors import HashMismatch, SourceUnavailable, StorageError
from headrace.settings import HOME_VARIABLE

CHUNK_BYTES = 1 << 20
GGUF_MAGIC = b"GGUF"

_FULL = {errno.ENOSPC, errno.EDQUOT}
_NOT_OURS = {errno.EACCES, errno.EPERM, errno.EROFS}
DISK_ERRORS = _FULL | _NOT_OURS | {errno.EFBIG, errno.EIO}
"""The system's refusals that are about the disk, not about the network."""


class Phase(StrEnum):
    """What a pull is doing; the value is the word to show."""

    WAITING = "waiting"
    ASKING = "asking the source"
    DOWNLOADING = "downloading"
    UNPACKING = "unpacking"
    COPYING = "copying"
    VERIFYING = "verifying"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a phase has come, in bytes. `total_bytes` None: not known, or as said before.

    `step` is "2 of 4" where a file comes in pieces; `note` is something a person should read once.
    """

    phase: Phase
    num_bytes: int = 0
    total_bytes: int | None = None
    step: str = ""
    note: str = ""


Report = Callable[[Progress], None]
"""Called from the pulling thread, up to some hundred times a second; must return quickly."""


def silent(_progress: Progress) -> None:
    """A Report for callers that show nothing."""


@dataclass(frozen=True)
class Workspace:
    """The names under which one model file comes into being, all beside its final folder.

    A file gets its own name by one rename, after its bytes were checked and written to disk;
    until then it exists only here.
    """

    folder: Path
    file_name: str

    @property
    def part(self) -> Path:
        """The bytes so far."""
        return self.folder / f"{self.file_name}.part"

    @property
    def part_facts(self) -> Path:
        """What the part is a part of, so that it can be continued."""
        return self.folder / f"{self.file_name}.part.json"

    @property
    def scratch(self) -> Path:
        """A folder for whatever a source needs on the way; removed before and after."""
        return self.folder / f"{self.file_name}.tmp"

    @property
    def link(self) -> Path:
        return self.folder / f"{self.file_name}.link"

    @property
    def lock(self) -> Path:
        return self.folder / f"{self.file_name}.lock"

    @property
    def receipt(self) -> Path:
        return self.folder / f"{self.file_name}.json"

    def clear(self) -> None:
        """Remove what an unfinished pull left behind."""
        self.part.unlink(missing_ok=True)
        self.part_facts.unlink(missing_ok=True)
        shutil.rmtree(self.scratch, ignore_errors=True)


class Offer(Protocol):
    """A source that knows what it will bring. `None`: not known before it is here."""

    @property
    def file_name(self) -> str: ...
    @property
    def num_bytes(self) -> int | None: ...
    @property
    def sha256(self) -> str | None: ...

    def fetch(self, workspace: Workspace, report: Report) -> Path:
        """Bring the whole file; returns `workspace.part`, or where it lies in a shared cache.

        Raises SourceUnavailable, HashMismatch (of what the source itself promised), StorageError.
        """
        ...


class FolderOffer(ABC):
    """A source of an embedding model, which is several files."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The folder's, where nobody gives it another."""

    @property
    @abstractmethod
    def source(self) -> str:
        """Its normal form, for the receipt."""

    @abstractmethod
    def fetch(self, report: Report) -> Mapping[str, Path]:
        """Where each file lies on this machine, by its path in the model's folder. Raises
        SourceUnavailable and StorageError."""


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write `path` into a StorageError that names the remedy."""
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error


@contextmanager
def writing(path: Path, mode: str = "wb") -> Iterator[BinaryIO]:
    """A file open for writing; opening and the last flush tell disk errors, the body its own."""
    with storing(path):
        file = cast(BinaryIO, path.open(mode))
    try:
        yield file
    finally:
        with storing(path):
            file.close()


@contextmanager
def new_part(workspace: Workspace) -> Iterator[BinaryIO]:
    """The work file, empty, with nothing beside it that told what an older one was a part of."""
    workspace.clear()
    with writing(workspace.part) as part:
        yield part


def storage_error(path: Path, error: OSError, variable: str = HOME_VARIABLE) -> StorageError:
    """What the system's refusal means; `variable` names the folder that `path` is in."""
    if error.errno in _FULL:
        return StorageError(
            f"the disk is full: cannot write {path} ({readable(free_bytes(path))} free). "
            f"Make room, or let {variable} name a folder on another disk, and pull again."
        )
    if error.errno in _NOT_OURS:
        return StorageError(
            f"cannot write {path}: {error.strerror}. "
            f"Let {variable} name a folder that you may write to."
        )
    if error.errno == errno.EFBIG:
        return StorageError(
            f"cannot write {path}: files of this size are not allowed here (see `ulimit -f`)."
        )
    return StorageError(f"cannot write {path}: {error.strerror or error}.")


def require_space(folder: Path, num_bytes: int, variable: str = HOME_VARIABLE) -> None:
    """Refuse before the first byte what the disk has no room for."""
    free = free_bytes(folder)
    if free < num_bytes:
        raise StorageError(
            f"the disk is too full: {readable(num_bytes)} needed in {folder}, "
            f"{readable(free)} free. "
            f"Make room, or let {variable} name a folder on another disk."
        )


def free_bytes(path: Path) -> int:
    """What an ordinary user may still write on the disk of `path` or its nearest parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def copy_bytes(
    source: BinaryIO, sink: BinaryIO, sink_path: Path, advance: Callable[[int], None]
) -> None:
    """Copy to the end, telling `advance` after each chunk how many bytes it had."""
    while chunk := source.read(CHUNK_BYTES):
        with storing(sink_path):
            sink.write(chunk)
        advance(len(chunk))


def sha256_of(path: Path, report: Report = silent) -> str:
    """The SHA-256 of what is on disk, in lower-case hex."""
    digest = hashlib.sha256()
    total = path.stat().st_size
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            report(Progress(Phase.VERIFYING, done, total))
    return digest.hexdigest()


def check_magic(path: Path, source: str) -> None:
    """Tell a web page or a pointer file from a model before anyone trusts its name."""
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(GGUF_MAGIC):
        return
    hint = ""
    if head.lstrip()[:1] == b"<":
        hint = (
            " It looks like a web page: use the link of the file itself "
            "(on Hugging Face /resolve/ instead of /blob/, or hf:ORG/REPO:QUANT)."
        )
    elif head.startswith(b"version https://git-lfs"):
        hint = " It is a Git LFS pointer: fetch the file itself with `git lfs pull`."
    raise SourceUnavailable(
        f"{source} is not a GGUF model: it begins with {head[:16]!r} instead of b'GGUF'.{hint}"
    )


def check_sha256(found: str, promised: str, what: str) -> None:
    if found != promised:
        raise HashMismatch(
            f"{what} is not the file that was promised: its SHA-256 is {found}, "
            f"it should be {promised}."
        )


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def readable(num_bytes: int) -> str:
    """A size as people write it, in decimal units: 98.4 MB."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    amount = num_bytes / 1000
    for unit in ("kB", "MB", "GB"):
        if amount < 999.95:
            return f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
