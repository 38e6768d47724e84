"""The scripts that compare servers: their arithmetic and their bars, and the engine alone."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.bench.serve import alone
from headrace.errors import BenchError
from headrace.testing import scripted_engine

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script by name."""
    monkeypatch.syspath_prepend(str(BENCH))

    def load(name: str) -> Any:
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    return load


def found(total: float, per_stream: float, ttft_ms: float) -> dict[str, Any]:
    speeds = {"total": total, "per_stream": per_stream}
    return {"errors": {}, "tok_s": speeds, "ttft_ms": {"p50": ttft_ms}}


def test_ratios_are_those_of_neighbours(script: Any) -> None:
    servers = script("servers")
    rounds = servers.Rounds()
    for ours, theirs in ((400, 200), (300, 100), (100, 90)):
        rounds.add(servers.OURS, 4, found(ours, 1, 1))
        rounds.add(servers.Q4_0, 4, found(theirs, 1, 1))
    bar = servers.Bar(4, "total", servers.Q4_0, 2.0)
    # Of the medians it would be 3.
    assert rounds.judged(bar) == ("c=4 tok/s total: 2.00 x llama-server Q4_0 (≥ 2)", True)
    assert rounds.judged(servers.Bar(4, "total", servers.Q4_0, 2.1))[1] is False
    assert rounds.judged(servers.Bar(4, "total", servers.SAME, 2.0)) is None


def test_latencies_are_held_from_above(script: Any) -> None:
    servers = script("servers")
    rounds = servers.Rounds()
    rounds.add(servers.OURS, 1, found(1, 1, 60.0))
    bar = servers.Bar(1, "ttft_ms", None, 65, is_at_most=True)
    assert rounds.judged(bar) == ("c=1 TTFT p50: 60.0 ms (≤ 65)", True)
    assert rounds.judged(servers.Bar(1, "ttft_ms", None, 55, is_at_most=True))[1] is False


def test_every_bar_names_what_is_measured(script: Any) -> None:
    servers = script("servers")
    for bar in servers.BARS:
        assert bar.concurrency in servers.NUM_REQUESTS and bar.figure in servers.NAMES
        assert bar.beside in (None, servers.ALONE, servers.SAME, servers.Q4_0)


def test_errors_spoil_a_comparison(script: Any) -> None:
    servers = script("servers")
    with pytest.raises(BenchError, match="llama-server failed with 4 clients"):
        servers.Rounds().add(servers.SAME, 4, {**found(1, 1, 1), "errors": {"timeout": 1}})


def test_quantize_is_looked_for_beside_the_server(script: Any, home: Path, tmp_path: Path) -> None:
    servers = script("servers")
    model, program = tmp_path / "m.gguf", tmp_path / "llama-server"
    model.write_bytes(b"weights")
    with pytest.raises(BenchError, match="--q4-0"):
        servers.requantized(program, model)
    quantize = tmp_path / "llama-quantize"
    quantize.write_text('#!/bin/sh\ncp "$2" "$3"; echo "$4" >> "$3"\n')
    quantize.chmod(0o755)
    made = servers.requantized(program, model)
    assert made.read_bytes() == b"weightsQ4_0\n" and made.is_relative_to(home)
    quantize.unlink()
    assert servers.requantized(program, model) == made


def test_the_server_pays_for_what_the_engine_does_not(
    script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = {"server": [300.0, 310.0], "alone": [200.0, 205.0], "bare": [330.0, 320.0]}
    script("server_cost").show_costs(1, costs, 120.0)
    said = capsys.readouterr().out
    assert said.startswith("met    c=1: the server's own 102 µs a token (process 305")
    assert "rounds 100, 105" in said


def test_the_fake_engine_alone_tells_its_tokens(
    script: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server_cost = script("server_cost")
    monkeypatch.setattr(server_cost, "_fake_engine", scripted_engine)
    monkeypatch.setattr(server_cost, "WARMUP_S", 0.01)
    server_cost.be_alone(2, 0.05)
    told = json.loads(capsys.readouterr().out)
    assert told["cpu_s"] > 0
    assert told["num_tokens"] >= 128 and told["num_tokens"] % 64 == 0


def test_the_engine_alone_gets_the_servers_load() -> None:
    plan = alone.plan_of(4, 12, 1)
    assert (str(plan.arrivals), plan.num_requests, plan.num_warmup) == ("4 at a time", 12, 4)
    asked = {"do": "load", "concurrency": 2, "num_requests": 3, "seed": 1}
    with scripted_engine() as engine:
        told = alone.answer(engine, json.dumps(asked))
    assert (told["num_requests"], told["tokens"]["completion"]) == (3, 192)
    json.dumps(told)


def test_sides_take_turns(script: Any) -> None:
    servers = script("servers")
    asked: list[tuple[str, int, int]] = []

    def side(name: str) -> Any:
        def ask(concurrency: int, num_requests: int, seed: int) -> dict[str, Any]:
            assert num_requests == servers.QUICK_NUM_REQUESTS[concurrency]
            asked.append((name, concurrency, seed))
            return found(1, 1, 1)

        return ask

    sides = {name: side(name) for name in "ab"}
    rounds = servers.compare(sides, 2, servers.QUICK_NUM_REQUESTS, lambda text: None)
    assert [one[0] for one in asked] == ["a", "b"] * 3 + ["b", "a"] * 3
    assert len(rounds.samples["a", 16, "total"]) == 2
