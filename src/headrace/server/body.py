"""A request's body, whole, and not longer than the server reads.

In: ASGI messages. Out: bytes. Thread: the event loop. Next: `wire/body.py`.
"""

from __future__ import annotations

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from headrace.errors import BodyTooLarge


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """Raises `BodyTooLarge`, before more than `max_bytes` were kept, and `ClientDisconnect`."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > max_bytes:
            raise _too_large(max_bytes)
    parts: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {max_bytes:,} bytes; send a shorter one")
