"""One generation's events, numbered, for as many readers as come.

In: events from the engine, as `pump.py` has read them. Out: the same, to each reader from wherever
it begins. Thread: the event loop. Next: `server/sse.py` and the other transports.

Events are numbered from 0. A log ends when every choice has said its terminal event; after that
nothing can be appended, so each choice has exactly one end. A reader that falls behind finds its
deltas merged: it gets bigger deltas, and harms nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from headrace.events import Event, Failed, Finished, merge_all
from headrace.streams.shelf import Shelf, ShelfFile


class StreamLog:
    """Appended to by one pump; read through any number of views."""

    def __init__(self, num_choices: int) -> None:
        self._num_choices = num_choices
        self._events: Shelf[Event] = Shelf(lambda event: isinstance(event, Failed))
        self._ended: set[int] = set()
        self._waiting: list[asyncio.Future[None]] = []
        self._waiting_for_end: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        return self._events.iterate()

    @property
    def num_choices(self) -> int:
        return self._num_choices

    @property
    def is_over(self) -> bool:
        return len(self._ended) == self._num_choices

    def open_choices(self) -> list[int]:
        """Choices that have not ended."""
        return [choice for choice in range(self._num_choices) if choice not in self._ended]

    def has_ended(self, choice: int) -> bool:
        return choice in self._ended

    def extend(self, events: Sequence[Event]) -> list[Finished | Failed]:
        """Number and keep `events`, and wake whoever waits. Returns those of them that end a
        choice. Raises `ValueError` for an event of a choice that has ended, or that there is not.
        """
        ends: list[Finished | Failed] = []
        for event in events:
            choice = event.choice
            if choice in self._ended or not 0 <= choice < self._num_choices:
                raise ValueError(f"choice {choice} is over, or there is none: {event}")
            if isinstance(event, (Finished, Failed)):
                self._ended.add(choice)
                ends.append(event)
            self._events.append(event)
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            _wake(waiting)
        if ends and self.is_over:
            _wake(self._waiting_for_end)
        return ends

    def view(self, start: int = 0) -> View:
        """A reader of the events from number `start` on."""
        return View(self, start)

    def since(self, start: int) -> Sequence[Event]:
        """Those from number `start` on. Raises `StreamGone` where they cannot be read from disk."""
        return self._events.since(start)

    @property
    def recent(self) -> Sequence[Event]:
        """Those in memory and not packed: the last ones."""
        return self._events.recent

    @property
    def num_packed_bytes(self) -> int:
        """What the others take that are in memory."""
        return self._events.num_packed_bytes

    def pack_some(self) -> bool:
        """Keep some of them in few bytes: for a log that may not be read any more. Whether there
        are more."""
        return self._events.pack_some()

    def spill(self, file: ShelfFile) -> None:
        """Put all there are on disk. Raises `OSError`, and then some of them are not."""
        self._events.spill(file)

    async def ended(self) -> None:
        """Returns when all choices have ended, without waking for every event."""
        if not self.is_over:
            end = asyncio.get_running_loop().create_future()
            self._waiting_for_end.append(end)
            await end

    def arrival(self) -> asyncio.Future[None]:
        """Done when more has come."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        return waiter


def _wake(waiting: list[asyncio.Future[None]]) -> None:
    for waiter in waiting:
        if not waiter.done():
            waiter.set_result(None)


class View:
    """Where one reader stands in a log."""

    def __init__(self, log: StreamLog, position: int) -> None:
        self._log = log
        self.position = position
        """Number of the next event to take."""

    def ready(self) -> list[Event]:
        """What has come and was not taken, deltas merged; maybe nothing. Does not wait."""
        events = self._log.since(self.position)
        self.position += len(events)
        return merge_all(events) if len(events) > 1 else list(events)

    @property
    def has_more(self) -> bool:
        return self.position < len(self._log)

    async def wait(self) -> None:
        """Returns when there is more to take, or never will be."""
        while not self.has_more and not self._log.is_over:
            await self._log.arrival()

    def each(self) -> list[Event]:
        """What has come and was not taken, as it was said. Does not wait."""
        events = self._log.since(self.position)
        self.position += len(events)
        return list(events)

    async def take(self) -> list[Event]:
        """At least one event, deltas merged; an empty list at the end."""
        await self.wait()
        return self.ready()

    def skip_to(self, position: int) -> bool:
        """Go on from event number `position`, if that is further on; True when that leaves
        nothing to take."""
        self.position = max(self.position, position)
        return not self.has_more
