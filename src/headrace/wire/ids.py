"""The names that answers carry: what each begins with, and how it is made.

ULIDs and UUIDs are random; what belongs to an answer (its items, its calls) is derived from the
answer's own id, so that telling it again gives the same bytes.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from hashlib import blake2b, sha256

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"
_NUM_ITEM_DIGITS = 2
_ITEM_ID = re.compile(f"(?:msg|rs|fc|fco)_[{_CROCKFORD}]{{26}}")
_PAIRS = [first + second for first in _CROCKFORD for second in _CROCKFORD]
"""By 10 bits: half the steps, and every request needs an id."""


def chat_id() -> str:
    return f"chatcmpl-{uuid.uuid4()}"


def completion_id() -> str:
    return f"cmpl-{uuid.uuid4()}"


def response_id() -> str:
    return f"resp_{ulid()}"


def request_id() -> str:
    """`req_…`: later ones sort after earlier ones, to the microsecond."""
    return f"req_{ulid()}"


def item_id(prefix: str, answer_id: str, index: int) -> str:
    """Of item `index` of an answer (`msg_…`, `rs_…`, `fc_…`): the answer's own ULID, its last two
    digits given over to the index."""
    ulid_of_answer = answer_id.rpartition("_")[2]
    digits = _in_base(index, _CROCKFORD, _NUM_ITEM_DIGITS)
    return f"{prefix}_{ulid_of_answer[:-_NUM_ITEM_DIGITS]}{digits}"


def conversation_id() -> str:
    return f"conv_{ulid()}"


def turn_id() -> str:
    return f"turn_{ulid()}"


def message_id(answer_id: str | None = None) -> str:
    """Of a kept message: its items' ids are `item_id`s of it. `answer_id`: of the response that it
    is, whose items have these ids already."""
    return item_id("msg", answer_id or ulid(), 0)


def place_of_item(named: str) -> tuple[str, int] | None:
    """The id of the message that an item is part of, and which of its items it is; None for what
    is no item's id."""
    if not _ITEM_ID.fullmatch(named):
        return None
    digits = named[-_NUM_ITEM_DIGITS:]
    index = _CROCKFORD.index(digits[0]) * len(_CROCKFORD) + _CROCKFORD.index(digits[1])
    return item_id("msg", named, 0), index


def tool_call_id(answer_id: str, choice: int, index: int) -> str:
    """Of call `index` of a choice: 9 characters, different for every answer."""
    origin = f"{answer_id}/{choice}/{index}".encode()
    digest = blake2b(origin, digest_size=8).digest()
    return _in_base(int.from_bytes(digest) % 36**9, _BASE36, 9)


def fingerprint(identity: str) -> str:
    """`fp_` and 10 hex digits, of whatever decides what a model says."""
    return f"fp_{sha256(identity.encode()).hexdigest()[:10]}"


def ulid(at_ns: int | None = None) -> str:
    """26 lower-case characters: 48 bits of milliseconds since 1970, then 80 bits.

    The first 10 of those 80 are microseconds, so that ids order also within a millisecond; the
    other 70 are random. `at_ns`: nanoseconds since 1970; None: now.
    """
    at_us = (time.time_ns() if at_ns is None else at_ns) // 1000
    at_ms, us = divmod(at_us, 1000)
    random = int.from_bytes(os.urandom(9)) >> 2
    number = at_ms << 80 | us << 70 | random
    return "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])


def stream_id() -> str:
    """`stream_…`: names a kept stream, for those who come back to it."""
    return f"stream_{ulid()}"


def _in_base(number: int, alphabet: str, num_digits: int) -> str:
    digits = []
    for _ in range(num_digits):
        number, digit = divmod(number, len(alphabet))
        digits.append(alphabet[digit])
    return "".join(reversed(digits))
