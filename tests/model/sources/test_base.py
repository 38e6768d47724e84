from __future__ import annotations

import errno
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import SourceUnavailable, StorageError
from headrace.model.sources import base


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "Make room"),
        (errno.EDQUOT, "Make room"),
        (errno.EACCES, "may write"),
        (errno.EROFS, "may write"),
        (errno.EFBIG, "ulimit"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_disk_errors_name_the_file_and_the_remedy(tmp_path: Path, code: int, remedy: str) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(StorageError) as told, base.storing(path):
        raise OSError(code, "Input/output error")
    assert str(path) in told.value.message
    assert remedy in told.value.message


def test_a_body_that_fails_still_closes_its_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), base.writing(tmp_path / "part") as part:
        part.write(b"kept")
        raise KeyboardInterrupt
    assert part.closed
    assert (tmp_path / "part").read_bytes() == b"kept"


def test_what_has_no_room_is_refused_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(base.shutil, "disk_usage", lambda _path: Usage(free=999))
    base.require_space(tmp_path / "not" / "there" / "yet", 999)
    with pytest.raises(StorageError, match=r"1\.0 kB needed in .*, 999 B free"):
        base.require_space(tmp_path, 1000)


@pytest.mark.parametrize(
    ("head", "hint"),
    [
        (b"<!DOCTYPE html>", "web page"),
        (b"\n <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"PK\x03\x04", "begins with"),
        (b"", "begins with"),
    ],
)
def test_what_is_no_model_is_told_by_its_first_bytes(
    tmp_path: Path, head: bytes, hint: str
) -> None:
    path = tmp_path / "part"
    path.write_bytes(head)
    with pytest.raises(SourceUnavailable, match=hint):
        base.check_magic(path, "https://host/m.gguf")


@given(st.integers(0, 10**16))
def test_sizes_stay_short(num_bytes: int) -> None:
    text = base.readable(num_bytes)
    number, unit = text.split()
    assert 0 <= float(number) < 1000 or unit == "TB"
    assert unit in {"B", "kB", "MB", "GB", "TB"}


def test_sizes_are_decimal() -> None:
    assert base.readable(98_362_432) == "98.4 MB"
    assert base.readable(999) == "999 B"
    assert base.readable(1000) == "1.0 kB"
    assert base.readable(999_950) == "1.0 MB"
