"""What was measured, as tables for a person and as JSON for a program.

In: results. Out: rich tables, plain dictionaries. Thread: the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from headrace.bench.compare import BARS, Result
from headrace.bench.figures import LONG_CONTEXT, NUM_PROMPT_TOKENS

LEVELS = {"engine": "whole engine", "core": "core alone"}


def speeds(results: Sequence[Result], worker: str) -> dict[str, Any]:
    """One worker's medians in tokens a second, in the shape that scripts rely on."""
    decode = {
        str(result.figure.num_sequences): round(result.median(worker), 1)
        for result in results
        if result.figure.kind == "decode" and result.figure.num_prompt_tokens == NUM_PROMPT_TOKENS
    }
    prefill = {
        str(result.figure.num_prompt_tokens): round(result.median(worker), 1)
        for result in results
        if result.figure.kind == "prefill"
    }
    long = [
        round(result.median(worker), 1)
        for result in results
        if result.figure.num_prompt_tokens == LONG_CONTEXT
    ]
    return {
        "decode_tok_s": decode,
        "prefill_tok_s": prefill,
        f"decode_at_{LONG_CONTEXT}_tok_s": long[0] if long else None,
    }


def engine_table(results: Sequence[Result]) -> Table:
    """Both levels, and what the engine adds to the core's time."""
    table = Table(title="tokens a second, medians")
    table.add_column("figure")
    for title in (*LEVELS.values(), "engine's share of the time", "spread"):
        table.add_column(title, justify="right")
    for result in results:
        whole, core = (result.median(level) for level in LEVELS)
        table.add_row(
            result.figure.name,
            f"{whole:,.0f}",
            f"{core:,.0f}",
            f"{1 - 1 / result.ratio('core', 'engine'):.1%}",
            _spread(result.samples["engine"]),
        )
    return table


def split_table(profiles: Mapping[str, Mapping[str, float]]) -> Table:
    """Microseconds a step by part and Python's share of them, one row a figure."""
    table = Table(title="one decode step of the engine, µs; model and sample are the native core")
    table.add_column("figure")
    parts = list(next(iter(profiles.values()), {}))
    for part in parts:
        table.add_column(part, justify="right")
    for name, profile in profiles.items():
        table.add_row(
            name,
            *(
                f"{profile[part]:.1%}" if part == "python_share" else f"{profile[part]:,.0f}"
                for part in parts
            ),
        )
    return table


def peers_table(
    results: Sequence[Result], ours: Sequence[str], peers: Mapping[str, str], *, bars: bool
) -> Table:
    """`peers` maps a peer's name to the kind of its weights, for the bars: `same` or `q4_0`."""
    table = Table(title="tokens a second, medians; ratio: median of the rounds' ratios")
    table.add_column("figure")
    for name in (*ours, *peers):
        table.add_column(name, justify="right")
    for peer in peers:
        for name in ours:
            table.add_column(f"{name} ÷ {peer}", justify="right")
    if bars:
        table.add_column("bars")
    for result in results:
        cells = [f"{result.median(name):,.0f}" for name in (*ours, *peers)]
        cells += [f"{result.ratio(name, peer):.2f}" for peer in peers for name in ours]
        if bars:
            cells.append("\n".join(verdicts(result, ours[0], peers)))
        table.add_row(result.figure.name, *cells)
    return table


def settings_table(results: Sequence[Result]) -> Table:
    """What each peer was set to, figure by figure: its fastest settings here."""
    peers = list(results[0].settings)
    table = Table(title="fastest settings found for the peers")
    table.add_column("figure")
    for peer in peers:
        table.add_column(peer)
    for result in results:
        chosen = (result.settings[peer] for peer in peers)
        table.add_row(
            result.figure.name,
            *(
                f"flash attention {'on' if one['flash'] else 'off'}, "
                f"micro-batch {one['micro_batch']}"
                for one in chosen
            ),
        )
    return table


def verdicts(result: Result, ours: str, peers: Mapping[str, str]) -> list[str]:
    """One line for each bar of this figure that can be judged; `ours` is held to them."""
    bars = BARS.get(result.figure.name, {})
    found = [
        (f"{result.ratio(ours, peer):.2f} x {peer}", result.ratio(ours, peer), bars[kind])
        for peer, kind in peers.items()
        if kind in bars
    ]
    if "tok_s" in bars:
        speed = result.median(ours)
        found.append((f"{speed:,.0f} tok/s", speed, bars["tok_s"]))
    return [
        f"{'met' if measured >= bar else 'MISSED'}: {text} (≥ {bar:,g})"
        for text, measured, bar in found
    ]


def _spread(samples: Sequence[float]) -> str:
    return f"{min(samples):,.0f}-{max(samples):,.0f}"
