"""A client that takes nothing of what is written to it, for too long, is let go.

In: a transport's word that it is full, or has room again. Out: the end of the connection.
Thread: the event loop.

Its answer's memory is bounded by the context anyway; but its request stays open, and a server that
drains would wait for it. A stream that is kept goes on, for when it comes back.
"""

from __future__ import annotations

import asyncio


class WriteTimeout(asyncio.Protocol):
    """Before a protocol of uvicorn's in a class's bases."""

    write_timeout_s = 60.0
    """How long there may be no room for more, in one stretch."""
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _stuck: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._unset()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset()
        super().connection_lost(exc)

    def _unset(self) -> None:
        stuck, self._stuck = self._stuck, None
        if stuck is not None:
            stuck.cancel()
