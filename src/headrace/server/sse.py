"""A log as server-sent events, to one client over HTTP.

In: a view of a log. Out: bytes, as fast as the client reads. Thread: the event loop.

A client that reads slowly makes `send` wait; what comes meanwhile is merged by the view.
"""

from __future__ import annotations

from typing import Protocol

from starlette.types import Receive, Send

from headrace.events import Event
from headrace.streams.log import View

HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    # Proxies that buffer would keep tokens back.
    (b"x-accel-buffering", b"no"),
]


class Encoder(Protocol):
    """Events as frames of one of the streaming formats."""

    def encode(self, event: Event) -> bytes: ...


async def left(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def write_events(
    first: list[Event],
    view: View,
    encoder: Encoder,
    send: Send,
    headers: list[tuple[bytes, bytes]],
) -> None:
    """The whole response: `first` and everything that comes after it."""
    await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, *headers]})
    encode = encoder.encode
    events = first
    while events:
        body = b"".join([encode(event) for event in events])
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        events = view.ready() or await view.take()
    await send({"type": "http.response.body", "body": b"", "more_body": False})
