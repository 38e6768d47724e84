"""Embedding models that no catalogue knows: from a folder, and from the hub."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from headrace.errors import HashMismatch, InvalidRequest, SourceUnavailable, StorageError
from headrace.model.embedding import folder
from headrace.model.pull import pull
from support import pulling
from support.embedding_models import write_model, write_pooling
from support.web import FileServer

COMMIT = "c" * 40
REPO = "org/tiny-v1.5"
PARTS = ("model.safetensors", "tokenizer.json", "config.json", "1_Pooling/config.json")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A model, and things beside it that are none of ours."""
    made = write_model(tmp_path / "tiny-v1.5")
    write_pooling(made, mean_tokens=True)
    (made / "README.md").write_text("hi")
    return made


def contents(of: Path) -> dict[str, bytes]:
    return {part: (of / part).read_bytes() for part in PARTS}


def test_a_folder_is_copied_and_kept_when_the_original_goes(home: Path, made: Path) -> None:
    original = contents(made)
    pulled = pull(str(made))
    for path in made.rglob("*"):
        if path.is_file():
            path.unlink()
    assert pulled.is_new and pulled.path == home / "models" / "tiny-v1.5"
    assert pulled.num_bytes == sum(map(len, original.values()))
    assert contents(pulled.path) == original and not (pulled.path / "README.md").exists()
    assert folder.resolve("tiny-v1.5") == pulled.path
    (listed,) = folder.installed()
    assert (listed.name, listed.source, listed.problem) == ("tiny-v1.5", f"file:{made}", "")


def test_a_folder_that_has_changed_is_copied_again(home: Path, made: Path) -> None:
    assert pull(str(made)).is_new
    assert not pull(str(made)).is_new
    write_model(made, seed=2)
    again = pull(str(made))
    assert again.is_new and contents(again.path) == contents(made)


def test_a_name_that_something_else_has(home: Path, made: Path, tmp_path: Path) -> None:
    pulled, before = pull(str(made)), contents(made)
    other = write_model(tmp_path / "other" / "tiny-v1.5", seed=2)
    write_pooling(other, mean_tokens=True)
    with pytest.raises(StorageError, match="is something else"):
        pull(str(other))
    assert contents(pulled.path) == before
    assert contents(pull(str(other), save_as="mine").path) == contents(other)
    assert contents(pull(str(other), force=True).path) == contents(other)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "x.gguf"])
def test_what_can_be_no_name(home: Path, made: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be the name"):
        pull(str(made), save_as=name or " /")


def test_weights_other_than_were_promised(home: Path, made: Path) -> None:
    weights = hashlib.sha256((made / "model.safetensors").read_bytes()).hexdigest()
    with pytest.raises(HashMismatch):
        pull(str(made), sha256="0" * 64)
    assert not (home / "models" / made.name).exists()
    assert pull(str(made), sha256=weights).sha256 == weights


def test_a_folder_without_a_model(home: Path, made: Path) -> None:
    (made / "tokenizer.json").unlink()
    with pytest.raises(SourceUnavailable, match=r"is a folder without tokenizer\.json"):
        pull(str(made))


def test_a_repository_without_gguf_files_is_an_embedding_model(
    home: Path, made: Path, web: FileServer, tmp_path: Path
) -> None:
    siblings = []
    for name, body in {**contents(made), "README.md": b"hi"}.items():
        sha256 = hashlib.sha256(body).hexdigest()
        siblings.append({"rfilename": name, "size": len(body), "blobId": "b" * 40})
        web.serve(
            f"/{REPO}/resolve/{COMMIT}/{name}",
            body,
            etag=f'"{sha256}"',
            headers={"X-Repo-Commit": COMMIT},
        )
    info = {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings}
    web.serve(
        f"/api/models/{REPO}",
        json.dumps(info).encode(),
        headers={"Content-Type": "application/json"},
    )
    # An empty HF_HUB_CACHE would be the folder in which the tests run.
    cache = str(tmp_path / "hf" / "hub")
    env = {"HF_ENDPOINT": web.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_CACHE": cache}
    done = pulling.run(f"hf:{REPO}", env=env)
    path = home / "models" / "tiny-v1.5"
    assert (done.returncode, done.stdout) == (0, f"{path}\n"), done.stderr
    assert contents(path) == contents(made)
    assert not any("README" in asked.path for asked in web.asked)
