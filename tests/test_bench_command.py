"""`headrace bench`: what it prints, and how it finds or makes a Python for llama.cpp."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from headrace.bench import opening, peers, run
from headrace.bench.compare import Result
from headrace.bench.figures import decode
from headrace.commands.bench import bench
from headrace.errors import BenchError

FOUND = {
    "model": "m",
    "quantization": "Q4_1",
    "cpu": "c",
    "isa": "avx2",
    "threads": 2,
    "bandwidth_gb_s": 40.0,
    "load_s": 0.5,
    "rss_mb": 150.0,
    "peak_rss_mb": 160.0,
    "kv_pool_mb": 10.0,
    "foreign_cores": 0.9,
    "step_us": {"decode 1": {"plan": 10.0, "model": 3000.0, "python_share": 0.031}},
}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[run.Setup]:
    """Replaces the measuring; collects what was asked for."""
    asked: list[run.Setup] = []

    def fake_run(setup: run.Setup, *_: Any) -> tuple[dict[str, Any], list[Result]]:
        asked.append(setup)
        samples = {"engine": [300.0], "core": [320.0], "llama.cpp": [150.0]}
        return dict(FOUND), [Result(decode(1), samples, {"llama.cpp": SETTINGS})]

    monkeypatch.setattr(run, "engine", fake_run)
    monkeypatch.setattr(run, "beside_peers", fake_run)
    monkeypatch.setattr(peers, "peer_python", lambda *_: Path("python"))
    monkeypatch.setattr(opening, "model_path", lambda name: Path(name or "default.gguf"))
    return asked


SETTINGS = {"flash": True, "micro_batch": 256}


def test_json_is_all_that_stdout_gets(measured: list[run.Setup]) -> None:
    done = CliRunner().invoke(bench, ["engine", "--json", "--quick", "--isa", "avx2"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == FOUND
    [setup] = measured
    assert (setup.path, setup.isa, setup.repeats) == (Path("default.gguf"), "avx2", 2)
    assert len(setup.shapes) == 5


def test_tables_for_people(measured: list[run.Setup]) -> None:
    done = CliRunner().invoke(bench, ["engine", "--only", "decode 1"])
    assert done.exit_code == 0, done.output
    for text in ("40.0 GB/s", "0.9 cores busy", "300", "320", "6.2%", "3.1%"):
        assert text in done.stdout
    assert measured[0].shapes == (decode(1),)


def test_peers_are_judged_when_asked(measured: list[run.Setup]) -> None:
    arguments = ["peers", "--peer-weights", "same", "--model", "x.gguf"]
    done = CliRunner().invoke(bench, arguments)
    assert "2.00" in done.stdout and "micro-batch 256" in done.stdout and "met" not in done.stdout
    done = CliRunner().invoke(bench, [*arguments, "--bars"])
    assert "MISSED: 2.00 x llama.cpp (≥ 2.1)" in done.stdout
    assert "met: 300 tok/s" in done.stdout
    assert [setup.path for setup in measured] == [Path("x.gguf")] * 2


def test_an_unknown_figure_gets_the_list(measured: list[run.Setup]) -> None:
    done = CliRunner().invoke(bench, ["engine", "--only", "decode 5"])
    assert done.exit_code == 2
    assert "'decode 5' is none of: decode 1, decode 4" in done.stderr
    assert not measured


def test_errors_are_one_sentence(
    measured: list[run.Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise BenchError("the peer sulks")

    monkeypatch.setattr(run, "engine", fail)
    done = CliRunner().invoke(bench, ["engine"])
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == "headrace: the peer sulks"


class TestBuiltPython:
    @pytest.fixture
    def commands(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """Commands that would have been run."""
        seen: list[list[str]] = []

        def note(command: list[str | Path], folder: Path) -> None:
            seen.append([str(part) for part in command])
            folder.mkdir(exist_ok=True)

        monkeypatch.setattr(peers, "_run", note)
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        monkeypatch.delenv(peers.PYTHON_VARIABLE, raising=False)
        return seen

    def test_is_built_once_and_said(self, home: Path, commands: list[list[str]]) -> None:
        said: list[str] = []
        python = peers.peer_python(None, said.append)
        assert python == home / "cache/peer/bin/python"
        assert peers.peer_python(None, said.append) == python
        assert len(said) == 1 and "minutes" in said[0]
        make, install = commands
        assert make[1:3] == ["-m", "venv"]
        assert install[0] == str(python) and peers.REQUIREMENT in install
        assert "llama-cpp-python" in install[install.index("--no-binary") + 1]

    def test_a_failed_build_is_tried_again(
        self, home: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> None:
            raise BenchError("no compiler")

        monkeypatch.setattr(peers, "_run", fail)
        with pytest.raises(BenchError):
            peers.peer_python(None, print)
        monkeypatch.undo()
        assert not (home / "cache/peer/ready").exists()


def test_requantizing_is_kept(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"weights")
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\n[ "$2" = quantize ] && cp "$3" "$4" && echo x >> "$4"\n')
    stub.chmod(0o755)
    made = peers.requantized(model, stub, 2, lambda _: None)
    assert made.parent == home / "cache" and made.read_bytes() == b"weightsx\n"
    stub.unlink()
    assert peers.requantized(model, stub, 2, lambda _: None) == made
    model.write_bytes(b"other weights")
    with pytest.raises(OSError, match="python"):
        peers.requantized(model, stub, 2, lambda _: None)
