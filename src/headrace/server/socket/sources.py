"""Where a socket's messages come from: a log of its own, or a stream that is kept.

In: events. Out: messages, as many as are wanted. Thread: the event loop. Next: `outlet.py`.
"""

from __future__ import annotations

import asyncio
from collections import deque

from headrace.events import Event
from headrace.server.telling import Telling
from headrace.streams.kept import Kept
from headrace.streams.log import StreamLog
from headrace.wire.socket_frames import NumberedMessages, PlainMessages

_EVENT_BYTES = 64
"""What an event counts for at least: one that gives no message costs time all the same."""


class PlainSource:
    """An answer that nobody else reads: what a slow client has missed is merged."""

    def __init__(self, log: StreamLog, messages: PlainMessages) -> None:
        self._log = log
        self._view = log.view()
        self._messages = messages
        self._events: deque[Event] = deque()

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
