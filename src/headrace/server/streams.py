"""Kept streams over HTTP: read from any number, as events or by polling; stopped by any owner.

In: a stream's id and the last number a reader has. Out: numbered frames. Thread: the event loop.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.errors import InvalidRequest
from headrace.server import sse
from headrace.server.exchange import exchange_of
from headrace.server.serving import Serving
from headrace.server.telling import Telling
from headrace.streams.kept import Kept
from headrace.wire.json_bytes import body, compact
from headrace.wire.numbered import Frame, Numbered
from headrace.wire.sse import PING, retry

RETRY_S = 1.0
"""How long an `EventSource` waits before it comes back."""
MAX_WAIT_S = 60.0
"""The longest poll."""
_LARGEST = 2**53


def stream_headers(serving: Serving, kept: Kept[Telling]) -> list[tuple[bytes, bytes]]:
    """By which to come back."""
    headers = [(b"x-headrace-stream", kept.id.encode())]
    if not serving.access.is_open:
        token = serving.tokens.make(kept.id, kept.tenant)
        headers.append((b"x-headrace-stream-token", token.encode()))
    return headers


class KeptWriter:
    """One reader's response: every frame after a number, as server-sent events."""

    def __init__(self, kept: Kept[Telling], *, after: int, heartbeat_s: float) -> None:
        self._kept = kept
        self._frames = Numbered(kept.form.encoder(), after)
        self._view = kept.pump.log.view()
        self._heartbeat_s = heartbeat_s

    async def write(self, receive: Receive, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        """Until the end, or until the client leaves, which does not end the stream."""
        start = {"type": "http.response.start", "status": 200, "headers": [*sse.HEADERS, *headers]}
        with self._kept.reading():
            leaving = asyncio.create_task(sse.left(receive))
            try:
                await send(start)
                await _send_part(send, retry(RETRY_S))
                while not leaving.done() and (part := await self._next_part(leaving)):
                    await _send_part(send, part)
            finally:
                leaving.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def ready(self) -> list[Frame]:
        """Frames that nobody has to wait for."""
        return [frame for event in self._view.each() for frame in self._frames.encode(event)]

    async def wait(self) -> None:
        """Returns when something has come, or nothing will."""
        await self._view.wait()

    async def _next_part(self, leaving: asyncio.Task[None]) -> bytes:
        """More frames, or a sign of life; nothing at the end."""
        while not self._frames.is_ended:
            if frames := self.ready():
                return b"".join([frame.as_sse() for frame in frames])
            if self._kept.pump.log.is_over and not self._view.has_more:
                return b""
            arrival = asyncio.ensure_future(self._view.wait())
            try:
                done, _ = await asyncio.wait(
                    (arrival, leaving),
                    timeout=self._heartbeat_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                arrival.cancel()
            if leaving in done:
                return b""
            if not done:
                return PING
        return b""


class Attachment:
    """The response of `GET /streams/{id}`."""

    def __init__(self, serving: Serving, kept: Kept[Telling], after: int) -> None:
        self._serving = serving
        self._kept = kept
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange_of(scope).is_streamed = True
        if _has_all(self._kept, self._after):
            # An `EventSource` comes back also after the end; this tells it to stop.
            await Response(status_code=204)(scope, receive, send)
            return
        writer = KeptWriter(
            self._kept, after=self._after, heartbeat_s=self._serving.settings.heartbeat_s
        )
        await writer.write(receive, send, stream_headers(self._serving, self._kept))


class StreamHandlers:
    """What `app.py` routes to."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def attach(self, request: Request) -> ASGIApp:
        """Events after `Last-Event-ID`, or `?after=N`; 204 for who has them all."""
        kept = self._find(request)
        given = request.headers.get("last-event-id") or request.query_params.get("after") or "0"
        return Attachment(self._serving, kept, _number(given, "after"))

    async def poll(self, request: Request) -> ASGIApp:
        """`?after=N&wait=S`: what has come after N, waiting for something at most S seconds."""
        kept = self._find(request)
        after = _number(request.query_params.get("after", "0"), "after")
        wait_s = _seconds(request.query_params.get("wait", "0"))
        reader = KeptWriter(kept, after=after, heartbeat_s=wait_s)
        with kept.reading():
            frames = reader.ready()
            if not frames and wait_s:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        frames = await self._first(reader, kept)
        last = frames[-1].number if frames else after
        is_done = _has_all(kept, last)
        path = f"{request.url.path}?after={last}"
        return _json(_page(frames, path, is_done))

    async def stop(self, request: Request) -> ASGIApp:
        """End the stream; what it said until now stays readable for a while."""
        kept = self._find(request)
        kept.stop()
        await kept.pump.log.ended()
        return _json(body({"id": kept.id, "object": "stream", "status": "ended"}))

    @staticmethod
    async def _first(reader: KeptWriter, kept: Kept[Telling]) -> list[Frame]:
        while not kept.pump.log.is_over:
            await reader.wait()
            if frames := reader.ready():
                return frames
        return reader.ready()

    def _find(self, request: Request) -> Kept[Telling]:
        wanted = request.path_params["id"]
        token = request.query_params.get("token")
        if token is not None:
            tenant = self._serving.tokens.tenant(wanted, token)
        else:
            tenant = self._serving.access.authenticate(request.scope["headers"]).id
        exchange_of(request.scope).tenant = tenant
        return self._serving.streams.find(wanted, tenant)


def _has_all(kept: Kept[Telling], after: int) -> bool:
    """The stream is over, and number `after` was its last."""
    if not kept.pump.log.is_over:
        return False
    frames = Numbered(kept.form.encoder())
    for event in kept.pump.log:
        frames.encode(event)
    return after >= frames.number


def _page(frames: list[Frame], path: str, is_done: bool) -> bytes:
    events = b",".join(
        [
            b'{"id":%d,"data":%b}'
            % (frame.number, b'"[DONE]"' if frame.data == b"[DONE]" else frame.data)
            for frame in frames
        ]
    )
    tail = b'],"next":%b,"done":%b}\n' % (compact(path), b"true" if is_done else b"false")
    return b'{"events":[' + events + tail


def _number(text: str, name: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:20]) > _LARGEST:
        raise InvalidRequest(
            f"`{name}` must be the number of an event, not {text[:40]!r}", param=name
        )
    return int(text)


def _seconds(text: str) -> float:
    try:
        wait_s = float(text)
    except ValueError:
        wait_s = -1.0
    if not 0 <= wait_s <= MAX_WAIT_S:
        raise InvalidRequest(
            f"`wait` must be seconds from 0 to {MAX_WAIT_S:g}, not {text[:40]!r}", param="wait"
        )
    return wait_s


async def _send_part(send: Send, part: bytes) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": True})


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json", headers={"cache-control": "no-store"})
