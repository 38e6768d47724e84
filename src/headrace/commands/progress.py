"""How a pull shows on the terminal: a bar for people, plain lines for logs. All on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar

from headrace.model.sources.base import Phase, Progress, Report, readable

LINE_EVERY_PERCENT = 10
LINE_EVERY_BYTES = 64_000_000
"""How often a line is written where the whole size is not known."""

_LONG_PHASES = (Phase.DOWNLOADING, Phase.COPYING)


@contextmanager
def showing(title: str) -> Iterator[Report]:
    """A Report that shows the pull of `title`: drawn on a terminal, else a line every 10 %."""
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(title, lambda line: click.echo(line, err=True)).report
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        yield _Bars(title, bar).report


class _Bars:
    """One bar, which begins anew with each phase."""

    def __init__(self, title: str, bar: Bar) -> None:
        self._title = title
        self._bar = bar
        self._task = bar.add_task(title, total=None)
        self._shown = ("", "")

    def report(self, progress: Progress) -> None:
        if progress.note:
            self._bar.console.print(f"{self._title}: {progress.note}", markup=False)
        shown = (progress.phase, progress.step)
        total = progress.total_bytes
        if shown == self._shown:
            known = {} if total is None else {"total": float(total)}
            self._bar.update(self._task, completed=progress.num_bytes, **known)  # type: ignore[arg-type]
            return
        self._shown = shown
        # Not from 0 to here by an update: what was there before would count as speed.
        words = f"{self._title}: {' '.join(shown).strip()}"
        self._bar.reset(self._task, total=total, completed=progress.num_bytes, description=words)


class _Lines:
    """One line for each phase, and one for each tenth of a download or copy."""

    def __init__(self, title: str, write: Callable[[str], None]) -> None:
        self._title = title
        self._write = write
        self._shown = ("", "")
        self._total: int | None = None
        self._mark = 0

    def report(self, progress: Progress) -> None:
        if progress.note:
            self._write(f"{self._title}: {progress.note}")
        shown = (progress.phase, progress.step)
        words = f"{self._title}: {' '.join(shown).strip()}"
        if shown != self._shown:
            self._shown, self._total, self._mark = shown, None, 0
            self._write(f"{words} ...")
        self._total = progress.total_bytes or self._total
        mark = self._mark_of(progress.num_bytes)
        if mark > self._mark and progress.phase in _LONG_PHASES:
            self._mark = mark
            self._write(f"{words} {self._amount(progress.num_bytes)}")

    def _mark_of(self, num_bytes: int) -> int:
        if not self._total:
            return num_bytes // LINE_EVERY_BYTES
        return num_bytes * 100 // self._total // LINE_EVERY_PERCENT

    def _amount(self, num_bytes: int) -> str:
        if not self._total:
            return readable(num_bytes)
        percent = num_bytes * 100 // self._total
        return f"{percent} % ({readable(num_bytes)} of {readable(self._total)})"
