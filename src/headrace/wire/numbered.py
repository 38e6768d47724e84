"""Frames of one stream with their numbers, so that a reader can come back to where it was.

In: events of a log, from its beginning. Out: numbered frames. Next: `server/streams.py`.

Frames are numbered from 1, `[DONE]` among them. What a frame says, and its number, depend on the
events before it alone: every reader of a stream gets the same bytes, whenever it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from headrace.events import Event

_END = b"\n\n"
_DATA = b"data: "
_FRAME_BYTES = 160
"""What a frame takes in memory beside its text, about."""


class Encoder(Protocol):
    """Events as frames of one of the streaming formats."""

    @property
    def is_ended(self) -> bool:
        """The last frame has been given."""

    def encode(self, event: Event) -> bytes: ...


class Log(Protocol):
    """Events in order, of which there may be more later."""

    def since(self, start: int) -> Sequence[Event]:
        """Those from number `start` on, from 0."""


class Frame(NamedTuple):
    """One frame."""

    number: int
    body: bytes
    """Its lines, without a number and without what ends it."""

    def as_sse(self) -> bytes:
        return b"id: %d\n%b\n\n" % (self.number, self.body)

    @property
    def data(self) -> bytes:
        """What it says: JSON, or `[DONE]`."""
        # JSON has no line breaks; text that looks like a field stands inside its line.
        last_line = self.body[self.body.rfind(b"\n") + 1 :]
        return last_line.removeprefix(_DATA)


class Numbered:
    """One reader's way through a stream. Encode every event, from the first on."""

    def __init__(self, encoder: Encoder, after: int = 0) -> None:
        """The first frame given is the one after number `after`."""
        self._encoder = encoder
        self._after = after
        self._number = 0

    @property
    def is_ended(self) -> bool:
        return self._encoder.is_ended

    @property
    def number(self) -> int:
        """Of the last frame, given or left out."""
        return self._number

    def encode(self, event: Event) -> list[Frame]:
        frames = []
        # JSON never has a line of its own that is empty, so this cuts between frames only.
        for body in self._encoder.encode(event).split(_END):
            if body:
                self._number += 1
                if self._number > self._after:
                    frames.append(Frame(self._number, body))
        return frames


class Frames:
    """All frames of one stream, encoded once for as many readers as come."""

    def __init__(self, encoder: Encoder, log: Log) -> None:
        self._numbered = Numbered(encoder)
        self._log = log
        self._num_events = 0
        self._frames: list[Frame] = []
        self._joined = (0, 0, b"")
        """The latest part that was given: readers in step with each other ask for the same."""
        self.num_bytes = 0
        """What the frames take in memory, about."""

    def __len__(self) -> int:
        """The number of the last frame so far."""
        self._catch_up()
        return len(self._frames)

    @property
    def is_ended(self) -> bool:
        """The last frame is there; none will follow."""
        self._catch_up()
        return self._numbered.is_ended

    def after(self, number: int, max_bytes: int) -> Sequence[Frame]:
        """Frames that follow number `number`: all there are now, as far as `max_bytes` go; at least
        one where there is one."""
        self._catch_up()
        num_bytes = 0
        for end in range(number, len(self._frames)):
            num_bytes += len(self._frames[end].body)
            if num_bytes > max_bytes and end > number:
                return self._frames[number:end]
        return self._frames[number:]

    def part_after(self, number: int, max_bytes: int) -> tuple[bytes, int]:
        """The same as server-sent events, and the last one's number; nothing where none follows."""
        self._catch_up()
        start, end, part = self._joined
        if start == number and end == len(self._frames) and part:
            return part, end
        frames = self.after(number, max_bytes)
        if not frames:
            return b"", number
        self._joined = number, frames[-1].number, b"".join([frame.as_sse() for frame in frames])
        return self._joined[2], self._joined[1]

    def _catch_up(self) -> None:
        events = self._log.since(self._num_events)
        if not events:
            return
        self._num_events += len(events)
        for event in events:
            for frame in self._numbered.encode(event):
                self._frames.append(frame)
                self.num_bytes += len(frame.body) + _FRAME_BYTES
