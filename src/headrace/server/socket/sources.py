"""Where a socket's messages come from: a log of its own, or a stream that is kept.

In: events. Out: messages, as many as are wanted. Thread: the event loop. Next: `outlet.py`.

While an answer has nothing but tokens to say and its client keeps up, its source rides: each token
becomes a message where it is heard, on either thread, and no view is read for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from headrace.events import Event
from headrace.server.telling import Telling
from headrace.streams.kept import Kept
from headrace.streams.pump import Pump
from headrace.wire.socket_frames import NumberedMessages, PlainMessages

_EVENT_BYTES = 64
"""What an event counts for at least: one that gives no message costs time all the same."""


class Rail(Protocol):
    """Where messages go as they come."""

    is_free: bool
    """The client keeps up."""

    def pass_on(self, messages: list[bytes]) -> None:
        """Send them in this turn. Only while it is free."""

    def pass_early(self, make: Callable[[], list[bytes]]) -> bool:
        """Engine thread: make messages and send them now; False, and nothing is made, where the
        client does not keep up, or they would overtake something."""


class _Ride:
    """One answer's way around its view. Implements `headrace.streams.ear.Bypass`."""

    def __init__(
        self, messages: PlainMessages, position: int, rail: Rail, when_over: Callable[[], None]
    ) -> None:
        self.position = position
        self._encode = messages.encode
        self._rail = rail
        self._when_over = when_over

    def take(self, events: Sequence[Event], *, is_early: bool) -> bool:
        rail = self._rail
        try:
            if is_early:
                return rail.pass_early(partial(self._made_of, events))
            if not rail.is_free:
                return False
            messages = self._made_of(events)
        except Exception:  # the view will meet it, too, where it harms this answer alone
            return False
        if messages:
            rail.pass_on(messages)
        return True

    def _made_of(self, events: Sequence[Event]) -> list[bytes]:
        if len(events) == 1:  # nearly always
            return self._encode(events[0])
        return [message for event in events for message in self._encode(event)]

    def closed(self) -> None:
        self._when_over()


class PlainSource:
    """An answer that nobody else reads: what a slow client has missed is merged."""

    def __init__(self, pump: Pump, messages: PlainMessages) -> None:
        self._pump = pump
        self._log = pump.log
        self._view = pump.log.view()
        self._messages = messages
        self._events: deque[Event] = deque()
        self._ride: _Ride | None = None

    @property
    def is_ended(self) -> bool:
        return self._messages.is_ended

    def take(self, num_bytes: int) -> list[bytes]:
        events = self._events
        if not events:
            events.extend(self._view.ready())
        taken: list[bytes] = []
        while events and num_bytes > 0 and not self.is_ended:
            messages = self._messages.encode(events.popleft())
            num_bytes -= max(_EVENT_BYTES, sum(map(len, messages)))
            taken += messages
        return taken

    def ride(self, rail: Rail, when_over: Callable[[], None]) -> bool:
        if self._events or self._view.has_more:
            return False

        def is_over() -> None:
            self._ride = None
            self._view.position = ride.position
            when_over()

        ride = _Ride(self._messages, self._view.position, rail, is_over)
        if self._pump.open_bypass(ride):
            self._ride = ride
            return True
        return False

    def leave(self) -> None:
        """Nothing more is wanted."""
        if self._ride is not None:
            self._pump.close_bypass(self._ride)
            self._ride.closed()

    def arrival(self) -> asyncio.Future[None] | None:
        if self._events or self._view.has_more:
            return None
        if self._log.is_over:
            raise ValueError("the log is over, but its last message was never said")
        return self._log.arrival()


class KeptSource:
    """A stream that is kept, after a number: every reader gets the same messages."""

    def __init__(self, kept: Kept[Telling], messages: NumberedMessages, after: int) -> None:
        self._kept = kept
        self._messages = messages
        self._number = after
        self._is_ended = False

    @property
    def is_ended(self) -> bool:
        return self._is_ended

    def ride(self, rail: Rail, when_over: Callable[[], None]) -> bool:
        return False  # all readers of a stream get the same messages

    def take(self, num_bytes: int) -> list[bytes]:
        frames = self._kept.frames
        if frames.is_ended:
            # Who has it all already is told the end again: each answer has one.
            self._number = min(self._number, len(frames) - 1)
        taken = frames.after(self._number, num_bytes)
        if taken:
            self._number = taken[-1].number
            self._is_ended = frames.is_ended and self._number == len(frames)
        return [self._messages.message(frame) for frame in taken]

    def arrival(self) -> asyncio.Future[None] | None:
        if len(self._kept.frames) > self._number or self._kept.frames.is_ended:
            return None
        if self._kept.is_over:
            raise ValueError("the stream is over, but its last message was never said")
        return self._kept.arrival()
