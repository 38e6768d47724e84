"""JSON as the API writes it: compact UTF-8, with what could end a web page's script escaped."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

import orjson

from headrace.wire.ask import JSON

_SURROGATE = re.compile("[\ud800-\udfff]")


def compact(value: JSON) -> bytes:
    """`value` as JSON without spaces; `<`, `>`, `&` and U+2028/9 as `\\u003c` and so on.

    Takes what `json.loads` gives, tuples and any mappings. Never fails on it: half of a surrogate
    pair becomes U+FFFD, a number that JSON has no word for `null`.
    """
    try:
        data = orjson.dumps(value, default=_as_dict)
    except TypeError:
        mended = _mended(value)
        data = json.dumps(mended, ensure_ascii=False, separators=(",", ":")).encode()
    return _escaped(data)


def quoted(text: str) -> bytes:
    """`text` as a JSON string, as `compact` gives it; once for every token, so it is short."""
    try:
        data = orjson.dumps(text)
    except TypeError:
        data = orjson.dumps(_SURROGATE.sub("\ufffd", text))
    return _escaped(data)


def body(value: JSON) -> bytes:
    """`value` as a whole response."""
    return compact(value) + b"\n"


def _escaped(data: bytes) -> bytes:
    # These bytes stand in strings only, so the whole text can be searched.
    if b"<" in data:
        data = data.replace(b"<", b"\\u003c")
    if b">" in data:
        data = data.replace(b">", b"\\u003e")
    if b"&" in data:
        data = data.replace(b"&", b"\\u0026")
    if b"\xe2\x80" in data:
        data = data.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return data


def _as_dict(value: object) -> dict[str, JSON]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


def _mended(value: JSON) -> JSON:
    """`value` as something that the patient encoder of the standard library can write."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_mended(name): _mended(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mended(item) for item in value]
    return value
