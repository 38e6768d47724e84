from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import SourceUnavailable
from headrace.model import pull as pulling
from headrace.model.pull import pull
from headrace.model.sources import web as web_source
from support.models import model_bytes
from support.web import FileServer


def test_a_file_is_copied_and_kept_when_the_original_goes(home: Path, tmp_path: Path) -> None:
    original = tmp_path / "mine.gguf"
    original.write_bytes(model_bytes(5000))
    steps: list[pulling.Progress] = []
    pulled = pull(str(original), report=steps.append)
    original.unlink()
    assert pulled.path == home / "models" / "mine.gguf"
    assert pulled.path.read_bytes() == model_bytes(5000)
    assert pulled.is_new
    assert [(s.num_bytes, s.total_bytes) for s in steps if s.phase == pulling.Phase.COPYING] == [
        (5000, 5000)
    ]


def test_a_changed_file_is_copied_again(home: Path, tmp_path: Path) -> None:
    original = tmp_path / "mine.gguf"
    original.write_bytes(model_bytes(100))
    assert pull(str(original)).is_new
    assert not pull(str(original)).is_new
    original.write_bytes(model_bytes(100, salt=b"new"))
    again = pull(str(original))
    assert again.is_new
    assert again.path.read_bytes() == model_bytes(100, salt=b"new")


def test_a_file_of_the_models_folder_is_here_already(home: Path) -> None:
    path = home / "models" / "mine.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(model_bytes(100))
    pulled = pull(str(path))
    assert not pulled.is_new
    assert path.read_bytes() == model_bytes(100)


def test_a_stopped_copy_is_not_continued_from_a_url(
    home: Path, tmp_path: Path, web: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = model_bytes(5_000_000)
    web.serve("/m.gguf", body, cuts=[100_000])
    original = tmp_path / "m.gguf"
    original.write_bytes(model_bytes(3_000_000, salt=b"local"))
    monkeypatch.setattr(web_source, "RETRY_WAITS_S", ())
    with pytest.raises(SourceUnavailable):
        pull(f"{web.url}/m.gguf")

    def stop(progress: pulling.Progress) -> None:
        if progress.phase == pulling.Phase.COPYING:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(str(original), report=stop)
    assert pull(f"{web.url}/m.gguf").path.read_bytes() == body


@pytest.mark.parametrize("name", ["absent.gguf", "folder.gguf"])
def test_what_is_no_file_is_refused(home: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(SourceUnavailable, match=name):
        pull(str(tmp_path / name))
