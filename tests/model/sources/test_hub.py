from __future__ import annotations

import errno
import hashlib
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.errors import SourceUnavailable, StorageError
from headrace.model import store
from headrace.model.sources import hub
from headrace.model.sources.spec import HubSpec
from support import pulling
from support.models import model_bytes
from support.web import FileServer

BODY = model_bytes(100_000)
OTHER = model_bytes(50_000, salt=b"8")
COMMIT = "a" * 40
REPO = "org/tiny-GGUF"


def serve_hub(web: FileServer, files: dict[str, bytes]) -> dict[str, str]:
    """Make `web` a hub with one repository of these files; returns the user's environment."""
    siblings = []
    for name, body in files.items():
        sha256 = hashlib.sha256(body).hexdigest()
        lfs = {"sha256": sha256, "size": len(body), "pointerSize": 134}
        siblings.append({"rfilename": name, "size": len(body), "blobId": "b" * 40, "lfs": lfs})
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
    return {"HF_ENDPOINT": web.url}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's shared cache, away from the user's own."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hf" / "hub"


def test_the_file_stays_in_the_shared_cache_and_has_a_name_here(
    home: Path, cache: Path, web: FileServer
) -> None:
    env = serve_hub(web, {"tiny.Q8_0.gguf": OTHER, "tiny.Q4_K_M.gguf": BODY, "README.md": b"hi"})
    done = pulling.run(f"hf:{REPO}", env=env)
    path = home / "models" / "tiny.Q4_K_M.gguf"
    assert (done.returncode, done.stdout) == (0, f"{path}\n"), done.stderr
    assert path.is_symlink() and path.resolve().is_relative_to(cache.resolve())
    assert path.read_bytes() == BODY
    assert "tiny-GGUF: downloading 100 % (100.0 kB of 100.0 kB)" in done.stderr
    assert "\x1b" not in done.stderr and "\r" not in done.stderr
    assert store.resolve(f"hf:{REPO}") == path

    web.files.clear()  # From now on the hub is not needed.
    again = pulling.run(f"hf:{REPO}", env=env)
    assert (again.returncode, again.stdout) == (0, f"{path}\n"), again.stderr


def test_a_lost_cache_is_filled_again(home: Path, cache: Path, web: FileServer) -> None:
    env = serve_hub(web, {"tiny.Q4_K_M.gguf": BODY})
    assert pulling.run(f"hf:{REPO}:Q4_K_M", env=env).returncode == 0
    shutil.rmtree(cache)
    assert [model.problem for model in store.installed()] == [
        "its file is gone from the shared cache; pull it again"
    ]
    done = pulling.run(f"hf:{REPO}:Q4_K_M", env=env)
    assert done.returncode == 0, done.stderr
    assert (home / "models" / "tiny.Q4_K_M.gguf").read_bytes() == BODY


def test_bytes_other_than_the_hub_promises(home: Path, cache: Path, web: FileServer) -> None:
    env = serve_hub(web, {"tiny.Q4_K_M.gguf": BODY})
    served = web.files[f"/{REPO}/resolve/{COMMIT}/tiny.Q4_K_M.gguf"]
    served.body = bytes(reversed(BODY))
    done = pulling.run(f"hf:{REPO}", env=env)
    assert done.returncode == 1
    assert "is not the file that was promised" in done.stderr
    served.body = BODY
    healed = pulling.run(f"hf:{REPO}", env=env)
    assert healed.returncode == 0, healed.stderr
    assert Path(healed.stdout.strip()).read_bytes() == BODY


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("RepoNotFound", 404, "has no repository 'org/tiny-GGUF'"),
        ("GatedRepo", 403, "asks for a licence to be accepted"),
        ("", 401, "(401). Log in"),
        ("", 500, "(500). Try again later"),
    ],
)
def test_a_repository_that_is_not_for_this_user(
    home: Path, cache: Path, web: FileServer, code: str, status: int, words: str
) -> None:
    web.serve(f"/api/models/{REPO}", b"", statuses=[status] * 9, headers={"X-Error-Code": code})
    done = pulling.run(f"hf:{REPO}", env={"HF_ENDPOINT": web.url})
    assert done.returncode == 1 and done.stderr.count("\n") == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_names_the_folder_of_the_cache(
    home: Path, cache: Path, web: FileServer
) -> None:
    cache.mkdir(parents=True)
    env = serve_hub(web, {"tiny.Q4_K_M.gguf": BODY})
    done = pulling.run(f"hf:{REPO}", env=env, before=pulling.in_small_disk(60, cache))
    assert done.returncode == 1
    assert f"100.0 kB needed in {cache}" in done.stderr and "HF_HOME" in done.stderr


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_cache_that_cannot_be_written(code: int) -> None:
    error = hub._explain(HubSpec(REPO, None), OSError(code, "no"))
    assert isinstance(error, StorageError) and "let HF_HOME" in error.message.replace("L", "l")


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "Check the connection"),
    ],
)
def test_no_hub(home: Path, cache: Path, env: dict[str, str], words: str) -> None:
    done = pulling.run(f"hf:{REPO}", env=env)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_extra(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SourceUnavailable, match=r"pip install 'headrace\[hf\]'"):
        hub.look_up(HubSpec(REPO, None), lambda _: None)


