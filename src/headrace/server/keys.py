"""Keys of the server's users: made, listed, revoked, and known again when they come.

In: a secret that somebody sent. Out: whose it is. Thread: the event loop, or a command's main one.
Next: `access.py`.

One file in the data folder, `keys.json`, holds a SHA-256 of each key and never the key. A plain
hash is right here, unlike for passwords: a key is 256 random bits, so there is no list of likely
ones to try, and a slow hash would only slow down every request.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import string
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import filelock

from headrace import settings
from headrace.errors import InvalidRequest, NotFound, SettingsError, StorageError
from headrace.model.sources.base import storing, sync

FILE_NAME = "keys.json"
SECRET_PREFIX = "hr_"
ID_PREFIX = "key_"

_log = logging.getLogger(__name__)

_ALPHABET = string.ascii_letters + string.digits
_NUM_RANDOM = 43  # 256 bits
_NUM_SHOWN = 4
_MAX_NAME = 64
_VERSION = 1
_CHECK_EVERY_S = 1.0
_LOCK_TIMEOUT_S = 10.0
_OWNER_ONLY = 0o600


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is kept of a key; moments are ISO 8601 in UTC."""

    id: str
    """`key_…`: names the tenant, too."""
    name: str
    digest: str
    """SHA-256 of the key, in hex."""
    hint: str
    """The key's first and last characters, to tell keys apart by."""
    created_at: str
    revoked_at: str | None = None

    @property
    def is_live(self) -> bool:
        return self.revoked_at is None


Records: TypeAlias = list[KeyRecord]


