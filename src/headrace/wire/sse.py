"""Server-sent events: values to frames, and bytes, however they were cut, to events again."""

from __future__ import annotations

from codecs import BOM_UTF8
from dataclasses import dataclass

from headrace.wire.ask import JSON
from headrace.wire.json_bytes import compact

DONE = b"data: [DONE]\n\n"
PING = b": ping\n"
"""A comment: keeps a silent connection alive, and no client sees it. No empty line follows, which
would end an event: decoders of the official clients take one after an `id` for an event without
data, and fail."""


def frame(data: bytes, *, event: str | None = None, event_id: str | None = None) -> bytes:
    """One event. `data` may have several lines (`\\n`); the other two must have one."""
    lines = []
    if event is not None:
        lines.append(b"event: " + _one_line(event))
    if event_id is not None:
        lines.append(b"id: " + _one_line(event_id))
    lines += [b"data: " + line for line in data.split(b"\n")]
    return b"\n".join(lines) + b"\n\n"


def json_frame(value: JSON, event: str | None = None) -> bytes:
    """One event whose data is JSON."""
    return frame(compact(value), event=event)


def retry(delay_s: float) -> bytes:
    """Tells the client how long to wait before it connects again; a line of the event that comes
    next."""
    return b"retry: %d\n" % round(delay_s * 1000)


def _one_line(text: str) -> bytes:
    if any(end in text for end in "\r\n\0"):
        raise ValueError(f"{text!r} must be one line, without a zero character")
    return text.encode()


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event as a client sees it."""

    data: str
    """Lines are joined by `\\n`."""
    event: str = "message"
    id: str = ""
    """The last one that the stream named, in this event or before."""


class EventDecoder:
    """Bytes of a stream, in pieces of any size, to whole events.

    Lines end with CRLF, CR or LF. What stands after the last empty line when the stream ends is no
    event: the stream was cut there.
    """

    def __init__(self) -> None:
        self.retry_s: float | None = None
        """How long the stream asks to wait before connecting again, if it did."""
        self._id = ""
        self._event = ""
        self._data: list[str] = []
        self._pieces: list[bytes] = []
        self._is_first_line = True
        self._was_cr = False

    def feed(self, piece: bytes) -> list[ServerSentEvent]:
        """The events that `piece` completes, in order."""
        events = []
        for line in self._lines(piece):
            if line:
                self._read(line)
            elif event := self._dispatch():
                events.append(event)
        return events

    def _lines(self, piece: bytes) -> list[bytes]:
        """The lines that `piece` ends; holds the beginning of the next one."""
        if self._was_cr and piece:
            # The other half of a CRLF that was cut.
            piece = piece.removeprefix(b"\n")
            self._was_cr = False
        if b"\r" in piece:
            self._was_cr = piece.endswith(b"\r")
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._pieces.append(piece)
        if b"\n" not in piece:
            return []
        *lines, rest = b"".join(self._pieces).split(b"\n")
        self._pieces = [rest]
        if self._is_first_line:
            self._is_first_line = False
            lines[0] = lines[0].removeprefix(BOM_UTF8)
        return lines

    def _read(self, line: bytes) -> None:
        name, _, raw = line.partition(b":")
        value = raw.removeprefix(b" ").decode(errors="replace")
        match name:
            case b"data":
                self._data.append(value)
            case b"event":
                self._event = value
            case b"id" if "\0" not in value:
                self._id = value
            case b"retry" if value.isascii() and value.isdigit():
                self.retry_s = int(value) / 1000

    def _dispatch(self) -> ServerSentEvent | None:
        data, event = self._data, self._event
        self._data, self._event = [], ""
        if not data:
            return None
        return ServerSentEvent("\n".join(data), event or "message", self._id)