def test_of_two_bars_the_further_one_counts() -> None:
    seen: list[int | None] = []
    bar = hub._bar(lambda progress: seen.append(progress.num_bytes), 100)
    came, on_disk = bar(total=100, initial=0), bar(total=100, initial=0)
    for which, num_bytes in ((came, 60), (on_disk, 20), (came, 40), (on_disk, 80)):
        which.update(num_bytes)
        which.set_postfix_str("9 MB/s", refresh=False)
    assert seen == [60, 60, 100, 100]


def choose(quant: str | None, *names: str) -> str:
    files: Any = [SimpleNamespace(rfilename=name, size=1, lfs=None) for name in names]
    return hub._choose(HubSpec(REPO, quant), files).rfilename


@pytest.mark.parametrize(
    ("quant", "names", "chosen"),
    [
        (None, ("m-f16.gguf", "m-Q8_0.gguf", "m-Q4_K_M.gguf"), "m-Q4_K_M.gguf"),
        (None, ("m-F16.gguf", "m.Q4_0.gguf"), "m.Q4_0.gguf"),
        (None, ("mmproj-F16.gguf", "only-one.gguf"), "only-one.gguf"),
        ("Q8_0", ("m-Q4_K_M.gguf", "m-q8_0.gguf"), "m-q8_0.gguf"),
        ("Q4_K", ("m-Q4_K_M.gguf", "m-IQ4_K.gguf", "m-Q4_K.gguf"), "m-Q4_K.gguf"),
        ("Q4_K_M", ("a/m.gguf", "Q4_K_M/m.gguf"), "Q4_K_M/m.gguf"),
        ("F16", ("m-BF16.gguf", "m-F16.gguf"), "m-F16.gguf"),
        ("sub/m.gguf", ("m.gguf", "sub/m.gguf"), "sub/m.gguf"),
        ("Q4_0", ("Q4_0.gguf",), "Q4_0.gguf"),
    ],
)
def test_the_file_of_a_quantization(quant: str | None, names: tuple[str, ...], chosen: str) -> None:
    assert choose(quant, *names) == chosen


@pytest.mark.parametrize(
    ("quant", "names", "words"),
    [
        (None, ("model.safetensors",), "holds no .gguf file"),
        ("Q2_K", ("m-Q4_K_M.gguf", "m-Q8_0.gguf"), "It has m-Q4_K_M.gguf, m-Q8_0.gguf"),
        (None, ("m-IQ2_M.gguf", "m-IQ1_S.gguf"), "no file of a usual quantization"),
        (None, ("m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"), "split files"),
        ("Q8_0", ("m-Q8_0-00001-of-00002.gguf", "m-Q4_0.gguf"), "split files"),
    ],
)
def test_a_quantization_that_is_not_to_be_had(
    quant: str | None, names: tuple[str, ...], words: str
) -> None:
    with pytest.raises(SourceUnavailable, match=words):
        choose(quant, *names)
