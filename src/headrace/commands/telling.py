"""Errors that were raised on purpose, told in one line.

In: a `HeadraceError`. Out: `headrace: what is wrong` on standard error, and an exit code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from headrace.errors import HeadraceError


class Told(click.ClickException):
    """Ends the command with its message."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"headrace: {self.message}", file=file, err=file is None)


class WrongUsage(Told):
    """Where what is wrong was given by whoever called, wherever it was written."""

    exit_code = 2


@contextmanager
def told_plainly() -> Iterator[None]:
    """What is raised on purpose in here ends the command, without a traceback."""
    try:
        yield
    except HeadraceError as error:
        raise Told(error.message) from error
