"""An embedding model that no catalogue knows: a folder on this machine, or a repository on the hub.

In: its files, wherever they lie on this machine. Out: copies of them in a folder of the models
folder, whole and under its name, or not at all. Next: `pull.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import InvalidRequest, SourceUnavailable, StorageError
from headrace.model import store
from headrace.model.embedding import folder
from headrace.model.embedding.config import LENGTH_CONFIG, POOLING_CONFIG
from headrace.model.embedding.pull import publish
from headrace.model.sources.base import (
    FolderOffer,
    Phase,
    Progress,
    Report,
    Workspace,
    check_sha256,
    copy_bytes,
    require_space,
    sha256_of,
    storing,
    sync,
    writing,
)
from headrace.model.sources.spec import PathSpec

if TYPE_CHECKING:
    from headrace.model.pull import Pulled

PARTS = (*folder.FILES, LENGTH_CONFIG, POOLING_CONFIG)
"""What is taken of a folder; all but the first few may be missing."""


@dataclass(frozen=True)
class LocalFolder(FolderOffer):
    """A folder on this machine."""

    spec: PathSpec

    @property
    def name(self) -> str:
        return self.spec.path.name

    @property
    def source(self) -> str:
        return str(self.spec)

    def fetch(self, report: Report) -> Mapping[str, Path]:
        path = self.spec.path
        there = {part: path / part for part in PARTS if (path / part).is_file()}
        if missing := [part for part in folder.FILES if part not in there]:
            raise SourceUnavailable(
                f"{path} is a folder without {', '.join(missing)}; name a .gguf file, or "
                f"the folder of an embedding model, which has {', '.join(folder.FILES)}."
            )
        return there


def bring(
    offer: FolderOffer, *, name: str | None, sha256: str | None, force: bool, report: Report
) -> Pulled:
    """Copy the model to where models are kept. `name`: what to call it there; `sha256`: what its
    weights must be. Raises InvalidRequest for what cannot be a name, SourceUnavailable,
    HashMismatch, StorageError."""
    from headrace.model.pull import Pulled

    files = offer.fetch(report)
    workspace = _workspace(name or offer.name)
    with store.locked(workspace, report):
        digests = _digests(files, offer, report)
        weights = digests[folder.WEIGHTS]
        if sha256 is not None:
            check_sha256(weights, sha256, f"{offer.source}/{folder.WEIGHTS}")
        num_bytes = sum(path.stat().st_size for path in files.values())
        is_new = force or not _is_here(offer, workspace, digests, report)
        if is_new:
            _copy(files, workspace, report)
            pulled_at = datetime.now(UTC).isoformat(timespec="seconds")
            with storing(workspace.receipt):
                receipt = store.Receipt(offer.source, weights, num_bytes, pulled_at)
                store.write_receipt(workspace, receipt)
    target = folder.path_of(workspace.file_name)
    return Pulled(target, offer.source, num_bytes, weights, is_new)


def _workspace(name: str) -> Workspace:
    is_plain = name.isprintable() and not set(name) & set('/\\:*?"<>|')
    if not is_plain or not name or name.startswith(".") or name.endswith(".gguf"):
        raise InvalidRequest(
            f"{name!r} cannot be the name of an embedding model; give it one with --as NAME.",
            param="as",
        )
    return folder.workspace_of(name)


def _digests(files: Mapping[str, Path], offer: FolderOffer, report: Report) -> dict[str, str]:
    try:
        return {part: sha256_of(path, report) for part, path in files.items()}
    except OSError as error:
        raise SourceUnavailable(f"cannot read {offer.source}: {error.strerror}.") from error


def _is_here(
    offer: FolderOffer, workspace: Workspace, digests: Mapping[str, str], report: Report
) -> bool:
    """Whether the folder of that name has these files. Raises StorageError where the name is taken
    by something else."""
    target = folder.path_of(workspace.file_name)
    if not target.exists():
        return False
    here = {part for part in PARTS if (target / part).is_file()}
    if here == set(digests) and all(
        sha256_of(target / part, report) == digest for part, digest in digests.items()
    ):
        return True
    receipt = store.receipt_of(workspace)
    if receipt is None or receipt.source != offer.source:
        raise StorageError(
            f"{target} is something else. Keep both with --as NAME, or replace it with --force."
        )
    note = f"{target.name} is not what its source is now; copying it again"
    report(Progress(Phase.ASKING, note=note))
    return False


def _copy(files: Mapping[str, Path], workspace: Workspace, report: Report) -> None:
    from headrace.model.sources.pip import scratch

    total, done = sum(path.stat().st_size for path in files.values()), 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        report(Progress(Phase.COPYING, done, total))

    with scratch(workspace) as work:
        require_space(workspace.folder, total)
        for part, original in files.items():
            copy = work / "model" / part
            with storing(copy):
                copy.parent.mkdir(parents=True, exist_ok=True)
            with original.open("rb") as source, writing(copy) as sink:
                copy_bytes(source, sink, copy, advance)
            with storing(copy):
                sync(copy)
        publish(work / "model", folder.path_of(workspace.file_name), work)
