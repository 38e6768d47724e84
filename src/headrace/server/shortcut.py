"""A connection's socket, written past its transport: by the engine thread, or in the loop's turn.

In: bytes. Out: the same, as far as the socket takes them at once. Thread: the event loop, or the
engine thread; who uses it sees to it that they take turns.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any


class Shortcut:
    """Opened on the loop, for as long as there may be something to write, and closed there."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        """Raises `OSError` where no descriptor is left."""
        self._transport = transport
        # A duplicate: a connection's own number may mean another client's once it is closed.
        self._fd = os.dup(transport.get_extra_info("socket").fileno())
        self.left_over = b""
        """What the socket did not take: nothing more may be written here before the loop has
        written that. A plain field: it is asked for every token."""

    @classmethod
    def of(cls, transport: Any) -> Shortcut | None:
        """None where there is none: the connection is encrypted, or being closed, or no descriptor
        is left."""
        if transport.get_extra_info("sslcontext") is not None or transport.is_closing():
            return None
        try:
            return cls(transport)
        except OSError:
            return None

    @property
    def is_clear(self) -> bool:
        """Everything that the loop wrote has been sent."""
        return not self._transport.is_closing() and self._transport.get_write_buffer_size() == 0

    def write(self, data: bytes) -> None:
        """Without waiting. What the socket does not take is left over."""
        try:
            num_sent = os.write(self._fd, data)
        except OSError:  # full, or gone: the loop finds out which
            num_sent = 0
        if num_sent < len(data):
            self.left_over = data[num_sent:]

    def write_on_loop(self, data: bytes) -> None:
        """On the loop, while it is clear: by the transport, which is cheaper where it keeps the
        interpreter's lock, as uvloop's does. It may send later."""
        self._transport.write(data)

    def write_left_over(self) -> None:
        """On the loop."""
        left_over, self.left_over = self.left_over, b""
        if left_over and not self._transport.is_closing():
            self._transport.write(left_over)

    def close(self) -> None:
        """On the loop, when nobody can write here any more."""
        os.close(self._fd)
