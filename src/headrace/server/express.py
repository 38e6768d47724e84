"""Tokens straight from where they are said to the socket, while their reader keeps up.

In: deltas. Out: bytes on the client's connection. Thread: the event loop, or the engine thread; in
turns.

A task that is woken for every token, and the layers of `send`, cost more than everything else
between the model and the client; and for a few streams, waking the loop costs more than that. So
while a stream says nothing but tokens, whoever has one writes it at once: the loop, when it hears
of many streams' tokens together; the engine thread, when they are few, and then the loop hears of
them later, for the log. The turns are `Pump.open_bypass` and `Pump.close_bypass`: the lane carries
tokens only while everything older has been sent, and nobody else writes meanwhile.

What a socket did not take of a frame is left for the loop, which writes it first. (Over a WebSocket
others do write meanwhile: see `socket/shared.py`.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.types import Scope

from headrace.events import Event
from headrace.server.shortcut import Shortcut
from headrace.wire.numbered import Encoder

EXTENSION = "headrace.transport"
"""Where `run.py` puts a connection's transport into the scope."""


def transport_of(scope: Scope) -> Any:
    """The connection's transport; None where the server shows none."""
    return scope.get("extensions", {}).get(EXTENSION)


class Lane:
    """One stream's way around `send`. Implements `headrace.streams.ear.Bypass`."""

    def __init__(self, shortcut: Shortcut, encoder: Encoder) -> None:
        self._shortcut = shortcut
        self._encode = encoder.encode
        self._closing: asyncio.Future[None] | None = None
        self.position = 0

    @classmethod
    def of(cls, scope: Scope, encoder: Encoder) -> Lane | None:
        """A lane for a chunked response over a plain connection that shows its transport."""
        transport = transport_of(scope)
        if transport is None or scope["http_version"] != "1.1":
            return None
        shortcut = Shortcut.of(transport)
        return None if shortcut is None else cls(shortcut, encoder)  # `send` needs none

    @property
    def is_clear(self) -> bool:
        """Everything that the loop wrote has been sent."""
        return self._shortcut.is_clear

    def take(self, events: Sequence[Event], *, is_early: bool) -> bool:
        """Either thread: send `events` without waiting; False when who wrote before must."""
        # What the loop wrote a moment ago may still be on its way.
        if self._shortcut.left_over or not self._shortcut.is_clear:
            return False
        try:
            body = b"".join([self._encode(event) for event in events])
        except Exception:  # the writer will meet it, too, where it harms this stream alone
            return False
        if body:
            frame = b"%x\r\n%b\r\n" % (len(body), body)
            if is_early:
                self._shortcut.write(frame)
            else:
                self._shortcut.write_on_loop(frame)
        return True

    async def closing(self) -> None:
        """On the loop, while this is open: returns when it is closed."""
        self._closing = asyncio.get_running_loop().create_future()
        await self._closing

    def closed(self) -> None:
        if self._closing is not None and not self._closing.done():
            self._closing.set_result(None)

    def write_left_over(self) -> None:
        """On the loop, when this is closed: write what the socket did not take, past the framing of
        `send`."""
        self._shortcut.write_left_over()

    def end(self) -> None:
        """On the loop, when nobody can write here any more."""
        self._shortcut.close()
