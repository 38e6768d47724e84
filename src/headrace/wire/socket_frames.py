"""What goes over a WebSocket, as plain values: requests to frames' bodies, answers as messages.

In: JSON objects, events. Out: what a client wants, messages, and their bytes on the wire.
Next: `server/socket/`.

A client's message is one of

    {"id": "a", …the body of POST /chat/completions…}        ask
    {"id": "a", "type": "cancel"}                            stop what is being answered
    {"id": "b", "type": "resume", "stream": "stream_…", "after": 12}
    {"id": "c", "type": "input.append", "text": "Tell me", …more of the body…}
    {"id": "c", "type": "input.clear"}                       forget the text, keep the rest
    {"id": "c", "type": "input.commit"}                      that was all: ask

What is appended becomes the last message of its question, the user's; the server computes what it
knows of it while the rest is being typed or spoken.

Each question and each resumption is answered under its own `id`, which is free again afterwards:

    {"id": "a", "headers": {…}}                              those of the same answer over HTTP
    {"id": "a", "data": {…chunk…}}                           any number of them
    {"id": "a", "data": "[DONE]"}                            or {"id": "a", "error": {…}}: the end

A resumable stream's messages have `"event": N` after the id: the numbers to come back by. What
cannot be told to belong to a question is refused under the id `null`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from headrace.errors import HeadraceError, InvalidRequest
from headrace.events import Event
from headrace.wire.ask import JSON
from headrace.wire.error_body import error_headers, error_object
from headrace.wire.json_bytes import compact
from headrace.wire.numbered import Encoder, Frame

MAX_ID = 128
"""Characters of a client's id."""
_LARGEST = 2**53
_SPLIT = b"\n\n"
_DATA = b"data: "
_CHUNK = b"data: {"
_INSIDE = slice(len(_DATA), -len(_SPLIT))
_ERROR = b"event: error\n"
_DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Question:
    """To be answered."""

    body: Mapping[str, JSON]
    """As that of a request over HTTP."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """No more of it is wanted."""


@dataclass(frozen=True, slots=True)
class Resume:
    """More of a stream that is kept."""

    stream: str
    after: int
    """The last number that the client has."""


@dataclass(frozen=True, slots=True)
class Append:
    """More of a question that is still being typed or spoken."""

    text: str
    """What follows what was appended before."""
    fields: Mapping[str, JSON]
    """Of the body that the question will have; later ones count."""


@dataclass(frozen=True, slots=True)
class Clear:
    """The text appended so far was not meant."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Nothing follows: answer what was appended, this last text and these last fields too."""

    text: str
    fields: Mapping[str, JSON]


Wish: TypeAlias = Question | Cancel | Resume | Append | Clear | Commit


def client_id(message: Mapping[str, JSON]) -> str:
    """Raises `InvalidRequest` where there is none to answer under."""
    given = message.get("id")
    if not isinstance(given, str) or not 0 < len(given) <= MAX_ID:
        raise InvalidRequest(
            f"`id` must be a text of 1 to {MAX_ID} characters, chosen by you: the answer's "
            "messages carry it",
            param="id",
        )
    return given


def wish(message: Mapping[str, JSON]) -> Wish:
    """What the client wants. Raises `InvalidRequest`."""
    match message.get("type", "request"):
        case "request":
            return question(_fields(message))
        case "cancel":
            return Cancel()
        case "resume":
            return _resume(message)
        case "input.append":
            return Append(_text(message), _fields(message, "text"))
        case "input.clear":
            return Clear()
        case "input.commit":
            return Commit(_text({"text": "", **message}), _fields(message, "text"))
        case other:
            shown = compact(other)[:40].decode(errors="replace")
            raise InvalidRequest(
                "`type` must be absent, or one of `request`, `cancel`, `resume`, `input.append`, "
                f"`input.clear` and `input.commit`, not {shown}",
                param="type",
            )


