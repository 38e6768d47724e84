from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidRequest, ModelNotFound
from headrace.model import store
from headrace.model.catalogue import CATALOGUE, DEFAULT_MODEL
from headrace.model.pull import pull
from headrace.model.sources.base import Progress, Workspace
from support.models import model_bytes

FILE = CATALOGUE[DEFAULT_MODEL].file_name


def put(home: Path, name: str, content: bytes | None = None) -> Path:
    path = home / "models" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model_bytes(64) if content is None else content)
    return path


def write_gguf(path: Path, file_type: int | None = 15, licence: str | None = "mit") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    if file_type is not None:
        writer.add_file_type(file_type)
    if licence is not None:
        writer.add_license(licence)
    writer.add_tensor("big.weight", np.zeros((64, 64), np.float16))
    writer.add_tensor("small.weight", np.zeros(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_catalogue_name_is_its_file(home: Path) -> None:
    path = put(home, FILE)
    assert store.resolve(DEFAULT_MODEL) == path
    assert store.resolve(DEFAULT_MODEL.upper()) == path


def test_a_catalogue_name_that_is_not_here_says_how_to_get_it(home: Path) -> None:
    with pytest.raises(ModelNotFound, match=f"headrace pull {DEFAULT_MODEL}") as told:
        store.resolve(DEFAULT_MODEL)
    assert told.value.param == "model"
    assert "98.4 MB" in told.value.message


def test_a_file_of_the_folder_is_known_by_its_name(home: Path) -> None:
    path = put(home, "Mine.Q4_0.gguf")
    assert store.resolve("Mine.Q4_0") == path
    assert store.resolve("Mine.Q4_0.gguf") == path


def test_a_path_is_itself(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "here.gguf"
    path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert store.resolve(str(path)) == path
    assert store.resolve("here.gguf") == path
    assert store.resolve("./here.gguf") == path
    assert store.resolve(f"file:{path}") == path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere/absent.gguf", "does not exist"),
        ("./models", "is a folder"),
        ("absent.gguf", "no model is called"),
        ("https://host/m.gguf", "headrace pull 'https://host/m.gguf'"),
        ("hf:org/repo:Q4_0", "headrace pull 'hf:org/repo:Q4_0'"),
        ("smolm2-135m-instruct", f"Did you mean {DEFAULT_MODEL}"),
        ("mine", r"Did you mean Mine\.Q4_0"),
        ("llama3:8b", "`headrace models` lists"),
    ],
)
def test_what_is_not_here_says_what_to_do(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    put(home, "Mine.Q4_0.gguf")
    monkeypatch.chdir(home)
    with pytest.raises(ModelNotFound, match=words):
        store.resolve(name)


@given(st.text())
def test_any_name_is_a_file_or_a_clear_refusal(name: str) -> None:
    with pytest.raises((ModelNotFound, InvalidRequest)):
        store.resolve(f"{name}\x00 certainly not here")


def test_a_source_is_known_by_its_receipt(home: Path, tmp_path: Path) -> None:
    original = tmp_path / "mine.gguf"
    original.write_bytes(model_bytes(64))
    path = pull(str(original), save_as="kept").path
    source = f"file:{original}"
    assert store.find_source(source) == path
    path.unlink()
    assert store.find_source(source) is None


def test_the_list_tells_what_each_file_says(home: Path) -> None:
    write_gguf(home / "models" / "b.gguf")
    write_gguf(home / "models" / "A.gguf", file_type=None, licence=None)
    first, second = store.installed()
    assert (first.name, first.facts) == ("A", store.Facts("llama", "F16", 2048, ""))
    assert (second.name, second.facts) == ("b", store.Facts("llama", "Q4_K_M", 2048, "mit"))
    assert second.num_bytes == second.path.stat().st_size
    assert (second.source, second.problem) == ("", "")


@pytest.mark.parametrize(
    ("file_type", "name"), [(0, "F32"), (3, "Q4_1"), (18, "Q6_K"), (32, "BF16")]
)
def test_file_types_have_llama_cpps_names(home: Path, file_type: int, name: str) -> None:
    write_gguf(home / "models" / "m.gguf", file_type=file_type)
    facts = store.installed()[0].facts
    assert facts is not None and facts.quantization == name


def test_broken_files_are_listed_as_broken(home: Path, tmp_path: Path) -> None:
    write_gguf(home / "models" / "whole.gguf")
    put(home, "cut.gguf", (home / "models" / "whole.gguf").read_bytes()[:100])
    put(home, "empty.gguf", b"")
    put(home, "noise.gguf", bytes(range(256)))
    (home / "models" / "lost.gguf").symlink_to(tmp_path / "gone")
    (home / "models" / "folder.gguf").mkdir()
    put(home, "notes.txt", b"not a model")
    problems = {model.name: model.problem for model in store.installed()}
    assert set(problems) == {"whole", "cut", "empty", "noise", "lost"}
    assert problems.pop("whole") == ""
    assert "pull it again" in problems["lost"]
    assert all(problems.values())


def test_nothing_is_here_before_the_folder_is(home: Path) -> None:
    assert store.installed() == [] and store.unfinished() == []
    assert not home.exists()


def test_removing_a_model(home: Path, tmp_path: Path) -> None:
    original = tmp_path / "mine.gguf"
    original.write_bytes(model_bytes(64))
    path = pull(str(original)).path
    assert store.remove("mine") == path
    assert not path.exists() and store.find_source(f"file:{original}") is None
    assert original.exists()
    put(home, FILE)
    assert store.remove(DEFAULT_MODEL).name == FILE
    with pytest.raises(ModelNotFound):
        store.remove("mine")


def test_removing_a_link_leaves_what_it_points_to(home: Path, tmp_path: Path) -> None:
    cached = tmp_path / "cached"
    cached.write_bytes(model_bytes(64))
    link = home / "models" / "m.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(cached)
    store.remove("m")
    assert not link.is_symlink() and cached.exists()


def test_files_elsewhere_are_not_removed(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"")
    (home / "models").mkdir(parents=True)
    for name in (str(path), str(path.with_suffix("")), "../../mine"):
        with pytest.raises(InvalidRequest, match="delete it yourself"):
            store.remove(name)
    assert path.exists()


@pytest.mark.parametrize(
    "name", ["../m.gguf", "a/m.gguf", ".gguf", ".m.gguf", "m.bin", "m\n.gguf", ""]
)
def test_only_plain_names_are_made(home: Path, name: str) -> None:
    with pytest.raises(InvalidRequest):
        store.workspace_of(name)


def test_a_lock_is_held_by_one_and_waited_for_aloud(home: Path) -> None:
    workspace = store.workspace_of("m.gguf")
    notes: list[Progress] = []
    inner_ran = False

    class GivingUpError(Exception):
        pass

    def give_up(progress: Progress) -> None:
        notes.append(progress)
        raise GivingUpError

    with (
        store.locked(workspace),
        pytest.raises(GivingUpError),
        store.locked(workspace, give_up),
    ):
        inner_ran = True
    assert not inner_ran
    assert "waiting" in notes[0].note
    with store.locked(workspace, give_up):
        inner_ran = True
    assert inner_ran


def test_a_damaged_receipt_counts_for_nothing(home: Path) -> None:
    workspace = Workspace(home / "models" / ".pull", "m.gguf")
    workspace.folder.mkdir(parents=True)
    put(home, "m.gguf")
    for text in ("", "{", "[]", '{"source": "x"}', '{"other": 1}'):
        workspace.receipt.write_text(text)
        assert store.receipt_of(workspace) is None
        assert store.find_source("x") is None
