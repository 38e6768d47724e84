"""`headrace bench context`: what each context strategy costs, and what it remembers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from headrace.bench import machine, opening
from headrace.bench.context import report
from headrace.bench.context.run import STRATEGIES, Setup, run
from headrace.commands.telling import told_plainly

_WIDE = 200
QUICK_TURNS, QUICK_WINDOW = 16, 384


@click.command(short_help="What context strategies cost, and what they remember.")
@click.option("--model", metavar="NAME|FILE", help="Default: the default model.")
@click.option("--threads", type=click.IntRange(1), help="Default: one a core.")
@click.option("--turns", type=click.IntRange(4, 200), default=60, show_default=True)
@click.option(
    "--window",
    type=click.IntRange(64),
    default=1024,
    show_default=True,
    help="The most tokens of a prompt, where a strategy leaves something out.",
)
@click.option(
    "--only", type=click.Choice(STRATEGIES), multiple=True, help="This strategy; repeat for more."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--quick", is_flag=True, help=f"{QUICK_TURNS} turns, {QUICK_WINDOW} tokens.")
def context(
    model: str | None,
    threads: int | None,
    turns: int,
    window: int,
    only: tuple[Any, ...],
    as_json: bool,
    quick: bool,
) -> None:
    """Play one synthetic conversation through every strategy, in process.

    Its answers are scripted, so that all strategies see the same history; facts are planted in its
    first two thirds and asked for in the end. A fact is recalled where the prompt that asks for it
    tells it: the small model is not judged. Times are medians and 95th percentiles over the turns;
    turns at which a block of old turns gave way are told apart.

    \b
    Examples:
      headrace bench context --quick
      headrace bench context --only summary --only full --turns 100 --json
    """
    with told_plainly():
        setup = Setup(
            model=opening.model_path(model),
            threads=threads,
            num_turns=QUICK_TURNS if quick else turns,
            window=QUICK_WINDOW if quick else window,
            strategies=only or STRATEGIES,
            has_long=not quick and not only,
        )
        with _showing(setup.num_steps) as step:
            plays, long = run(setup, step)
    rows = [report.row(played) for played in plays]
    bars = report.bars(plays, long, setup.window)
    if as_json:
        click.echo(json.dumps(_found(setup, rows, bars), indent=2))
        return
    console = Console(width=_WIDE)
    console.print(report.table(rows, setup.window))
    if bars:
        console.print(report.bars_table(bars))


def _found(setup: Setup, rows: list[dict[str, Any]], bars: list[report.Bar]) -> dict[str, Any]:
    return {
        "cpu": machine.cpu_name(),
        "num_turns": setup.num_turns,
        "window": setup.window,
        "strategies": rows,
        "bars": [
            {
                "name": bar.name,
                "measured": round(bar.measured, 3),
                "at_most": round(bar.bar, 3),
                "unit": bar.unit,
                "is_held": bar.is_held,
            }
            for bar in bars
        ],
    }


@contextmanager
def _showing(num_steps: int) -> Iterator[Callable[[], None]]:
    """A bar of turns on stderr; nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("turns"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("turns", total=num_steps)
        yield lambda: bar.advance(task)
