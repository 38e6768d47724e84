"""What a client gets to see of an error: the body, the frame in mid-stream, the headers."""

from __future__ import annotations

import math

from headrace.errors import HeadraceError
from headrace.wire.ask import JSON
from headrace.wire.json_bytes import body
from headrace.wire.sse import json_frame

LONGEST_RETRY_S = 60
"""Clients that are asked to wait longer are told not to try again by themselves: some would really
sleep for hours."""


def error_body(error: HeadraceError) -> bytes:
    """The envelope; `code`, `param` and `failed_generation` only where they are known."""
    return body({"error": error_object(error)})


def error_frame(error: HeadraceError) -> bytes:
    """For an answer that has begun: the status can only be said inside. No `[DONE]` follows."""
    return json_frame({"error": {**error_object(error), "status_code": error.status}}, "error")


def error_headers(error: HeadraceError) -> dict[str, str]:
    """`retry-after` in whole seconds, rounded up, where it is known when to come again."""
    wait_s = error.retry_after_s
    if wait_s is None:
        return {}
    headers = {}
    if math.isfinite(wait_s):
        headers["retry-after"] = str(max(1, math.ceil(wait_s)))
    if not wait_s <= LONGEST_RETRY_S:
        headers["x-should-retry"] = "false"
    return headers


def error_object(error: HeadraceError) -> dict[str, JSON]:
    """The inside of the envelope."""
    known = {
        "message": error.message,
        "type": error.wire_type,
        "code": error.code,
        "param": error.param,
        "failed_generation": error.failed_generation,
    }
    return {name: value for name, value in known.items() if value is not None}
