"""Embedding models on this machine: which there are, and what `--embedding-model` means.

models/NAME/               a whole, checked model: weights, tokenizer, configs
models/.pull/NAME.*        its receipt and lock, and files on their way
"""

from __future__ import annotations

import shutil
from pathlib import Path

from headrace import settings
from headrace.errors import HeadraceError, InvalidRequest, ModelNotFound
from headrace.model import catalogue, store
from headrace.model.embedding import safetensors
from headrace.model.embedding.config import CONFIG, read_config
from headrace.model.embedding.layout import layout
from headrace.model.embedding.wordpiece import TOKENIZER
from headrace.model.sources import spec as sources
from headrace.model.sources.base import Workspace, readable, storing

WEIGHTS = "model.safetensors"
FILES = (WEIGHTS, TOKENIZER, CONFIG)
"""Without these a folder is no embedding model."""


def resolve(name_or_path: str) -> Path:
    """The folder that `--embedding-model NAME` means. Looks only at this machine's disk.

    In this order: a name of the catalogue; the path of a folder; the name of a folder in the models
    folder. Raises ModelNotFound, which says how to get it.
    """
    entry = catalogue.find_embedder(name_or_path)
    if entry is not None:
        path = path_of(entry.name)
        if is_model(path):
            return path
        raise ModelNotFound(
            f"the embedding model {entry.name} is not on this machine yet; fetch it "
            f"({readable(entry.num_bytes)}): headrace pull {entry.name}",
            param="model",
        )
    path = sources.path_of(name_or_path)
    if "/" not in name_or_path and not is_model(path):
        path = path_of(name_or_path)
    if is_model(path):
        return path
    raise _unknown(name_or_path, path)


def is_model(path: Path) -> bool:
    """Whether the folder has all that makes an embedding model, whatever is in it."""
    return all((path / name).is_file() for name in FILES)


def path_of(name: str) -> Path:
    """Where a pulled model of that name is."""
    return settings.models_dir() / name


def workspace_of(name: str) -> Workspace:
    """Where it is made."""
    return Workspace(settings.models_dir() / ".pull", name)


def installed() -> list[store.Installed]:
    """Every embedding model in the models folder, by name; a broken one with its problem."""
    folder = settings.models_dir()
    if not folder.is_dir():
        return []
    paths = sorted(folder.iterdir(), key=lambda path: path.name.lower())
    return [_describe(path) for path in paths if path.is_dir() and is_model(path)]


def facts_of(path: Path) -> store.Facts:
    """What the model says about itself. Raises ModelError where it is broken or unreadable."""
    config = read_config(path)
    file = safetensors.read(path / WEIGHTS)
    layout(file, config)
    return store.Facts(
        architecture=config.architecture,
        quantization=file.tensors[_widest(file)].dtype,
        context_length=config.max_tokens,
        licence="",
    )


def remove(name: str) -> Path | None:
    """Delete an embedding model of the models folder, whole or half-fetched; returns its path, or
    None where there is none of that name. Raises InvalidRequest for a folder elsewhere."""
    entry = catalogue.find_embedder(name)
    if "/" in name:
        path = sources.path_of(name)
        if is_model(path) and path.parent != settings.models_dir():
            raise InvalidRequest(f"{path} is not in {settings.models_dir()}; delete it yourself.")
    else:
        path = path_of(entry.name if entry else name)
    workspace = workspace_of(path.name)
    if not is_model(path) and not (entry and path.exists()):
        return None
    with store.locked(workspace), storing(path):
        shutil.rmtree(path)
        workspace.receipt.unlink(missing_ok=True)
        workspace.clear()
    return path


def _widest(file: safetensors.SafetensorsFile) -> str:
    return max(file.tensors.values(), key=lambda tensor: tensor.num_bytes).name


def _describe(path: Path) -> store.Installed:
    receipt = store.receipt_of(workspace_of(path.name))
    facts, problem, num_bytes = None, "", 0
    try:
        num_bytes = sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
        facts = facts_of(path)
    except HeadraceError as error:
        problem = error.message
    except OSError as error:
        problem = str(error)
    return store.Installed(
        name=path.name,
        path=path,
        num_bytes=num_bytes,
        source=receipt.source if receipt else "",
        facts=facts,
        problem=problem,
    )


def _unknown(name: str, path: Path) -> ModelNotFound:
    if path.is_dir():
        missing = ", ".join(each for each in FILES if not (path / each).is_file())
        return ModelNotFound(f"the folder {path} is no embedding model: it lacks {missing}.")
    here = [model.name for model in installed()]
    known = ", ".join(dict.fromkeys((*catalogue.EMBEDDERS, *here)))
    return ModelNotFound(
        f"no embedding model is called {name!r}; there is {known}. Anything else is given as the "
        f"path of a folder with {', '.join(FILES)}.",
        param="model",
    )
