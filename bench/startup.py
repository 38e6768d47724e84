"""How soon a model is ready, and how much memory it takes.

    .venv/bin/python bench/startup.py [--model FILE] [--repeats 5]

Each repeat is a fresh process that imports the engine, loads the model and makes its KV pool; the
file comes from the page cache, as it does after the first start. Ready: beyond imports. Memory: as
the system counts it, when ready and at its highest until then. The KV pool takes none before it is
used, so the bars leave it out.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import click

from headrace.bench import opening, worker
from headrace.bench.remote import Worker
from headrace.commands.telling import told_plainly
from headrace.model import gguf

READY_BAR_S = 1.0
SPARE_MB = 200


def file_factor(quantization: str) -> float:
    """Packed weights to file: Q5 grows, because its fifth bit is unpacked."""
    return 1.7 if quantization.startswith("Q5") else 1.35


def allowed_mb(path: Path, about: dict[str, Any]) -> float:
    """Resident memory that we allow ourselves beside the KV pool, in 10^6 bytes."""
    file_mb = path.stat().st_size / 1e6
    factor = file_factor(str(about["quantization"]))
    return factor * file_mb + SPARE_MB


def start_once(path: Path) -> tuple[float, dict[str, Any]]:
    """(seconds from the process's start to its first answer, what it said of itself)."""
    begun = time.perf_counter()
    with Worker("headrace", worker.command(path, "engine", None, None)) as started:
        return time.perf_counter() - begun, started.about


@click.command(help=__doc__)
@click.option("--model", default=None, help="A catalogue name or a .gguf file.")
@click.option("--repeats", default=5, show_default=True)
def main(model: str | None, repeats: int) -> None:
    with told_plainly():
        path = opening.model_path(model)
        starts = [start_once(path) for _ in range(repeats)]
    about = starts[-1][1]
    ready_s = statistics.median(float(one["load_s"]) for _, one in starts)
    whole_s = statistics.median(seconds for seconds, _ in starts)
    rss_mb = max(float(one["rss_mb"]) for _, one in starts)
    peak_mb = max(float(one["peak_rss_mb"]) for _, one in starts)
    allowed = allowed_mb(path, about)
    tensor_mb = max(tensor.num_bytes for tensor in gguf.read(path).tensors.values()) / 1e6
    click.echo(f"{path.name}: {path.stat().st_size / 1e6:,.1f} MB, pool {about['kv_pool_mb']} MB")
    click.echo(f"process start to ready, with imports: {whole_s:.2f} s")
    for what, measured, bar, unit in (
        ("ready beyond imports", ready_s, READY_BAR_S, "s"),
        ("resident", rss_mb, allowed, "MB"),
        ("peak at load", peak_mb, allowed + tensor_mb, "MB"),
    ):
        met = "met" if measured <= bar else "MISSED"
        click.echo(f"{met:7}{what}: {measured:,.2f} {unit} (bar {bar:,.2f})")


if __name__ == "__main__":
    main()
