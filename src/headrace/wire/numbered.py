"""Frames of one stream with their numbers, so that a reader can come back to where it was.

In: events of a log, from its beginning. Out: numbered frames. Next: `streams/frames.py`.

Frames are numbered from 1, `[DONE]` among them. What a frame says, and its number, depend on the
events before it alone: every reader of a stream gets the same bytes, whenever it comes.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from headrace.events import Event

_END = b"\n\n"
_DATA = b"data: "


class Encoder(Protocol):
    """Events as frames of one of the streaming formats."""

    @property
    def is_ended(self) -> bool:
        """The last frame has been given."""

    def encode(self, event: Event) -> bytes: ...


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
