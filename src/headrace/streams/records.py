"""What is kept of a stream, as bytes: one record after the other, each able to tell if it is whole.

In: records. Out: bytes; and back, up to the first byte that is wrong. Thread: any.
Next: `journal.py`.

    segment | HRJRNL01 | record | record | record ...
    record  | length of body | CRC-32 of length and body | body |
    body    | kind | stream | index | what the kind says |

Numbers are little-endian. A stream's records are numbered by `index`, so that a gap is noticed
wherever it is.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias
from zlib import crc32

import orjson

from headrace import errors
from headrace.engine.past import Ended, Said
from headrace.errors import GenerationFailed, HeadraceError
from headrace.events import TokenLogprob

MAGIC: Final = b"HRJRNL01"


@dataclass(frozen=True, slots=True)
class Opened:
    """A stream began, at `at` in Unix seconds; `header` is a JSON object."""

    id: str
    num_choices: int
    header: Mapping[str, Any]
    at: float


@dataclass(frozen=True, slots=True)
class Over:
    """A choice ended, at `at` in Unix seconds."""

    ended: Ended
    at: float


@dataclass(frozen=True, slots=True)
class Gone:
    """Nobody may read the stream any more."""


Record: TypeAlias = Opened | Said | Over | Gone


class Entry(NamedTuple):
    """A record in its segment."""

    record: Record
    stream: int
    number: int
    """Its index among its stream's records."""
    end: int
    """The segment's bytes up to here are whole."""


_FRAME = struct.Struct("<II")
_BODY = struct.Struct("<BQI")
_OPENED = struct.Struct("<dHI")
_SAID = struct.Struct("<HI")
_OVER = struct.Struct("<dH")
_LOGPROB = struct.Struct("<dB")
_TOP = struct.Struct("<id")
_OPENED_KIND, _SAID_KIND, _OVER_KIND, _GONE_KIND = 1, 2, 3, 4


def encode(record: Record, stream: int, index: int) -> bytes:
    """`record` as the number `index` of the stream of that number. Raises `TypeError` for a header
    that is no JSON."""
    match record:
        case Said():
            kind, said = _SAID_KIND, _said(record)
        case Opened():
            kind, said = _OPENED_KIND, _opened(record)
        case Over():
            kind, said = _OVER_KIND, _OVER.pack(record.at, record.ended.choice) + _how(record.ended)
        case Gone():
            kind, said = _GONE_KIND, b""
    body = _BODY.pack(kind, stream, index) + said
    return _FRAME.pack(len(body), _checksum(body)) + body


def decode(segment: bytes) -> Iterator[Entry]:
    """The whole records of a segment, up to the first broken one. Nothing of a segment of another
    kind. Raises nothing."""
    if not segment.startswith(MAGIC):
        return
    entry = _entry_at(segment, len(MAGIC))
    while entry is not None:
        yield entry
        entry = _entry_at(segment, entry.end)


def _entry_at(segment: bytes, position: int) -> Entry | None:
    """The entry there; None where it is not whole."""
    start = position + _FRAME.size
    if start > len(segment):
        return None
    length, checksum = _FRAME.unpack_from(segment, position)
    body = segment[start : start + length]
    if len(body) < length or length < _BODY.size or _checksum(body) != checksum:
        return None
    kind, stream, index = _BODY.unpack_from(body)
    try:
        record = _READERS[kind](body[_BODY.size :])
    except (KeyError, ValueError, TypeError, struct.error):
        return None  # sound, but written by nobody we know
    return Entry(record, stream, index, start + length)


def _checksum(body: bytes) -> int:
    # With the length, so that a row of zeros is no record.
    return crc32(body, crc32(len(body).to_bytes(4, "little")))


def _opened(record: Opened) -> bytes:
    name = record.id.encode()
    header = orjson.dumps(record.header, option=orjson.OPT_NON_STR_KEYS)
    return _OPENED.pack(record.at, record.num_choices, len(name)) + name + header


def _read_opened(data: bytes) -> Opened:
    at, num_choices, length = _OPENED.unpack_from(data)
    start = _OPENED.size
    name = data[start : start + length].decode()
    return Opened(name, num_choices, orjson.loads(data[start + length :]), at)


def _said(said: Said) -> bytes:
    num_tokens = len(said.token_ids)
    data = _SAID.pack(said.choice, num_tokens) + struct.pack(f"<{num_tokens}i", *said.token_ids)
    return data + b"".join(map(_logprob, said.logprobs)) if said.logprobs else data


def _logprob(logprob: TokenLogprob) -> bytes:
    top = b"".join(_TOP.pack(*alternative) for alternative in logprob.top)
    return _LOGPROB.pack(logprob.logprob, len(logprob.top)) + top


def _read_said(data: bytes) -> Said:
    choice, num_tokens = _SAID.unpack_from(data)
    tokens = array("i", struct.unpack_from(f"<{num_tokens}i", data, _SAID.size))
    rest = data[_SAID.size + 4 * num_tokens :]
    return Said(choice, tokens, _read_logprobs(tokens, rest) if rest else ())


def _read_logprobs(tokens: Sequence[int], data: bytes) -> tuple[TokenLogprob, ...]:
    read = []
    position = 0
    for token in tokens:
        logprob, num_top = _LOGPROB.unpack_from(data, position)
        start = position + _LOGPROB.size
        position = start + num_top * _TOP.size
        top = tuple(_TOP.iter_unpack(data[start:position]))
        read.append(TokenLogprob(token, logprob, top))
    return tuple(read)


def _how(ended: Ended) -> bytes:
    how = ended.how
    if isinstance(how, HeadraceError):
        return orjson.dumps(
            {"error": type(how).__name__, "message": how.message, "param": how.param}
        )
    return orjson.dumps({"reason": how})


def _read_over(data: bytes) -> Over:
    at, choice = _OVER.unpack_from(data)
    said = orjson.loads(data[_OVER.size :])
    how = said["reason"] if "reason" in said else _error(**said)
    return Over(Ended(choice, how), at)


def _error(error: str, message: str, param: str | None) -> HeadraceError:
    """The error of that name; details that only its class has are lost."""
    kind = getattr(errors, error, None)
    if not (isinstance(kind, type) and issubclass(kind, HeadraceError)):
        return GenerationFailed(message, param=param)
    restored = kind.__new__(kind)
    HeadraceError.__init__(restored, message, param=param)
    return restored


_READERS: Final[Mapping[int, Callable[[bytes], Record]]] = {
    _OPENED_KIND: _read_opened,
    _SAID_KIND: _read_said,
    _OVER_KIND: _read_over,
    _GONE_KIND: lambda data: Gone(),
}
