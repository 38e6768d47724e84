"""What a load showed: percentiles, speeds and errors, as a dictionary and as a table.

In: an `Outcome`. Out: a dictionary for JSON, rich tables for a person. Thread: any.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from rich.table import Table

from headrace.bench.figures import percentile
from headrace.bench.serve.answer import Sample
from headrace.bench.serve.load import Outcome

PERCENTS = (50, 90, 95, 99)
LATENCIES = {"ttft_ms": "first token", "itl_ms": "between tokens", "e2e_ms": "whole answer"}


@dataclass(frozen=True, slots=True)
class Targets:
    """What an answer must keep to be counted as good. None: anything goes."""

    ttft_s: float | None = 0.1
    e2e_s: float | None = None

    def are_met(self, sample: Sample) -> bool:
        return (
            sample.error is None
            and (self.ttft_s is None or sample.ttft_s <= self.ttft_s)
            and (self.e2e_s is None or sample.e2e_s <= self.e2e_s)
        )


def summary(outcome: Outcome, targets: Targets) -> dict[str, Any]:
    """Everything that is told, in milliseconds, tokens and seconds."""
    plan, samples = outcome.plan, outcome.samples
    whole = [sample for sample in samples if sample.error is None]
    errors = Counter(sample.error for sample in samples if sample.error is not None)
    return {
        "workload": plan.workload.name,
        "arrivals": str(plan.arrivals),
        "seed": plan.seed,
        "wall_s": round(outcome.wall_s, 3),
        "num_requests": len(samples),
        "requests_s": _rate(len(samples), outcome.wall_s),
        "error_rate": round(errors.total() / len(samples), 4) if samples else 0.0,
        "errors": dict(errors.most_common()),
        "ttft_ms": _percentiles_ms([sample.ttft_s for sample in whole]),
        "itl_ms": _percentiles_ms(list(chain.from_iterable(one.gaps_s for one in whole))),
        "e2e_ms": _percentiles_ms([sample.e2e_s for sample in whole]),
        **_tokens(outcome, whole),
        "goodput": _goodput(outcome, targets),
        "generator": _generator(outcome),
    }


def _percentiles_ms(values_s: Sequence[float]) -> dict[str, float] | None:
    """None where there is nothing to order."""
    if not values_s:
        return None
    return {f"p{percent}": round(percentile(values_s, percent) * 1e3, 3) for percent in PERCENTS}


def _tokens(outcome: Outcome, whole: Sequence[Sample]) -> dict[str, Any]:
    """Speeds count the tokens of all answers, also of those that were cut."""
    samples = outcome.samples
    num_out = sum(sample.num_completion_tokens for sample in samples)
    speeds = [speed for sample in whole if (speed := sample.tokens_per_second) is not None]
    num_chunks = sum(len(sample.token_at) for sample in samples)
    has_usage = all(sample.has_usage for sample in whole)
    return {
        "tok_s": {
            "total": _rate(num_out, outcome.wall_s),
            "per_stream": round(statistics.median(speeds), 1) if speeds else None,
        },
        "tokens": {
            "prompt": sum(sample.num_prompt_tokens for sample in samples),
            "cached": sum(sample.num_cached_tokens for sample in samples),
            "completion": num_out,
            "per_chunk": round(num_out / num_chunks, 2) if num_chunks else None,
            "counted_by": "usage" if has_usage else "chunks",
        },
    }


def _goodput(outcome: Outcome, targets: Targets) -> dict[str, Any]:
    num_good = sum(map(targets.are_met, outcome.samples))
    return {
        "ttft_target_ms": None if targets.ttft_s is None else round(targets.ttft_s * 1e3, 3),
        "e2e_target_ms": None if targets.e2e_s is None else round(targets.e2e_s * 1e3, 3),
        "share": round(num_good / len(outcome.samples), 4) if outcome.samples else 0.0,
        "requests_s": _rate(num_good, outcome.wall_s),
    }


def _generator(outcome: Outcome) -> dict[str, Any]:
    """What the load generator itself took, on what may be the server's own machine."""
    num_out = sum(sample.num_completion_tokens for sample in outcome.samples)
    return {
        "cpu_us_per_token": round(outcome.cpu_s / num_out * 1e6, 1) if num_out else None,
        "cpu_cores": round(outcome.cpu_s / outcome.wall_s, 3) if outcome.wall_s else 0.0,
        "max_late_ms": round(outcome.max_late_s * 1e3, 1),
    }


def _rate(amount: float, seconds: float) -> float:
    return round(amount / seconds, 2) if seconds > 0 else 0.0


def latency_table(found: dict[str, Any]) -> Table:
    """Percentiles of what a client waits for."""
    table = Table(title="milliseconds")
    table.add_column("")
    for percent in PERCENTS:
        table.add_column(f"p{percent}", justify="right")
    for name, title in LATENCIES.items():
        shown = found[name] or {}
        cells = (shown.get(f"p{percent}") for percent in PERCENTS)
        table.add_row(title, *("-" if cell is None else f"{cell:,.1f}" for cell in cells))
    return table


def lines(found: dict[str, Any]) -> list[str]:
    """The rest, a line a thing."""
    tokens, speed = found["tokens"], found["tok_s"]
    goodput, generator = found["goodput"], found["generator"]
    told = [
        f"{found['num_requests']} requests in {found['wall_s']:.1f} s "
        f"({found['requests_s']:g} a second), errors {found['error_rate']:.1%}",
        *(f"  {count} times: {error}" for error, count in found["errors"].items()),
        f"{speed['total']:,.0f} tokens a second in total, "
        f"{speed['per_stream'] or 0:,.0f} per stream once it runs",
        f"{tokens['prompt']:,} prompt tokens ({tokens['cached']:,} cached), "
        f"{tokens['completion']:,} generated, counted by {tokens['counted_by']}, "
        f"{tokens['per_chunk'] or 0:g} a chunk",
        f"good ({_targets(goodput)}): {goodput['share']:.1%}, {goodput['requests_s']:g} a second",
        f"the generator itself: {generator['cpu_us_per_token'] or 0:g} µs of CPU a token, "
        f"{generator['cpu_cores']:.0%} of a core",
    ]
    if generator["max_late_ms"] > 0:
        told.append(f"arrivals sent at most {generator['max_late_ms']:g} ms late")
    return told


def _targets(goodput: dict[str, Any]) -> str:
    named = (("first token", goodput["ttft_target_ms"]), ("whole", goodput["e2e_target_ms"]))
    return ", ".join(f"{what} ≤ {ms:g} ms" for what, ms in named if ms is not None) or "no error"