def question(body: Mapping[str, JSON]) -> Question:
    """Raises `InvalidRequest` where it asks for what a socket does not do."""
    if body.get("stream") is False:
        raise InvalidRequest(
            "`stream` must be true or absent here: over a WebSocket, answers are streams",
            param="stream",
        )
    return Question({**body, "stream": True})


def _fields(message: Mapping[str, JSON], *ours: str) -> dict[str, JSON]:
    """Those of a request's body."""
    return {name: value for name, value in message.items() if name not in ("id", "type", *ours)}


def _text(message: Mapping[str, JSON]) -> str:
    text = message.get("text")
    if not isinstance(text, str):
        raise InvalidRequest("`text` must be what the user goes on with, as text", param="text")
    return text


def _resume(message: Mapping[str, JSON]) -> Resume:
    stream, after = message.get("stream"), message.get("after", 0)
    if not isinstance(stream, str):
        raise InvalidRequest("`stream` must be the id of a stream, as text", param="stream")
    if not isinstance(after, int) or isinstance(after, bool) or not 0 <= after <= _LARGEST:
        raise InvalidRequest("`after` must be the number of an event, 0 for all", param="after")
    return Resume(stream, after)


def opening(answer_id: str, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The first message of an answer."""
    return b'{"id":%b,"headers":%b}' % (compact(answer_id), _headers(headers))


def refusal(
    answer_id: str | None, headers: Sequence[tuple[bytes, bytes]], error: HeadraceError
) -> bytes:
    """The only message of an answer that was not begun."""
    told = [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
    inside = {**error_object(error), "status_code": error.status}
    return b'{"id":%b,"headers":%b,"error":%b}' % (
        compact(answer_id),
        _headers([*headers, *told]),
        compact(inside),
    )


def _headers(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    return compact({name.decode("ascii"): value.decode("latin-1") for name, value in headers})


class PlainMessages:
    """The messages of an answer that nobody comes back to."""

    def __init__(self, answer_id: str, encoder: Encoder) -> None:
        self._encoder = encoder
        self._encode = encoder.encode
        self._start = b'{"id":%b,' % compact(answer_id)
        self._data = self._start + b'"data":'

    @property
    def is_ended(self) -> bool:
        """The last message has been given."""
        return self._encoder.is_ended

    def encode(self, event: Event) -> list[bytes]:
        body = self._encode(event)
        # Nearly every token is one chunk. JSON has no line breaks, and one byte is found fast.
        if body.startswith(_CHUNK) and body.find(b"\n") == len(body) - len(_SPLIT):
            return [self._data + body[_INSIDE] + b"}"]
        return [_message(self._start, part) for part in body.split(_SPLIT) if part]


class NumberedMessages:
    """The messages of a stream that is kept."""

    def __init__(self, answer_id: str) -> None:
        self._start = b'{"id":%b,"event":' % compact(answer_id)

    def message(self, frame: Frame) -> bytes:
        return _message(self._start + b"%d," % frame.number, frame.body)


def _message(start: bytes, body: bytes) -> bytes:
    """One frame of a server-sent stream, without what ends it, as a message."""
    data = body[body.index(_DATA) + len(_DATA) :]
    if body.startswith(_ERROR):
        return start + data[1:]  # the envelope's own `"error": …}`
    if data == _DONE:
        return start + b'"data":"[DONE]"}'
    return start + b'"data":' + data + b"}"


_TEXT: Final = 0x81
"""A whole message of text (RFC 6455, 5.2)."""
_MEDIUM: Final = bytes((_TEXT, 126))
_LONG: Final = bytes((_TEXT, 127))


def text_frames(messages: Sequence[bytes]) -> bytes:
    """The bytes that a server sends for these messages, each a frame of its own, not masked."""
    if len(messages) == 1:
        return _frame_head(len(messages[0])) + messages[0]
    parts = []
    for message in messages:
        parts.append(_frame_head(len(message)))
        parts.append(message)
    return b"".join(parts)


def _frame_head(length: int) -> bytes:
    if length < 126:
        return bytes((_TEXT, length))
    if length < 65_536:
        return _MEDIUM + length.to_bytes(2)
    return _LONG + length.to_bytes(8)
