"""Kept streams over HTTP: read from any number, as events or by polling; stopped by their owner.

In: a stream's id and the last number a reader has. Out: numbered frames. Thread: the event loop.

Whoever has the owner's key may do all; a token, which is for browsers, reads and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.errors import AuthenticationFailed, InvalidRequest
from headrace.server import sse
from headrace.server.exchange import exchange_of
from headrace.server.progress import LOOK_S, ProgressTeller
from headrace.server.serving import Serving
from headrace.server.telling import Telling
from headrace.streams.kept import Kept
from headrace.wire.ask import JSON
from headrace.wire.json_bytes import body, compact
from headrace.wire.numbered import Frame
from headrace.wire.sse import PING, retry

RETRY_S = 1.0
"""How long an `EventSource` waits before it comes back."""
MAX_WAIT_S = 60.0
"""The longest poll; who asks for a longer one gets this."""
_PART_BYTES = 65_536
"""Of frames in one write: what a slow reader holds in memory beside the log."""
_PAGE_BYTES = 262_144
_MOST_DIGITS = 15


def stream_headers(
    serving: Serving, kept: Kept[Telling], *, for_owner: bool = True
) -> list[tuple[bytes, bytes]]:
    """By which to come back. Who came by a token gets no other."""
    headers = [(b"x-headrace-stream", kept.id.encode())]
    if for_owner and not serving.access.is_open:
        token = serving.tokens.make(kept.id, kept.tenant)
        headers.append((b"x-headrace-stream-token", token.encode()))
    return headers


class Reader:
    """Where one client stands in a kept stream, and what it waits for."""

    def __init__(self, kept: Kept[Telling], after: int, receive: Receive) -> None:
        """Reads what follows number `after`. Made while the request is handled; `close` it."""
        self.kept = kept
        self.number = after
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._leaving = asyncio.ensure_future(sse.left(receive))
        self._leaving.add_done_callback(self._wake)

    @property
    def has_left(self) -> bool:
        return self._leaving.done()

    @property
    def has_all(self) -> bool:
        """The last frame was read."""
        return self.number >= len(self.kept.frames) and self._will_not_grow

    def part(self) -> bytes:
        """Server-sent events that nobody has to wait for, as many as fit into one write."""
        part, self.number = self.kept.frames.part_after(self.number, _PART_BYTES)
        return part

    def page(self) -> Sequence[Frame]:
        """The same as frames, as many as fit into one page."""
        frames = self.kept.frames.after(self.number, _PAGE_BYTES)
        if frames:
            self.number = frames[-1].number
        return frames

    async def pause(self, until: float) -> None:
        """Returns when something may have come, or the client has left, or at `until` on the
        loop's clock."""
        if self._will_not_grow or self.has_left:
            return
        self._waiter = self.kept.arrival()
        # One that is due earlier, of a pause before, wakes for nothing; mostly it is the same one.
        if self._timer is None or self._timer.when() > until:
            self._set_timer(until)
        await self._waiter

    def close(self) -> None:
        self._leaving.cancel()
        self._cancel_timer()

    @property
    def _will_not_grow(self) -> bool:
        return self.kept.is_over or self.kept.frames.is_ended

    def _set_timer(self, at: float) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_at(at, self._ring)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        self._wake()

    def _wake(self, *because: object) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class KeptWriter:
    """One reader's response: every frame after a number, as server-sent events."""

    def __init__(
        self, kept: Kept[Telling], *, after: int, heartbeat_s: float, tells_progress: bool = False
    ) -> None:
        self._kept = kept
        self._after = after
        self._heartbeat_s = heartbeat_s
        self._progress = ProgressTeller(kept.pump) if tells_progress else None

    async def write(self, receive: Receive, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        """Until the end, or until the client leaves, which does not end the stream."""
        start = {"type": "http.response.start", "status": 200, "headers": [*sse.HEADERS, *headers]}
        with self._kept.reading():
            reader = Reader(self._kept, self._after, receive)
            try:
                await send(start)
                await _send_part(send, retry(RETRY_S) + reader.part())
                while part := await self._next_part(reader):
                    await _send_part(send, part)
            finally:
                reader.close()
        if self._kept.frames.is_ended:
            # Choices that still speak where one has failed have no reader any more.
            self._kept.stop()
        if not reader.has_left:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next_part(self, reader: Reader) -> bytes:
        """More frames, or a sign of life; nothing at the end."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._heartbeat_s
        while not reader.has_left:
            if part := reader.part() or self._news():
                return part
            if reader.has_all:
                break
            if loop.time() >= due:
                return PING
            is_telling = self._progress is not None and not self._progress.is_over
            await reader.pause(min(due, loop.time() + LOOK_S) if is_telling else due)
        return b""

    def _news(self) -> bytes:
        return b"" if self._progress is None else self._progress.frame()


class Attachment:
    """The response of `GET /streams/{id}`."""

    def __init__(
        self,
        serving: Serving,
        kept: Kept[Telling],
        after: int,
        *,
        tells_progress: bool,
        for_owner: bool,
    ) -> None:
        self._serving = serving
        self._for_owner = for_owner
        self._kept = kept
        self._after = after
        self._tells_progress = tells_progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange_of(scope).is_streamed = True
        frames = self._kept.frames
        if frames.is_ended and self._after >= len(frames):
            # An `EventSource` comes back also after the end; this tells it to stop.
            await Response(status_code=204)(scope, receive, send)
            return
        writer = KeptWriter(
            self._kept,
            after=self._after,
            heartbeat_s=self._serving.settings.heartbeat_s,
            tells_progress=self._tells_progress,
        )
        headers = stream_headers(self._serving, self._kept, for_owner=self._for_owner)
        await writer.write(receive, send, headers)


class StreamHandlers:
    """What `app.py` routes to."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def attach(self, request: Request) -> ASGIApp:
        """Events after `Last-Event-ID`, or `?after=N`; 204 for who has them all."""
        kept = await self._readable(request)
        query = request.query_params
        after = _number(request.headers.get("last-event-id") or query.get("after") or "0")
        ask = kept.form.form.asks[0]
        wants_progress = query.get("progress") in ("1", "true")
        return Attachment(
            self._serving,
            kept,
            after,
            tells_progress=ask.progress or wants_progress,
            for_owner=self._token_of(request) is None,
        )

    async def poll(self, request: Request) -> ASGIApp:
        """`?after=N&wait=S`: what has come after N, waiting for something at most S seconds."""
        kept = await self._readable(request)
        query = request.query_params
        after, wait_s = _number(query.get("after") or "0"), _seconds(query.get("wait") or "0")
        until = asyncio.get_running_loop().time() + wait_s
        with kept.reading():
            reader = Reader(kept, after, request.receive)
            try:
                frames = reader.page()
                while not (frames or reader.has_left or reader.has_all):
                    if asyncio.get_running_loop().time() >= until:
                        break
                    await reader.pause(until)
                    frames = reader.page()
                is_done = reader.has_all
            finally:
                reader.close()
        again = {name: query[name] for name in ("wait", "token") if name in query}
        path = f"{request.scope['path']}?{urlencode({'after': reader.number, **again})}"
        return _json(_page(frames, path, is_done))

    async def stop(self, request: Request) -> ASGIApp:
        """End the stream; what it said until now stays readable for a while."""
        kept = await self._owned(request)
        kept.stop()
        await kept.pump.log.ended()
        return _told({"id": kept.id, "object": "stream", "status": "ended"})

    async def token(self, request: Request) -> ASGIApp:
        """Leave to read, for a page that has no key."""
        kept = await self._owned(request)
        tokens = self._serving.tokens
        path = request.scope["path"].removesuffix("/token")
        token = tokens.make(kept.id, kept.tenant)
        return _told(
            {
                "object": "stream.token",
                "token": token,
                "expires_at": tokens.expiry(),
                "url": f"{path}?{urlencode({'token': token})}",
            }
        )

    async def _owned(self, request: Request) -> Kept[Telling]:
        """The stream, for who brings its owner's key. Raises `AuthenticationFailed`,
        `StreamNotFound`, `StreamGone`, `ModelLoading`."""
        tenant = self._serving.access.authenticate(request.scope["headers"]).id
        return await self._of(request, tenant)

    async def _readable(self, request: Request) -> Kept[Telling]:
        """The stream, also for who brings a token. Raises as `_owned` does."""
        token = self._token_of(request)
        access = self._serving.access
        if token is None:
            return await self._owned(request)
        tenant = self._serving.tokens.tenant(request.path_params["id"], token)
        if not access.knows(tenant):
            raise AuthenticationFailed("the key behind this token was revoked")
        return await self._of(request, tenant)

    def _token_of(self, request: Request) -> str | None:
        """The one that is used; None where a key is, or none is needed."""
        is_keyed = self._serving.access.is_open or "authorization" in request.headers
        return (request.query_params.get("token") or None) if not is_keyed else None

    async def _of(self, request: Request, tenant: str) -> Kept[Telling]:
        exchange_of(request.scope).tenant = tenant
        return await self._serving.find_stream(request.path_params["id"], tenant)


def _page(frames: Sequence[Frame], path: str, is_done: bool) -> bytes:
    events = b",".join(
        [
            b'{"id":%d,"data":%b}'
            % (frame.number, b'"[DONE]"' if frame.data == b"[DONE]" else frame.data)
            for frame in frames
        ]
    )
    tail = b'],"next":%b,"done":%b}\n' % (compact(path), b"true" if is_done else b"false")
    return b'{"events":[' + events + tail


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise InvalidRequest(
            f"`after`, or `Last-Event-ID`, must be the number of an event, not {text[:40]!r}",
            param="after",
        )
    return int(text)


def _seconds(text: str) -> float:
    try:
        wait_s = float(text)
    except ValueError:
        wait_s = -1.0
    if not wait_s >= 0:
        raise InvalidRequest(f"`wait` must be seconds, not {text[:40]!r}", param="wait")
    return min(wait_s, MAX_WAIT_S)


async def _send_part(send: Send, part: bytes) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": True})


def _told(value: JSON) -> Response:
    return _json(body(value))


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json", headers={"cache-control": "no-store"})
