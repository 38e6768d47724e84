"""`headrace bench`: how fast are we, how fast beside llama.cpp, and how fast as a server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from headrace.bench import figures, opening, peers, report, run
from headrace.bench.compare import Progress
from headrace.bench.figures import Figure
from headrace.commands.bench_context import context
from headrace.commands.bench_serve import serve
from headrace.commands.telling import told_plainly

_WIDE = 200
BUSY_CORES = 0.2
"""So much work of others is worth a warning."""


@click.group(short_help="Measure speed, ours and llama.cpp's.")
def bench() -> None:
    """Measure speed: ours alone, or beside llama.cpp.

    Machines are noisy: figures are medians, ratios come from runs next to each other in time, and
    every report says the memory bandwidth measured in the same run.

    \b
    Examples:
      headrace bench engine --quick
      headrace bench peers --bars
      headrace bench serve http://127.0.0.1:8000/v1 -c 4
      headrace bench context --quick
    """


bench.add_command(serve)
bench.add_command(context)

_MODEL = click.option("--model", metavar="NAME|FILE", help="Default: the default model.")
_THREADS = click.option("--threads", type=click.IntRange(1), help="Default: one a core.")
_ISA = click.option("--isa", help="One of amx, avx512, avx2, portable. Default: the best here.")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
_QUICK = click.option("--quick", is_flag=True, help="Fewer figures; fewer repeats.")
_ONLY = click.option(
    "--only", metavar="FIGURE", multiple=True, help='This figure alone, e.g. "decode 4".'
)


@bench.command(short_help="Our own figures.")
@_MODEL
@_THREADS
@_ISA
@_JSON
@_QUICK
@_ONLY
@click.option("--repeats", type=click.IntRange(1), help="Default: 5, quick 2.")
def engine(
    model: str | None,
    threads: int | None,
    isa: str | None,
    as_json: bool,
    quick: bool,
    only: tuple[str, ...],
    repeats: int | None,
) -> None:
    """Measure decode and prefill of the whole engine and of the core alone.

    Decode: every sequence has a prompt of 128 random tokens and generates 128 more, greedily.
    Prefill: from an empty cache to the first token. Both in tokens a second, medians of the
    repeats; core and engine take turns.

    \b
    Examples:
      headrace bench engine --model my.gguf --json
      headrace bench engine --only "decode 4" --only "prefill 512" --repeats 9
    """
    with told_plainly():
        shapes = _shapes(quick, only)
        setup = run.Setup(
            opening.model_path(model), threads, isa, shapes, repeats or (2 if quick else 5)
        )
        _bench_engine(setup, as_json)


def _bench_engine(setup: run.Setup, as_json: bool) -> None:
    with showing() as show:
        found, results = run.engine(setup, show)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    console = Console(width=_WIDE)
    print_about(console, found)
    console.print(report.engine_table(results))
    console.print(report.split_table(found["step_us"]))


@bench.command("peers", short_help="Ours beside llama.cpp's, on the same file.")
@_MODEL
@_THREADS
@_ISA
@_JSON
@_QUICK
@_ONLY
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--peer-python", type=Path, help="A Python that has llama_cpp.")
@click.option(
    "--peer-weights",
    type=click.Choice(["same", "q4_0", "both"]),
    default="both",
    show_default=True,
    help="What llama.cpp computes with: the same file, its requantized copy in Q4_0, or each.",
)
@click.option("--bars", is_flag=True, help="Judge by what we hold ourselves to.")
def peers_command(
    model: str | None,
    threads: int | None,
    isa: str | None,
    as_json: bool,
    quick: bool,
    only: tuple[str, ...],
    repeats: int,
    peer_python: Path | None,
    peer_weights: str,
    bars: bool,
) -> None:
    """Run llama.cpp on the same file and shapes in the same run, taking turns with us.

    Each engine is in a process of its own; while one is timed the others sleep. llama.cpp gets as
    many threads as we do, and for each figure the settings that are fastest for it here (flash
    attention, micro-batch). It is run by the Python named by --peer-python or
    HEADRACE_PEER_PYTHON, else by this one, else it is built in the cache folder (5 to 10 minutes).

    \b
    Examples:
      headrace bench peers --bars
      headrace bench peers --isa avx2 --peer-weights same --only "decode 1"
    """
    with told_plainly():
        setup = run.Setup(opening.model_path(model), threads, isa, _shapes(quick, only), repeats)
        kinds = {name: kind for name, kind in run.PEERS.items() if peer_weights in (kind, "both")}
        python = peers.peer_python(peer_python, say)
        with showing() as show:
            found, results = run.beside_peers(setup, python, kinds, show, say)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    console = Console(width=_WIDE)
    print_about(console, found)
    console.print(report.peers_table(results, list(report.LEVELS), kinds, bars=bars))
    console.print(report.settings_table(results))


def _shapes(quick: bool, only: Sequence[str]) -> tuple[Figure, ...]:
    known = {figure.name: figure for figure in figures.STANDARD}
    if unknown := [name for name in only if name not in known]:
        raise click.BadParameter(f"{unknown[0]!r} is none of: {', '.join(known)}")
    if only:
        return tuple(known[name] for name in only)
    return figures.QUICK if quick else figures.STANDARD


def print_about(console: Console, found: dict[str, Any]) -> None:
    """The line above every table."""
    console.print(
        f"{found['model']} ({found['quantization']}) · {found['cpu']} · {found['isa']} · "
        f"{found['threads']} threads · {found['bandwidth_gb_s']} GB/s measured · "
        f"loaded in {found['load_s']} s · {found['rss_mb']:,.0f} MB resident "
        f"(peak {found['peak_rss_mb']:,.0f}, of it KV pool {found['kv_pool_mb']:,.0f})"
    )
    if found["foreign_cores"] > BUSY_CORES:
        console.print(
            f"[yellow]other programs kept {found['foreign_cores']} cores busy meanwhile: measure "
            "again when they rest (llama.cpp suffers most from them)[/yellow]"
        )


@contextmanager
def showing() -> Iterator[Progress]:
    """A status line on stderr; plain nothing where that is no terminal."""
    console = Console(stderr=True)
    with console.status("starting") as status:
        yield lambda text: status.update(text)


def say(line: str) -> None:
    """Tell the person at the terminal, beside the output."""
    click.echo(line, err=True)
