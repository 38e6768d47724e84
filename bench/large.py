"""Does speed hold for larger shapes: a random 1B-class Q4_K_M-like model, beside llama.cpp.

    .venv/bin/python bench/large.py [--model FILE] [--repeats 5] [--peer-python PATH]

Makes the model in the cache folder once (`make_model.py`, 0.8 GB). Bars: decode reaches 65 % of
measured bandwidth ÷ bytes of the file read a token and is never slower than llama.cpp; prefill 512
is 1.8 times llama.cpp's; prefill 2,048 keeps 80 % of the speed at 512.
"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

import make_model
from headrace.bench import opening, peers, report, run
from headrace.bench.compare import Result
from headrace.bench.figures import decode, prefill
from headrace.commands.bench import print_about, say, showing
from headrace.commands.telling import told_plainly

SHAPES = (decode(1), prefill(512), prefill(2048))
PEER = "llama.cpp"


def made_model() -> Path:
    path = peers.cache_dir() / "random-1b.Q4_K_M.gguf"
    if not path.exists():
        say(f"writing {path} …")
        path.parent.mkdir(parents=True, exist_ok=True)
        make_model.write(path)
    return path


def bars(
    results: list[Result], bandwidth_gb_s: float, path: Path
) -> list[tuple[str, float, float]]:
    """(what, measured, least)."""
    decoding, short, long = results
    possible = bandwidth_gb_s * 1e9 / opening.bytes_per_token(path)
    return [
        ("decode 1, of what bandwidth allows", decoding.median("engine") / possible, 0.65),
        ("decode 1 ÷ llama.cpp", decoding.ratio("engine", PEER), 1.0),
        ("prefill 512 ÷ llama.cpp", short.ratio("engine", PEER), 1.8),
        ("prefill 2048 ÷ prefill 512", long.median("engine") / short.median("engine"), 0.8),
    ]


@click.command(help=__doc__)
@click.option("--model", type=Path, default=None, help="Another .gguf file.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--threads", type=int, default=None)
@click.option("--isa", default=None)
@click.option("--peer-python", type=Path, default=None)
def main(
    model: Path | None,
    repeats: int,
    threads: int | None,
    isa: str | None,
    peer_python: Path | None,
) -> None:
    with told_plainly():
        path = model or made_model()
        setup = run.Setup(path, threads, isa, SHAPES, repeats)
        kinds = {PEER: run.PEERS[PEER]}
        python = peers.peer_python(peer_python, say)
        with showing() as show:
            found, results = run.beside_peers(setup, python, kinds, show, say)
    console = Console(width=160)
    print_about(console, found)
    console.print(report.peers_table(results, list(report.LEVELS), kinds, bars=False))
    for what, measured, least in bars(results, found["bandwidth_gb_s"], path):
        click.echo(
            f"{'met' if measured >= least else 'MISSED':7}{what}: {measured:.2f} (≥ {least})"
        )


if __name__ == "__main__":
    main()
