"""What a model file holds, to the last byte: a SHA-256 that is computed once for each file.

In: a file. Out: its digest. Thread: any; takes a second for one or two gigabytes, the first time.

A result depends on every byte of the weights, so what must be equal bit for bit is compared by all
of them. Beside the file stands what was computed, with the file's size and time of change; where
that cannot be written, it is computed again.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from headrace.errors import ModelError
from headrace.model.sources.base import sha256_of

_SUFFIX = ".sha256"


def digest_of(path: Path) -> str:
    """The SHA-256 of the file, in lower-case hex. Raises `ModelError` where it cannot be read."""
    path = path.resolve()
    try:
        facts = _facts(path)
        known = _known(path, facts)
        if known is not None:
            return known
        digest = sha256_of(path)
        if _facts(path) == facts:  # it may have changed while it was read
            _keep(path, {**facts, "sha256": digest})
        return digest
    except OSError as error:
        raise ModelError(f"the model file {path} cannot be read: {error.strerror}") from error


def _facts(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"num_bytes": status.st_size, "changed_ns": status.st_mtime_ns, "inode": status.st_ino}


def _beside(path: Path) -> Path:
    return path.with_name(path.name + _SUFFIX)


def _known(path: Path, facts: dict[str, int]) -> str | None:
    """What was computed for this very file."""
    try:
        kept = json.loads(_beside(path).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    digest = kept.get("sha256") if isinstance(kept, dict) else None
    is_of_this = isinstance(digest, str) and kept == {**facts, "sha256": digest}
    return digest if is_of_this else None


def _keep(path: Path, facts: dict[str, int | str]) -> None:
    beside = _beside(path)
    draft = beside.with_name(f"{beside.name}.{os.getpid()}.new")
    with contextlib.suppress(OSError):
        draft.write_text(json.dumps(facts) + "\n", "utf-8")
        draft.replace(beside)
