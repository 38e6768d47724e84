"""A log as server-sent events, to one client over HTTP.

In: a pump's log. Out: bytes, as fast as the client reads. Thread: the event loop; while a stream
has nothing but tokens to say, `express.py` writes them.

A client that reads slowly makes `send` wait; what comes meanwhile is merged by the view. Where all
that was written left at once, nothing is merged: that several tokens came together is not the
client's doing.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import Receive, Scope, Send

from headrace.events import Event
from headrace.server.express import Lane, transport_of
from headrace.server.progress import LOOK_S, ProgressTeller
from headrace.streams.pump import Pump
from headrace.wire.numbered import Encoder

HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    # Proxies that buffer would keep tokens back.
    (b"x-accel-buffering", b"no"),
]


_MANY = 64
"""Tokens that are merged whoever is late: one by one they would hold up the loop."""


async def left(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventWriter:
    """One response: everything that a pump's log says, from its first event to its end."""

    def __init__(
        self,
        pump: Pump,
        encoder: Encoder,
        scope: Scope,
        send: Send,
        *,
        may_bypass: bool = True,
        tells_progress: bool = False,
    ) -> None:
        """`may_bypass`: nobody else reads this log. `tells_progress`: the client asked how far its
        request is while it says nothing."""
        self._pump = pump
        self._encoder = encoder
        self._send = send
        self._view = pump.log.view()
        self._progress = ProgressTeller(pump) if tells_progress else None
        self._lane = Lane.of(scope, encoder) if may_bypass else None
        self._transport = transport_of(scope)
        self._is_behind = self._transport is None
        """The client had not taken all that was written, or nobody can tell."""

    async def write(self, headers: list[tuple[bytes, bytes]]) -> None:
        """The whole response, with `headers` beside its own."""
        start = {"type": "http.response.start", "status": 200, "headers": [*HEADERS, *headers]}
        try:
            await self._send(start)
            if self._progress is not None:
                await self._tell(self._progress)
            while events := self._ready() or await self._more():
                await self._say(events)
                if self._encoder.is_ended:
                    break
        finally:
            if self._lane is not None:
                self._pump.close_bypass(self._lane)
                self._lane.end()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tell(self, progress: ProgressTeller) -> None:
        """Until there is a token, or an end."""
        while not progress.is_over:
            if news := progress.frame():
                await self._send({"type": "http.response.body", "body": news, "more_body": True})
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._view.wait()
            await self._say(self._ready())

    async def _say(self, events: list[Event]) -> None:
        body = b"".join([self._encoder.encode(event) for event in events])
        if body:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            self._look_behind()

    def _look_behind(self) -> None:
        if self._transport is not None:
            self._is_behind = self._transport.get_write_buffer_size() > 0

    async def _more(self) -> list[Event]:
        """The next events that nobody has written; an empty list at the end."""
        if self._lane is not None:
            await asyncio.sleep(0)  # what was just written leaves the loop in its next turn
            await self._ride(self._lane)
        if not self._view.has_more:
            await self._view.wait()
            self._look_behind()
        return self._ready()

    def _ready(self) -> list[Event]:
        """What nobody has written yet; maybe nothing."""
        is_late = self._is_behind or len(self._pump.log) - self._view.position > _MANY
        return self._view.ready() if is_late else self._view.each()

    async def _ride(self, lane: Lane) -> None:
        """Let `lane` write as long as it can."""
        lane.position = self._view.position
        if lane.is_clear and self._pump.open_bypass(lane):
            await lane.closing()
            self._view.position = lane.position
            lane.write_left_over()
            self._look_behind()
