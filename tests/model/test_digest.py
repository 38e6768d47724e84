"""A model file's digest: computed once, and again when the file is another."""

import hashlib
import os
from pathlib import Path

import pytest

from headrace.errors import ModelError
from headrace.model import digest
from headrace.model.digest import digest_of
from headrace.model.sources.base import sha256_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    return path


@pytest.fixture
def num_read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []

    def counting(path: Path) -> str:
        read.append(path)
        return sha256_of(path)

    monkeypatch.setattr(digest, "sha256_of", counting)
    return read


def expected(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_it_is_computed_once(path: Path, num_read: list[Path]) -> None:
    assert digest_of(path) == digest_of(path) == expected(path)
    assert len(num_read) == 1


def test_through_a_link_it_is_the_same_file(path: Path, num_read: list[Path]) -> None:
    link = path.with_name("link.gguf")
    link.symlink_to(path)
    assert digest_of(link) == digest_of(path)
    assert len(num_read) == 1


@pytest.mark.parametrize("keeps_time", [True, False])
def test_another_file_of_the_same_size(path: Path, keeps_time: bool) -> None:
    digest_of(path)
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"GGUF" + b"\1" * 1000)
    other.replace(path)
    if keeps_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digest_of(path) == expected(path)


def test_a_note_that_means_nothing(path: Path, num_read: list[Path]) -> None:
    for text in ("", "[]", "{}", f"{'0' * 64}  model.gguf\n", '{"sha256": "00"}'):
        path.with_name("model.gguf.sha256").write_text(text)
        assert digest_of(path) == expected(path)
    assert len(num_read) == 5


def test_a_folder_that_cannot_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    assert digest_of(path) == expected(path)
    assert [one.name for one in path.parent.iterdir()] == ["model.gguf"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        digest_of(tmp_path / "model.gguf")
