"""Engines taking turns: the same figure, one after the other, round after round.

In: workers and figures. Out: samples, medians, ratios. Thread: the caller's.
Next: `report.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from headrace.bench.figures import Figure, measure, median_ratio
from headrace.bench.peers import Settings, tune
from headrace.bench.remote import Worker

Progress: TypeAlias = Callable[[str], None]

BARS: Mapping[str, Mapping[str, float]] = {
    # figure: least ratio to llama.cpp on the same file and on its Q4_0 copy; least tokens a second
    # on the reference machine (2 Zen 5 cores)
    "decode 1": {"same": 2.1, "q4_0": 1.45, "tok_s": 300},
    "decode 4": {"same": 5.0, "q4_0": 2.6, "tok_s": 900},
    "decode 16": {"same": 6.0, "q4_0": 2.2, "tok_s": 1500},
    "prefill 128": {"same": 7.0, "q4_0": 2.0, "tok_s": 2900},
    "prefill 512": {"same": 8.0, "q4_0": 2.2, "tok_s": 3200},
    "prefill 2048": {"same": 6.0, "q4_0": 2.7},
    "decode 1 at 4096": {"same": 2.8, "q4_0": 2.6, "tok_s": 150},
}
"""What we hold ourselves to on the default model, 2 threads, AVX-512 VNNI."""


@dataclass(frozen=True, slots=True)
class Result:
    """One figure: every round's tokens a second by worker, and what the peers were set to."""

    figure: Figure
    samples: dict[str, list[float]]
    settings: dict[str, Settings] = field(default_factory=dict)

    def median(self, worker: str) -> float:
        return statistics.median(self.samples[worker])

    def ratio(self, ours: str, theirs: str) -> float:
        return median_ratio(self.samples[ours], self.samples[theirs])

    def as_json(self, ours: Sequence[str], peers: Sequence[str]) -> dict[str, Any]:
        return {
            "tok_s": {name: round(self.median(name), 1) for name in self.samples},
            "ratio": {
                name: {peer: round(self.ratio(name, peer), 3) for peer in peers} for name in ours
            },
            "peer_settings": self.settings,
            "samples": {
                name: [round(speed, 1) for speed in speeds] for name, speeds in self.samples.items()
            },
        }


def compare(
    ours: Sequence[Worker],
    peers: Sequence[Worker],
    figures: Iterable[Figure],
    repeats: int,
    progress: Progress,
) -> Iterable[Result]:
    """Yield each figure as it is done. The order of turns rotates, so that none always follows the
    same neighbour."""
    workers = [*ours, *peers]
    for figure in figures:
        settings = {}
        for peer in peers:
            progress(f"{figure.name}: finding {peer.name}'s best settings")
            settings[peer.name] = tune(peer, figure)
        for worker in ours:
            measure(worker, figure, -1)
        samples: dict[str, list[float]] = {worker.name: [] for worker in workers}
        for repeat in range(repeats):
            start = repeat % len(workers)
            for worker in workers[start:] + workers[:start]:
                progress(f"{figure.name}: round {repeat + 1} of {repeats}, {worker.name}")
                samples[worker.name].append(measure(worker, figure, repeat))
        for worker in workers:
            worker.forget()
        yield Result(figure, samples, settings)
