"""Options that several commands share, and what they come to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click


class _Finite(click.FloatRange):
    """A number, and not one of those that are none or have no end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


ABOVE_0 = _Finite(0, min_open=True)

_F = TypeVar("_F", bound=Callable[..., Any])

MAX_TOKENS = 1024

_MODEL = (
    click.option(
        "--model",
        "-m",
        metavar="NAME|FILE.gguf",
        help="One of `headrace models`, or a file. Default: the default model.",
    ),
    click.option("--threads", type=click.IntRange(1), metavar="N", help="Default: one a core."),
)
_SAMPLING = (
    click.option(
        "--max-tokens",
        type=click.IntRange(1),
        default=MAX_TOKENS,
        show_default=True,
        metavar="N",
        help="The most tokens to generate.",
    ),
    click.option(
        "--temperature",
        "-t",
        type=click.FloatRange(0),
        default=0.0,
        show_default=True,
        metavar="T",
        help="0 always takes the likeliest token; higher is more surprising.",
    ),
    click.option(
        "--top-p",
        type=click.FloatRange(0, 1),
        default=1.0,
        metavar="P",
        help="Keep the likeliest tokens that together have probability P.",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(0),
        default=0,
        metavar="K",
        help="Keep the K likeliest tokens.",
    ),
    click.option(
        "--min-p",
        type=click.FloatRange(0, 1),
        default=0.0,
        metavar="P",
        help="Drop tokens less likely than P times the likeliest.",
    ),
    click.option(
        "--repetition-penalty",
        type=click.FloatRange(0, min_open=True),
        default=1.0,
        metavar="R",
        help="Above 1: say less of what was said.",
    ),
    click.option(
        "--seed",
        type=int,
        metavar="N",
        help="The same seed gives the same answer, always. Default: another each time.",
    ),
    click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        help="End the answer before this text. Can be given several times.",
    ),
    click.option("--system", metavar="TEXT", help="A system message to begin with."),
)


def model_options(command: _F) -> _F:
    """`--model` and `--threads`."""
    return _apply(_MODEL, command)


def sampling_options(command: _F) -> _F:
    """How to answer: the settings of a `Request`, and `--system`."""
    return _apply(_SAMPLING, command)


def _apply(options: tuple[Callable[[_F], _F], ...], command: _F) -> _F:
    for option in reversed(options):
        command = option(command)
    return command
