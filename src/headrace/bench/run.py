"""Whole benchmark runs: start the workers, let them take turns, gather what a report says.

In: a `Setup`. Out: a dictionary for JSON, and each figure's `Result` for tables.
Thread: the caller's. Next: `compare.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.bench import machine, peers, report, worker
from headrace.bench.compare import Progress, Result, compare
from headrace.bench.figures import Figure, measure
from headrace.bench.remote import Worker

PEERS = {"llama.cpp": "same", "llama.cpp Q4_0": "q4_0"}
"""What each peer computes with: the same file, or its requantized copy."""

NUM_BANDWIDTH_RUNS = 3


@dataclass(frozen=True, slots=True)
class Setup:
    """What is measured, and on what."""

    path: Path
    threads: int | None
    isa: str | None
    shapes: Sequence[Figure]
    repeats: int


def engine(setup: Setup, progress: Progress) -> tuple[dict[str, Any], list[Result]]:
    """Our own figures, of the whole engine and of the core alone in turns."""
    foreign = machine.ForeignLoad()
    with ExitStack() as stack:
        ours = start_ours(stack, setup)
        results = list(compare(ours, (), setup.shapes, setup.repeats, progress))
        profiles = _profiles(ours[0], setup.shapes, progress)
        found = about(ours[0])
    found["foreign_cores"] = round(foreign.cores(), 2)
    found |= report.speeds(results, "engine")
    found |= {"core": report.speeds(results, "core"), "step_us": profiles}
    return found, results


def beside_peers(
    setup: Setup, python: Path, kinds: dict[str, str], progress: Progress, say: peers.Say
) -> tuple[dict[str, Any], list[Result]]:
    """Ours and llama.cpp's in turns; `kinds` is the part of `PEERS` that takes part."""
    foreign = machine.ForeignLoad()
    with ExitStack() as stack:
        ours = start_ours(stack, setup)
        num_threads = int(ours[0].about["threads"])
        others = []
        for name, kind in kinds.items():
            path = setup.path
            if kind == "q4_0":
                path = peers.requantized(path, python, num_threads, say)
            others.append(stack.enter_context(peers.start(name, python, path, num_threads)))
        results = list(compare(ours, others, setup.shapes, setup.repeats, progress))
        found = about(ours[0])
    found["foreign_cores"] = round(foreign.cores(), 2)
    found["peers"] = {
        peer.name: {key: peer.about[key] for key in ("version", "weight_bytes", "load_s")}
        for peer in others
    }
    names = [started.name for started in ours]
    found["figures"] = {
        result.figure.name: result.as_json(names, list(kinds)) for result in results
    }
    return found, results


def start_ours(stack: ExitStack, setup: Setup) -> list[Worker]:
    """A worker for each of our levels, the whole engine first."""
    return [
        stack.enter_context(
            Worker(level, worker.command(setup.path, level, setup.threads, setup.isa))
        )
        for level in report.LEVELS
    ]


def about(ours: Worker) -> dict[str, Any]:
    """What every report begins with. Bandwidth is that of reading as many bytes as the weights
    have, measured now, while every worker sleeps."""
    weight_bytes, num_threads = int(ours.about["weight_bytes"]), int(ours.about["threads"])
    bandwidth = statistics.median(
        machine.bandwidth_gb_s(num_threads, weight_bytes) for _ in range(NUM_BANDWIDTH_RUNS)
    )
    return {
        "cpu": machine.cpu_name(),
        "bandwidth_gb_s": round(bandwidth, 1),
        **ours.about,
    }


def _profiles(
    whole: Worker, shapes: Sequence[Figure], progress: Progress
) -> dict[str, dict[str, float]]:
    """Where the time of the engine's steps goes, for each decode figure, in µs a step."""
    found = {}
    for figure in shapes:
        if figure.kind == "decode":
            progress(f"{figure.name}: profile")
            measure(whole, figure, 0)
            found[figure.name] = whole.ask("profile")
    return found
