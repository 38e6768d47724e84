"""The engine's reader of one prompt: what is said goes to the loop, or to a bypass before it.

In: events from the mailbox. Out: the same, in order, each with the moment when it came.
Thread: both; its lock is held for moments. Next: `pump.py`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from headrace.events import Delta, Event, Failed, Finished


class Bypass(Protocol):
    """Takes deltas as they come, for one reader: before the log has them, on the engine thread, or
    in the same turn of the loop."""

    position: int
    """Up to this number, the log's events were taken by it or by who opened it. Written on the
    loop, when the log has them."""

    def take(self, events: Sequence[Event], *, is_early: bool) -> bool:
        """Either thread; the engine's where `is_early`. False where it cannot, and then nothing of
        them. Raises nothing."""

    def closed(self) -> None:
        """On the loop: it is not called again, and what it did not take is in the log."""


class Unread:
    """A bypass that goes nowhere."""

    def __init__(self, position: int) -> None:
        self.position = position

    def take(self, events: Sequence[Event], *, is_early: bool) -> bool:
        return True

    def closed(self) -> None:
        """The log has the rest."""


class Hearer(Protocol):
    """Whom an ear tells what it heard."""

    def hear(
        self, events: Sequence[Event], now: float, *, taken_by: Bypass | None = None
    ) -> None: ...


class Ear:
    """The engine's reader of one prompt's choices.

    With a bypass, deltas may have been taken when they come here: the loop hears of them now and
    then, for the log. There, all events stand in the order in which they were said.
    """

    def __init__(self, hearer: Hearer, first_choice: int, num_choices: int) -> None:
        self.num_open = num_choices
        """Choices whose end the engine has not said."""
        self._hearer = hearer
        self._first_choice = first_choice
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._bypass: Bypass | None = None
        self._early: list[tuple[Sequence[Event], float, Bypass]] = []

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def open_bypass(self, bypass: Bypass) -> None:
        with self._lock:
            self._bypass = bypass

    def close_bypass(self) -> None:
        """When this returns, no bypass is running on the engine thread, nor will be."""
        with self._lock:
            self._bypass = None

    def receive_early(self, events: Sequence[Event]) -> bool:
        with self._lock:
            bypass = self._bypass
            if bypass is None or not are_deltas(events) or not bypass.take(events, is_early=True):
                return False
            self._early.append((events, time.perf_counter(), bypass))
            return True

    def receive(self, events: Sequence[Event]) -> None:
        self.catch_up()
        if not are_deltas(events):
            self.num_open -= sum(isinstance(event, (Finished, Failed)) for event in events)
        first = self._first_choice
        if first:
            events = [replace(event, choice=event.choice + first) for event in events]
        self._hearer.hear(events, time.perf_counter())

    def catch_up(self) -> None:
        """Let the pump hear of what was taken early."""
        if not self._early:
            return
        with self._lock:
            early, self._early = self._early, []
        for events, at, bypass in early:
            self._hearer.hear(events, at, taken_by=bypass)


def are_deltas(events: Sequence[Event]) -> bool:
    # A plain loop: for the one event that there mostly is, `all` makes a generator.
    for event in events:  # noqa: SIM110
        if type(event) is not Delta:
            return False
    return True
