"""A WebSocket's connection that the engine thread writes, too, while the loop has nothing to send.

In: bytes of whole frames. Out: the same, never one within another. Thread: the event loop; the
engine thread where it says so. Next: `server/shortcut.py`.

A response over HTTP has one writer at a time. Over a socket answers begin, pongs and pings are sent
and the end is said at any moment, so here a lock is held for as long as a write takes, which never
waits for the client.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from headrace.server.shortcut import Shortcut
from headrace.wire.socket_frames import text_frames


class SharedTransport:
    """Stands for the transport of a connection, on the loop. Implements `outlet.Early`."""

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        may_write: Callable[[], bool],
    ) -> None:
        """`may_write`, on any thread: whether messages may still be sent. It is false before the
        frame is written after which none may."""
        self._transport = transport
        self._loop = loop
        self._may_write = may_write
        self._lock = threading.Lock()
        self._shortcut: Shortcut | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """On the loop."""
        with self._lock:
            if self._shortcut is not None and self._shortcut.left_over:
                self._shortcut.write_left_over()
            self._transport.write(data)

    def open_early(self) -> None:
        """On the loop."""
        if self._shortcut is None:
            self._shortcut = Shortcut.of(self._transport)

    def close_early(self) -> None:
        """On the loop."""
        with self._lock:
            shortcut, self._shortcut = self._shortcut, None
            if shortcut is not None:
                shortcut.write_left_over()
                shortcut.close()

    def write_early(self, make: Callable[[], Sequence[bytes]]) -> bool:
        with self._lock:
            shortcut = self._shortcut
            if shortcut is None or shortcut.left_over or not shortcut.is_clear:
                return False
            if not self._may_write():
                return False
            if messages := make():
                shortcut.write(text_frames(messages))
            is_sent = not shortcut.left_over
        if not is_sent:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._write_left_over)
        return True

    def _write_left_over(self) -> None:
        with self._lock:
            if self._shortcut is not None:
                self._shortcut.write_left_over()
