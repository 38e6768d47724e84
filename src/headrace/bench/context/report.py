"""What plays showed, as the guide's table with measured figures, and beside the bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from headrace.bench.context.play import Played, TurnPlayed
from headrace.bench.figures import percentile
from headrace.model.catalogue import DEFAULT_EMBEDDER

SLIDING_RATIO = 1.3
FULL_RATIO = 1.5
SUMMARY_MS = 2.0
RETRIEVAL_MS = 15.0
FORGOTTEN_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Long:
    """Turn 10 with a long history beside turn 1, all of it kept."""

    first_s: float
    tenth_s: float
    num_history: int
    """Tokens before turn 10's own."""
    attention_s: float
    """What the history's length alone costs for as many new tokens."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One thing that must hold."""

    name: str
    measured: float
    bar: float
    unit: str

    @property
    def is_held(self) -> bool:
        return self.measured <= self.bar


def row(played: Played) -> dict[str, Any]:
    """The figures of one strategy, in milliseconds and MB."""
    turns = played.turns
    steady = [turn for turn in turns if not turn.is_block_drop]
    drops = [turn for turn in turns if turn.is_block_drop]
    return {
        "strategy": played.strategy,
        "num_turns": len(turns),
        "num_block_drops": len(drops),
        "max_prompt_tokens": max(turn.num_prompt_tokens for turn in turns),
        "banks": played.num_banks,
        "memory_mb": round(played.num_banks * played.bank_bytes / 1e6, 2),
        "added_ms": _ms([turn.added_s for turn in turns]),
        "ttft_ms": _ms([turn.ttft_s for turn in steady]),
        "ttft_at_drop_ms": _ms([turn.ttft_s for turn in drops]),
        "computed_tokens": sum(t.num_prompt_tokens - t.num_cached_tokens for t in turns),
        "recalled": played.num_recalled,
        "facts": played.num_facts,
        "index_mb": round(played.index_bytes / 1e6, 2),
        "searched_by": list(played.searched_by),
        "summaries_s": [round(seconds, 3) for seconds in played.summary_s],
        "turns": [_turn(turn) for turn in turns],
    }


def bars(plays: Sequence[Played], long: Long | None, window: int) -> list[Bar]:
    """What is measured beside what it must be."""
    by_name = {played.strategy: played for played in plays}
    found = []
    if long is not None:
        most = FULL_RATIO * long.first_s + long.attention_s
        name = f"full: turn 10 after {long.num_history} tokens, beside turn 1 and its attention"
        found.append(Bar(name, long.tenth_s * 1e3, most * 1e3, "ms"))
    full, sliding, summary = (by_name.get(n) for n in ("full", "sliding_window", "summary"))
    if full and sliding and (same := _at(full, window)):
        steady = [turn.ttft_s for turn in sliding.turns if not turn.is_block_drop]
        name = "sliding_window: p95 between drops, beside p50 of full at that length"
        most = SLIDING_RATIO * percentile(same, 50)
        found.append(Bar(name, percentile(steady, 95) * 1e3, most * 1e3, "ms"))
    if summary:
        added = [turn.added_s for turn in summary.turns]
        found.append(
            Bar("summary: added on the critical path, p95", percentile(added, 95) * 1e3,
                SUMMARY_MS, "ms")
        )  # fmt: skip
    if summary and sliding:
        name = "summary: facts forgotten, beside sliding_window"
        forgotten = summary.num_facts - summary.num_recalled
        most = sliding.num_facts - sliding.num_recalled - 1
        found.append(Bar(name, forgotten, most, "facts"))
    if retrieval := by_name.get("retrieval"):
        found += _retrieval_bars(retrieval)
    return found


def _retrieval_bars(played: Played) -> list[Bar]:
    added = percentile([turn.added_s for turn in played.turns], 95) * 1e3
    forgotten = played.num_facts - played.num_recalled
    most = FORGOTTEN_SHARE * played.num_facts
    return [
        Bar("retrieval: added on the critical path, p95", added, RETRIEVAL_MS, "ms"),
        Bar("retrieval: facts forgotten", forgotten, most, "facts"),
    ]


def searched_by(rows: Sequence[dict[str, Any]]) -> str:
    """What `retrieval` found things by, for people; empty where it was not played."""
    names = next((row["searched_by"] for row in rows if row["searched_by"]), ())
    if not names:
        return ""
    if len(names) > 1:
        return f"retrieval: by words and by vectors of {names[1]}"
    return (
        f"retrieval: by words alone, as {DEFAULT_EMBEDDER} is not on this machine "
        f"(headrace pull {DEFAULT_EMBEDDER})"
    )


def table(rows: Sequence[dict[str, Any]], window: int) -> Table:
    shown = Table(
        title=f"context strategies, {window} tokens (full: all)", caption=searched_by(rows) or None
    )
    for title in (
        "strategy", "longest prompt", "banks", "MB", "on disk, MB", "added p50 / p95 ms",
        "TTFT p50 / p95 ms", "at a drop, p50 ms", "tokens computed", "facts",
    ):  # fmt: skip
        shown.add_column(title, justify="left" if title == "strategy" else "right")
    for one in rows:
        drop = one["ttft_at_drop_ms"]
        shown.add_row(
            one["strategy"],
            f"{one['max_prompt_tokens']:,}",
            f"{one['banks']}",
            f"{one['memory_mb']:.1f}",
            f"{one['index_mb']:.1f}" if one["index_mb"] else "",
            _pair(one["added_ms"]),
            _pair(one["ttft_ms"]),
            f"{drop['p50']:.1f} ({one['num_block_drops']}x)" if drop else "",
            f"{one['computed_tokens']:,}",
            f"{one['recalled']} / {one['facts']}",
        )
    return shown


def bars_table(found: Sequence[Bar]) -> Table:
    shown = Table(title="bars")
    for title in ("bar", "measured", "at most", ""):
        shown.add_column(title, justify="left" if title in ("bar", "") else "right")
    for bar in found:
        verdict = "[green]held[/green]" if bar.is_held else "[red]missed[/red]"
        shown.add_row(
            bar.name, f"{bar.measured:.2f} {bar.unit}", f"{bar.bar:.2f} {bar.unit}", verdict
        )
    return shown


def _at(full: Played, window: int) -> list[float]:
    """First tokens of prompts about as long as a window's are."""
    return [turn.ttft_s for turn in full.turns if window / 2 <= turn.num_prompt_tokens <= window]


def _ms(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {f"p{p}": round(percentile(values, p) * 1e3, 3) for p in (50, 95)}


def _pair(found: dict[str, float] | None) -> str:
    return f"{found['p50']:.2f} / {found['p95']:.2f}" if found else ""


def _turn(turn: TurnPlayed) -> dict[str, Any]:
    return {
        "ttft_ms": round(turn.ttft_s * 1e3, 3),
        "added_ms": round(turn.added_s * 1e3, 3),
        "prompt_tokens": turn.num_prompt_tokens,
        "cached_tokens": turn.num_cached_tokens,
        "is_block_drop": turn.is_block_drop,
    }
