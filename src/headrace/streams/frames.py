"""All frames of one stream, encoded once for as many readers as come.

In: a log, and how its events are written. Out: numbered frames. Thread: the event loop.
Next: `server/streams.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from headrace.events import Event
from headrace.streams.shelf import Shelf, ShelfFile
from headrace.wire.numbered import Encoder, Frame, Numbered

_FRAME_BYTES = 160
"""What a frame takes in memory beside its text, about."""


class Log(Protocol):
    """Events in order, of which there may be more later."""

    def since(self, start: int) -> Sequence[Event]:
        """Those from number `start` on, from 0."""


class Frames:
    """What readers of one stream get."""

    def __init__(self, encoder: Encoder, log: Log) -> None:
        self._numbered = Numbered(encoder)
        self._log = log
        self._num_events = 0
        self._frames: Shelf[Frame] = Shelf()
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
        frames: list[Frame] = []
        num_bytes = 0
        for frame in self._frames.iterate(number):
            num_bytes += len(frame.body)
            if num_bytes > max_bytes and frames:
                break
            frames.append(frame)
        return frames

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

    def pack_some(self) -> bool:
        """Keep some of those that are there in few bytes. Whether there are more."""
        self._joined = (0, 0, b"")
        has_more = self._frames.pack_some()
        if not has_more:
            self._weigh()
        return has_more

    def spill(self, file: ShelfFile) -> None:
        """Put them on disk, as far as they are there. Raises `OSError`."""
        self._catch_up()
        self._joined = (0, 0, b"")
        try:
            self._frames.spill(file)
        finally:
            self._weigh()

    def _weigh(self) -> None:
        recent = sum(map(_num_bytes, self._frames.recent))
        self.num_bytes = recent + self._frames.num_packed_bytes

    def _catch_up(self) -> None:
        events = self._log.since(self._num_events)
        if not events:
            return
        self._num_events += len(events)
        for event in events:
            for frame in self._numbered.encode(event):
                self._frames.append(frame)
                self.num_bytes += _num_bytes(frame)


def _num_bytes(frame: Frame) -> int:
    return len(frame.body) + _FRAME_BYTES
