"""The models folder: which files are here, what `--model` means, who may write now.

models/NAME.gguf            a whole, checked model, or a link into the hub's shared cache
models/.pull/NAME.gguf.*    receipts, locks, and files on their way (see `Workspace`)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock

from headrace import settings
from headrace.errors import HeadraceError, InvalidRequest, ModelNotFound, StorageError
from headrace.model import catalogue, gguf
from headrace.model.sources import spec as sources
from headrace.model.sources.base import (
    Phase,
    Progress,
    Report,
    Workspace,
    readable,
    storing,
    sync,
)

_WORK_FOLDER = ".pull"
_SUFFIX = ".gguf"


@dataclass(frozen=True)
class Pulled:
    """A model that is here now; `is_new` tells whether this pull fetched it."""

    path: Path
    source: str
    num_bytes: int
    sha256: str
    is_new: bool


@dataclass(frozen=True)
class Receipt:
    """What was pulled under a file's name; `pulled_at` is ISO 8601 in UTC."""

    source: str
    sha256: str
    num_bytes: int
    pulled_at: str


@dataclass(frozen=True)
class Facts:
    """What a model file says about itself; empty strings and 0 where it says nothing."""

    architecture: str
    quantization: str
    context_length: int
    licence: str


@dataclass(frozen=True)
class Installed:
    """One file of the models folder: its facts, or the problem that keeps it from being used."""

    name: str
    path: Path
    num_bytes: int
    source: str
    facts: Facts | None
    problem: str


def resolve(name_or_path: str) -> Path:
    """The model file that `--model NAME` means. Looks only at this machine's disk.

    In this order: a name of the catalogue; a source that was pulled (`hf:org/repo:Q4_K_M`); the
    path of a file; the name of a file in the models folder, with or without `.gguf`.
    Raises ModelNotFound, which says how to get it.
    """
    if catalogue.find_embedder(name_or_path) is not None:
        raise ModelNotFound(
            f"{name_or_path} is a model for embeddings, which answers nothing; serve it with "
            f"--embedding-model {name_or_path}",
            param="model",
        )
    entry = catalogue.find(name_or_path)
    if entry is not None:
        return _existing(
            _model_path(entry.file_name),
            f"the model {entry.name} is not on this machine yet; fetch it "
            f"({readable(entry.num_bytes)}): headrace pull {entry.name}",
        )
    if sources.is_source(name_or_path):
        spec = sources.parse(name_or_path)
        path = spec.path if isinstance(spec, sources.PathSpec) else find_source(str(spec))
        return _existing(
            path,
            f"{name_or_path} has not been pulled to this machine; fetch it: "
            f"headrace pull '{name_or_path}'",
        )
    return _file(name_or_path)


def installed() -> list[Installed]:
    """Every model file in the models folder, by name; a broken one with its problem."""
    folder = settings.models_dir()
    if not folder.is_dir():
        return []
    paths = sorted(folder.glob(f"*{_SUFFIX}"), key=lambda path: path.name.lower())
    return [_describe(path) for path in paths if path.is_symlink() or not path.is_dir()]


def unfinished() -> list[tuple[str, int]]:
    """Files that a stopped pull can be continued with: their names and bytes so far."""
    parts = sorted((settings.models_dir() / _WORK_FOLDER).glob(f"*{_SUFFIX}.part"))
    return [(part.name.removesuffix(".part"), part.stat().st_size) for part in parts]


def facts_of(path: Path) -> Facts:
    """What the file says about itself. Raises ModelError where it is broken or unreadable."""
    file = gguf.read(path)
    return Facts(
        architecture=file.architecture,
        quantization=_quantization(file),
        context_length=file.integer(f"{file.architecture}.context_length") or 0,
        licence=file.text("general.license") or "",
    )


def remove(name: str) -> Path:
    """Delete a model of the models folder, by any name that `resolve` knows; returns its path.

    Of a model in the hub's shared cache only the link goes. Raises ModelNotFound, or
    InvalidRequest for a file elsewhere, which is not headrace's to delete.
    """
    entry = catalogue.find(name)
    path = _model_path(entry.file_name) if entry else _model_path(name)
    if not (path.exists() or path.is_symlink() or _workspace(path.name).part.exists()):
        path = resolve(name)
    if path.parent != settings.models_dir():
        raise InvalidRequest(f"{path} is not in {settings.models_dir()}; delete it yourself.")
    workspace = _workspace(path.name)
    with locked(workspace), storing(path):
        path.unlink(missing_ok=True)
        workspace.receipt.unlink(missing_ok=True)
        workspace.clear()
    return path


def workspace_of(file_name: str) -> Workspace:
    """Where a file of that name is made. Raises InvalidRequest on a name that is not one."""
    is_plain = file_name.isprintable() and not set(file_name) & set('/\\:*?"<>|')
    if not is_plain or not file_name.endswith(_SUFFIX) or file_name.startswith("."):
        raise InvalidRequest(
            f"{file_name!r} cannot be the name of a model file, which ends in {_SUFFIX}; "
            "give it one with --as NAME.",
            param="model",
        )
    return _workspace(file_name)


