"""What a neighbour costs: a busy foreign thread, and a long prompt among running streams.

    .venv/bin/python bench/interference.py [--model FILE] [--repeats 5]

1. Decode with nothing else running and beside one process that spins, in turns; the ratio decides.
2. Three streams run through the whole engine; one prompt of 2,048 random tokens after the other
   arrives. Shown: the gaps between the running streams' tokens while a prompt is computed.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import click

from headrace.bench import machine, opening, worker
from headrace.bench.figures import decode, measure, median_ratio, percentile
from headrace.bench.remote import SETTLE_S, Worker
from headrace.bench.whole import Arrivals, EngineRunner
from headrace.commands.telling import told_plainly

NUM_STREAMS = 3
NUM_LONG = 2048
MAX_RUNNING = 3000
KEPT_BAR = 0.45
GAP_BAR_MS = 60.0


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """One foreign thread that never rests, free to move between the cores."""
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)  # until it really spins
        yield
    finally:
        spinning.kill()
        spinning.wait()
        time.sleep(SETTLE_S)


def beside_neighbour(path: Path, num_sequences: int, repeats: int) -> float:
    """The share of quiet decode speed that is left beside a busy neighbour."""
    figure = decode(num_sequences)
    quiet, beside = [], []
    with Worker("headrace", worker.command(path, "engine", None, None)) as started:
        measure(started, figure, -1)
        for repeat in range(repeats):
            quiet.append(measure(started, figure, repeat))
            with busy_neighbour():
                beside.append(measure(started, figure, repeat))
    return median_ratio(beside, quiet)


async def gaps_during_prefill(runner: EngineRunner, num_prompts: int) -> list[float]:
    """Milliseconds between tokens of running streams, where a long prompt was being computed."""
    source = random.Random(1)

    def prompt(num_tokens: int) -> list[int]:
        return [source.randrange(runner.vocab_size) for _ in range(num_tokens)]

    streams = [Arrivals() for _ in range(NUM_STREAMS)]
    running = [
        asyncio.create_task(runner.stream(prompt(128), MAX_RUNNING, arrivals))
        for arrivals in streams
    ]
    await asyncio.sleep(1.0)
    windows = []
    for _ in range(num_prompts):
        begun, long = time.perf_counter(), Arrivals()
        await runner.stream(prompt(NUM_LONG), 1, long)
        windows.append((begun, long.first_at))
        await asyncio.sleep(0.2)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return _gaps_within(streams, windows)


def _gaps_within(streams: list[Arrivals], windows: list[tuple[float, float]]) -> list[float]:
    return [
        (later - earlier) * 1e3
        for arrivals in streams
        for (earlier, _), (later, _) in pairwise(arrivals.deltas)
        if any(begin <= later and earlier <= end for begin, end in windows)
    ]


def verdict(what: str, is_met: bool) -> None:
    click.echo(f"{'met' if is_met else 'MISSED':7}{what}")


@click.command(help=__doc__)
@click.option("--model", default=None, help="A catalogue name or a .gguf file.")
@click.option("--repeats", default=5, show_default=True)
def main(model: str | None, repeats: int) -> None:
    foreign = machine.ForeignLoad()
    with told_plainly():
        path = opening.model_path(model)
        for num_sequences in (1, 4, 16):
            kept = beside_neighbour(path, num_sequences, repeats)
            verdict(
                f"decode {num_sequences} beside a busy thread keeps {kept:.0%} "
                f"(bar {KEPT_BAR:.0%})",
                kept >= KEPT_BAR,
            )
        with opening.open_engine(path, None, None) as opened:
            assert isinstance(opened.runner, EngineRunner)
            gaps = opened.runner.run(gaps_during_prefill(opened.runner, repeats))
    click.echo(f"other programs kept {foreign.cores():.2f} cores busy meanwhile")
    p50, p99 = percentile(gaps, 50), percentile(gaps, 99)
    verdict(
        f"{NUM_STREAMS} streams while {NUM_LONG} tokens prefill: token gap p50 {p50:.1f} ms, "
        f"p99 {p99:.1f} ms, most {max(gaps):.1f} ms, {len(gaps)} gaps (bar p99 {GAP_BAR_MS:.0f})",
        p99 <= GAP_BAR_MS,
    )


if __name__ == "__main__":
    main()