class KeyStore:
    """The keys of one file. Safe to be written by several processes at once.

    A server that holds one looks at the file at most once a second and reads it when it changed.
    A file that cannot be read is an error at first; later, what was last read stays in force.
    """

    def __init__(
        self, path: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`path`: by default `keys.json` in the data folder. Raises what `list` raises."""
        self.path = path or settings.home() / FILE_NAME
        self._clock = clock
        self._checked_at = clock()
        self._is_configured = False
        self._stamp = _stamp(self.path)
        self._index(_read(self.path))

    @property
    def is_configured(self) -> bool:
        """Whether there has ever been a key. Revoking the last one opens nothing."""
        self._refresh()
        return self._is_configured

    def lookup(self, secret: str) -> KeyRecord | None:
        """Whose key this is; None for one that is unknown or revoked.

        How long it takes tells at most something about digests, which nobody can choose, and from
        which no key can be approached; the compare itself takes the same time for all.
        """
        self._refresh()
        digest = _digest(secret)
        record = self._by_digest.get(digest)
        known = record.digest if record else _NOBODY
        return record if hmac.compare_digest(known, digest) else None

    def is_live(self, key_id: str) -> bool:
        """Whether there is a key of this id that was not revoked."""
        self._refresh()
        return any(record.id == key_id for record in self._by_digest.values())

    def list(self) -> Records:
        """All keys, revoked ones too, oldest first, as the file has them now.

        Raises SettingsError where the file is broken, StorageError where it cannot be read.
        """
        return _read(self.path)

    def create(self, name: str) -> tuple[KeyRecord, str]:
        """A new key, and its secret, which is kept nowhere.

        Raises InvalidRequest on a name that is none or in use, StorageError where it cannot be
        kept.
        """
        name = _checked(name)
        secret = SECRET_PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_NUM_RANDOM))
        num_first = len(SECRET_PREFIX) + _NUM_SHOWN
        record = KeyRecord(
            id=ID_PREFIX + secrets.token_hex(8),
            name=name,
            digest=_digest(secret),
            hint=f"{secret[:num_first]}…{secret[-_NUM_SHOWN:]}",
            created_at=_now(),
        )
        with self._changing() as records:
            if any(other.is_live and other.name == name for other in records):
                raise InvalidRequest(
                    f"there is a key called {name!r} already; revoke it, or take another name.",
                    param="name",
                )
            records.append(record)
        return record, secret

    def revoke(self, id_or_name: str) -> KeyRecord:
        """The key with this id, or the live one with this name, is not valid any more.

        One that was revoked before stays as it is. Raises NotFound where there is none.
        """
        with self._changing() as records:
            index = _find(records, id_or_name)
            if records[index].is_live:
                records[index] = replace(records[index], revoked_at=_now())
            return records[index]

    @contextmanager
    def _changing(self) -> Iterator[Records]:
        """The records, to be changed in place by nobody else at the time, then kept."""
        with storing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path):
            records = _read(self.path)
            yield records
            _write(self.path, records)
            self._stamp = _stamp(self.path)
            self._index(records)

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._checked_at < _CHECK_EVERY_S:
            return
        self._checked_at = now
        stamp = _stamp(self.path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._index(_read(self.path))
        except (SettingsError, StorageError) as error:
            _log.error("keys stay as they were: %s", error.message)

    def _index(self, records: Sequence[KeyRecord]) -> None:
        # Once there were keys, a file that is gone must not open the server.
        self._is_configured = self._is_configured or bool(records)
        self._by_digest = {record.digest: record for record in records if record.is_live}


_NOBODY = "0" * 64


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _checked(name: str) -> str:
    name = name.strip()
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        raise InvalidRequest(
            f"a key's name is 1 to {_MAX_NAME} printable characters.", param="name"
        )
    if name.startswith((SECRET_PREFIX, ID_PREFIX)):
        raise InvalidRequest(
            f"a key's name does not begin with {SECRET_PREFIX} or {ID_PREFIX}, as keys and their "
            "ids do; take another.",
            param="name",
        )
    return name


def _find(records: Sequence[KeyRecord], id_or_name: str) -> int:
    for index, record in enumerate(records):
        if record.id == id_or_name or (record.is_live and record.name == id_or_name):
            return index
    # What was given is not repeated: it may be a key, pasted by mistake.
    raise NotFound("no key has that id or name; `headrace keys list` shows them.", param="name")


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Differs whenever the file was replaced; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _read(path: Path) -> Records:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return []
    except OSError as error:
        problem = error.strerror or str(error)
        raise StorageError(f"the keys in {path} cannot be read: {problem}.") from error
    except ValueError as error:
        raise _broken(path, error) from error
    try:
        content = json.loads(text)
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']!r} is unknown")
        return [_record(entry) for entry in content["keys"]]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> SettingsError:
    return SettingsError(
        f"{path} is not a file of keys that this version knows ({error}); put its last good copy "
        "back, or remove it and make new keys with `headrace keys create`."
    )


def _record(entry: dict[str, Any]) -> KeyRecord:
    record = KeyRecord(**{field.name: entry[field.name] for field in fields(KeyRecord)})
    required = (record.id, record.name, record.digest, record.hint, record.created_at)
    if not all(isinstance(value, str) for value in required):
        raise ValueError("a key's fields must be strings")
    if len(record.digest) != len(_NOBODY) or not set(record.digest) <= set(string.hexdigits):
        raise ValueError("a digest is not a SHA-256")
    return record


def _write(path: Path, records: Sequence[KeyRecord]) -> None:
    """Replace the file at once, whole, readable by its owner only."""
    content = {"version": _VERSION, "keys": [asdict(record) for record in records]}
    draft = path.with_name(f".{path.name}.new")
    with storing(path):
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync(path.parent)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCK_TIMEOUT_S)
    try:
        with storing(path):
            _acquire(lock, path)
    except NotImplementedError as error:
        raise StorageError(f"the file system of {path} has no locks.") from error
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: filelock.BaseFileLock, path: Path) -> None:
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise StorageError(
            f"another headrace has been changing {path} for {_LOCK_TIMEOUT_S:.0f} s; "
            "end it, and try again."
        ) from error
