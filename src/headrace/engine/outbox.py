"""One step's events on their way out: one wake-up of an event loop for all its readers, or none.

In: events from the engine thread. Out: the same, to each reader in order. Thread: engine, and each
loop's own, as each method says. Next: `stream.py`, `streams/ear.py`.

Waking a loop costs more than a token is worth, so a few readers are first asked to take theirs on
the engine thread; their loop hears of that later, and of many readers' tokens at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from headrace.engine.mailbox import Reader
from headrace.errors import HeadraceError
from headrace.events import Event

if TYPE_CHECKING:
    import asyncio

BeforePublish: TypeAlias = Callable[
    [Mapping[Reader, Sequence[Event]]], Mapping[Reader, HeadraceError]
]
"""Engine thread, once a step: keeps a step's events before anybody hears them, of those readers
whose streams are kept. Returns whose could not be kept, and why. Raises nothing."""

_log = logging.getLogger(__name__)

_FEW = 4
"""With more readers than these, one wake-up of their loop costs less than serving each early."""
_LATEST_S = 0.5
"""How long a loop may not hear of what its readers took early."""


class Outbox:
    """One step's events, on their way out. Engine thread only."""

    def __init__(self) -> None:
        self._by_loop: dict[asyncio.AbstractEventLoop | None, dict[Reader, list[Event]]] = {}
        self._crossings: dict[asyncio.AbstractEventLoop, _Crossing] = {}

    def post(self, reader: Reader, event: Event) -> None:
        by_reader = self._by_loop.setdefault(reader.loop, {})
        events = by_reader.get(reader)
        if events is None:
            by_reader[reader] = [event]
        else:
            events.append(event)

    @property
    def events(self) -> Mapping[Reader, Sequence[Event]]:
        """What is to be handed over, in the order of each reader's events."""
        if len(self._by_loop) == 1:
            return next(iter(self._by_loop.values()))
        return {r: events for readers in self._by_loop.values() for r, events in readers.items()}

    def flush(self) -> list[Reader]:
        """Hand over everything: one wake-up for each event loop. Returns the readers whose loop
        has been closed under them; nobody will ever read there."""
        if not self._by_loop:
            return []
        by_loop, self._by_loop = self._by_loop, {}
        lost: list[Reader] = []
        for loop, by_reader in by_loop.items():
            if loop is None:
                _receive_all(by_reader)
                continue
            crossing = self._crossings.get(loop) or self._crossing_to(loop)
            lost += crossing.hand_over(by_reader)
        return lost

    def _crossing_to(self, loop: asyncio.AbstractEventLoop) -> _Crossing:
        """A new one; those to loops that are gone by now are forgotten."""
        crossings = {each: way for each, way in self._crossings.items() if not each.is_closed()}
        crossings[loop] = _Crossing(loop)
        self._crossings = crossings
        return crossings[loop]


class _Crossing:
    """The way from the engine thread to one event loop.

    While anything is under way, nothing is served early: it would overtake that.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._num_sent = 0
        self._num_arrived = 0
        """Written on the loop's thread."""
        self._served_early: dict[Reader, None] = {}
        """Those whose loop has not heard of what they took."""
        self._early_since = 0.0

    def hand_over(self, by_reader: dict[Reader, list[Event]]) -> Sequence[Reader]:
        """Engine thread: one wake-up of the loop, or none. Returns readers as `Outbox.flush`."""
        if len(by_reader) <= _FEW and self._num_sent == self._num_arrived:
            by_reader = self._serve_early(by_reader)
            if not by_reader and time.perf_counter() - self._early_since < _LATEST_S:
                return ()
        early, self._served_early = self._served_early, {}
        self._num_sent += 1
        try:
            self._loop.call_soon_threadsafe(self._arrive, early, by_reader)
        except RuntimeError:  # the loop is closed
            return [*early, *by_reader]
        return ()

    def _serve_early(self, by_reader: dict[Reader, list[Event]]) -> dict[Reader, list[Event]]:
        """Returns what is left for the loop."""
        late: dict[Reader, list[Event]] = {}
        for reader, events in by_reader.items():
            if not _alone(reader.receive_early, events):
                late[reader] = events
                continue
            if not self._served_early:
                self._early_since = time.perf_counter()
            self._served_early[reader] = None
        return late

    def _arrive(self, early: Iterable[Reader], by_reader: Mapping[Reader, list[Event]]) -> None:
        """On the loop's thread."""
        for reader in early:
            _alone(reader.catch_up)
        _receive_all(by_reader)
        self._num_arrived += 1


def _receive_all(by_reader: Mapping[Reader, list[Event]]) -> None:
    for reader, events in by_reader.items():
        _alone(reader.receive, events)


def _alone(act: Callable[..., bool | None], *arguments: Sequence[Event]) -> bool:
    """What a reader says; False where it fails, which is no reason why others should not hear."""
    try:
        return bool(act(*arguments))
    except Exception:
        _log.exception("a reader failed")
        return False