def path_of(workspace: Workspace) -> Path:
    """The name that the finished file gets."""
    return _model_path(workspace.file_name)


@contextmanager
def locked(workspace: Workspace, report: Report | None = None) -> Iterator[None]:
    """Be the only process that makes this file; waits, and says so, while another does."""
    with storing(workspace.folder):
        workspace.folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(workspace.lock)
    try:
        with storing(workspace.lock):
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                if report is not None:
                    note = f"another headrace is pulling {workspace.file_name}; waiting for it"
                    report(Progress(Phase.WAITING, note=note))
                lock.acquire()
    except NotImplementedError as error:
        raise StorageError(f"the file system of {workspace.lock} has no locks.") from error
    try:
        yield
    finally:
        lock.release()


def publish(found: Path, workspace: Workspace, receipt: Receipt) -> Path:
    """Give a whole, checked file its name, by one rename that survives a loss of power.

    A file outside the work folder stays where it is; its name becomes a link to it.
    """
    target = _model_path(workspace.file_name)
    with storing(target):
        if found == workspace.part:
            sync(found)
            found.replace(target)
        else:
            workspace.link.unlink(missing_ok=True)
            workspace.link.symlink_to(found.absolute())
            workspace.link.replace(target)
        sync(target.parent)
        write_receipt(workspace, receipt)
    workspace.clear()
    return target


def receipt_of(workspace: Workspace) -> Receipt | None:
    """What was pulled under this name; None when nothing was, or nobody knows."""
    try:
        return Receipt(**json.loads(workspace.receipt.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def find_source(source: str) -> Path | None:
    """The file that was pulled from `source`, if it is still here."""
    for receipt_path in (settings.models_dir() / _WORK_FOLDER).glob(f"*{_SUFFIX}.json"):
        name = receipt_path.name.removesuffix(".json")
        receipt = receipt_of(_workspace(name))
        path = _model_path(name)
        if receipt is not None and receipt.source == source and path.is_file():
            return path
    return None


def write_receipt(workspace: Workspace, receipt: Receipt) -> None:
    """Note what was pulled, whole or not at all."""
    draft = workspace.receipt.with_suffix(".json.new")
    draft.write_text(json.dumps(asdict(receipt), indent=2) + "\n", "utf-8")
    draft.replace(workspace.receipt)


def _workspace(file_name: str) -> Workspace:
    return Workspace(settings.models_dir() / _WORK_FOLDER, file_name)


def _model_path(name: str) -> Path:
    return settings.models_dir() / (name if name.endswith(_SUFFIX) else name + _SUFFIX)


def _existing(path: Path | None, problem: str) -> Path:
    if path is None or not path.is_file():
        raise ModelNotFound(problem, param="model")
    return path


def _file(name: str) -> Path:
    """A path, or the name of a file in the models folder."""
    if sources.is_path(name):
        path = sources.path_of(name)
        if path.is_file():
            return path
        if "/" in name:
            problem = (
                "is a folder; name the .gguf file in it" if path.is_dir() else "does not exist"
            )
            raise ModelNotFound(f"the model file {path} {problem}.", param="model")
    path = _model_path(name)
    if path.is_file():
        return path
    raise unknown(name)


def unknown(name: str) -> ModelNotFound:
    """The error for a name that nobody knows, with the names that it may have been meant to be."""
    paths = settings.models_dir().glob(f"*{_SUFFIX}")
    here = [path.stem for path in paths if catalogue.find_file(path.name) is None]
    near = catalogue.closest(name, here)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return ModelNotFound(
        f"no model is called {name!r}.{hint} `headrace models` lists the names; anything else is "
        f"given as {sources.FORMS}.",
        param="model",
    )


def _describe(path: Path) -> Installed:
    receipt = receipt_of(_workspace(path.name))
    entry = catalogue.find_file(path.name)
    facts, problem = None, ""
    num_bytes = 0
    try:
        num_bytes = path.stat().st_size
        facts = facts_of(path)
    except HeadraceError as error:
        problem = error.message.removeprefix(f"{path}: ")
    except OSError as error:
        is_lost = path.is_symlink() and not path.exists()
        problem = "its file is gone from the shared cache; pull it again" if is_lost else str(error)
    return Installed(
        name=entry.name if entry else path.stem,
        path=path,
        num_bytes=num_bytes,
        source=receipt.source if receipt else "",
        facts=facts,
        problem=problem,
    )


# What llama.cpp calls whole files, by their `general.file_type`; "-" was never used or is gone.
_FILE_TYPES = (
    "F32 F16 Q4_0 Q4_1 - - - Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M "
    "Q6_K IQ2_XXS IQ2_XS Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M "
    "BF16"
)


def _quantization(file: gguf.GGUFFile) -> str:
    """The name of the file's mix of types; where it gives none, the type of most of its bytes."""
    file_type = file.integer("general.file_type")
    names = _FILE_TYPES.split()
    if file_type is not None and 0 <= file_type < len(names):
        return names[file_type]
    num_bytes: Counter[str] = Counter()
    for tensor in file.tensors.values():
        num_bytes[tensor.type.name] += tensor.num_bytes
    return num_bytes.most_common(1)[0][0] if num_bytes else ""
