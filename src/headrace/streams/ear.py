"""The engine's reader of one prompt: what is said goes to the loop, or to a bypass before it.

In: events from the mailbox. Out: the same, in order, each with the moment when it came.
Thread: both; its lock is held for moments. Next: `pump.py`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from headrace.events import Delta, Event, Failed, Finished


class Bypass(Protocol):
    """Takes deltas on the engine thread, before the log has them."""

    position: int
    """Up to this number, the log's events were taken by it or by who opened it. Written on the
    loop, when the log has them."""

    def take(self, events: Sequence[Event]) -> bool:
        """Engine thread: False where it cannot, and then nothing of them. Raises nothing."""


class Hearer(Protocol):
    """Whom an ear tells what it heard."""

    def hear(
        self, events: Sequence[Event], now: float, *, taken_by: Bypass | None = None
    ) -> None: ...


_LATEST_S = 0.05
"""How long the log may not know of what was taken early, while more of it comes."""


class Ear:
    """The engine's reader of one prompt's choices.

    With a bypass, deltas may have been taken when they come here: the loop hears of them now and
    then, for the log. What was handed over the usual way closes the bypass, so that nothing
    overtakes it; in the log, all events stand in the order in which they were said.
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
        self._is_busy = False
        """The loop was woken for many readers the last time: a bypass would not be used."""
        self._num_on_their_way = 0
        """Hand-overs to the loop that have not arrived."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    @property
    def is_busy(self) -> bool:
        return self._is_busy

    def open_bypass(self, bypass: Bypass) -> bool:
        with self._lock:
            if self._is_busy or self._num_on_their_way or self._early or self._bypass is not None:
                return False
            self._bypass = bypass
            return True

    def close_bypass(self, bypass: Bypass) -> None:
        with self._lock:
            if self._bypass is bypass:
                self._bypass = None

    def receive_early(self, events: Sequence[Event], is_busy: bool) -> bool:
        with self._lock:
            self._is_busy = is_busy
            bypass, now = self._bypass, time.perf_counter()
            if bypass is None or is_busy or not _are_deltas(events) or not bypass.take(events):
                self._bypass = None
                self._num_on_their_way += 1
                return False
            self._early.append((events, now, bypass))
            is_late = now - self._early[0][1] > _LATEST_S
        if is_late:
            with suppress(RuntimeError):  # the loop is closed: nobody asks any more
                self._loop.call_soon_threadsafe(self.catch_up)
        return True

    def receive(self, events: Sequence[Event]) -> None:
        self.catch_up()
        with self._lock:
            self._num_on_their_way -= 1
        self.num_open -= sum(isinstance(event, (Finished, Failed)) for event in events)
        first = self._first_choice
        if first:
            events = [replace(event, choice=event.choice + first) for event in events]
        self._hearer.hear(events, time.perf_counter())

    def catch_up(self) -> None:
        """Let the pump hear of what was taken early."""
        with self._lock:
            early, self._early = self._early, []
        for events, at, bypass in early:
            self._hearer.hear(events, at, taken_by=bypass)


def _are_deltas(events: Sequence[Event]) -> bool:
    return all(type(event) is Delta for event in events)
