"""`headrace bench context`: what is said, what is planted, and what is judged."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from click.testing import CliRunner

from headrace.bench.context import report
from headrace.bench.context.play import Played, Player, TurnPlayed
from headrace.bench.context.report import Long
from headrace.bench.context.run import Setup
from headrace.bench.context.talk import talk
from headrace.commands.bench import bench
from headrace.testing import FakeEmbedder, scripted_engine
from headrace.wire.ask import Context


@pytest.mark.parametrize("num_turns", [1, 4, 16, 60])
def test_facts_are_told_once_and_asked_for(num_turns: int) -> None:
    said = talk(num_turns)
    assert len(said.turns) == num_turns
    assert said.facts
    for fact in said.facts:
        places = [i for i, turn in enumerate(said.turns) if fact.key in turn.user]
        assert places == [fact.turn]
        assert not any(fact.key in turn.assistant for turn in said.turns)
        assert fact.key not in fact.question
    assert said == talk(num_turns)
    assert said != talk(num_turns, seed=2)


def test_full_recalls_all_and_a_window_what_is_in_it() -> None:
    engine = scripted_engine("Yes.")
    with engine:
        player = Player(engine)
        full = asyncio.run(player.play(talk(6), Context(strategy="full")))
        slid = asyncio.run(player.play(talk(6), Context(strategy="sliding_window", max_tokens=200)))
    assert (full.num_recalled, full.num_facts) == (1, 1)
    assert slid.num_banks < full.num_banks
    assert any(turn.is_block_drop for turn in slid.turns)
    assert not any(turn.is_block_drop for turn in full.turns)


@pytest.mark.parametrize("embedder", [FakeEmbedder(), None], ids=["vectors", "words"])
def test_retrieval_finds_what_its_window_has_let_go_of(embedder: FakeEmbedder | None) -> None:
    said = talk(12)
    with scripted_engine("Yes.") as engine:
        player = Player(engine, embedder)
        slid = asyncio.run(player.play(said, Context(strategy="sliding_window", max_tokens=600)))
        found = asyncio.run(player.play(said, Context(strategy="retrieval", max_tokens=600, k=2)))
    assert (slid.num_recalled, found.num_recalled) == (0, found.num_facts)
    assert max(turn.num_prompt_tokens for turn in found.turns) <= 600
    assert found.index_bytes > 0 and slid.index_bytes == 0
    assert found.searched_by == (("words", "fake-embedder") if embedder else ("words",))
    told = report.searched_by([report.row(slid), report.row(found)])
    assert ("vectors of fake-embedder" if embedder else "by words alone") in told


def turn(ttft_ms: float, *, tokens: int = 100, added_ms: float = 1.0, drop: bool = False) -> Any:
    return TurnPlayed(ttft_ms / 1e3, added_ms / 1e3, tokens, tokens // 2, drop)


def played(strategy: str, *turns: TurnPlayed, recalled: int = 1) -> Played:
    return Played(strategy, turns, recalled, 4, 3, 1000)


def test_bars_are_held_or_missed() -> None:
    plays = [
        played("full", turn(10), turn(10), turn(100, tokens=900)),
        played("sliding_window", turn(12), turn(500, drop=True)),
        played("summary", turn(10, added_ms=3), recalled=2),
        played("retrieval", turn(10, added_ms=16), recalled=4),
    ]
    found = report.bars(plays, Long(0.010, 0.020, 3000, 0.002), window=100)
    assert [bar.is_held for bar in found] == [False, True, False, True, False, True]
    assert [round(bar.bar, 3) for bar in found] == [17.0, 13.0, 2.0, 2, 15.0, 0.4]


def test_without_a_strategy_its_bars_are_missing() -> None:
    assert report.bars([played("full", turn(1))], None, 100) == []


def test_a_row_tells_drops_apart() -> None:
    row = report.row(played("sliding_window", turn(10), turn(500, drop=True)))
    assert row["ttft_ms"] == {"p50": 10.0, "p95": 10.0}
    assert row["ttft_at_drop_ms"] == {"p50": 500.0, "p95": 500.0}
    assert row["computed_tokens"] == 100


def test_the_command_prints_a_table_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Setup] = []

    def fake_run(setup: Setup, step: Any) -> tuple[list[Played], Long | None]:
        asked.append(setup)
        step()
        return [played("full", turn(10)), played("summary", turn(10))], None

    monkeypatch.setattr("headrace.commands.bench_context.run", fake_run)
    monkeypatch.setattr("headrace.bench.opening.model_path", lambda model: model)
    shown = CliRunner().invoke(bench, ["context", "--quick"])
    assert shown.exit_code == 0, shown.output
    assert "summary" in shown.output
    told = CliRunner().invoke(bench, ["context", "--json", "--only", "full"])
    found = json.loads(told.stdout)
    assert [row["strategy"] for row in found["strategies"]] == ["full", "summary"]
    assert (asked[0].num_turns, asked[0].window, asked[0].has_long) == (16, 384, False)
    assert tuple(asked[1].strategies) == ("full",)
