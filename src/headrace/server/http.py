"""uvicorn's HTTP connection, and what it leaves out: bounds, who has left, wishes left aside.

In: bytes. Out: ASGI requests; the connection of a WebSocket goes on as `socket/protocol.py`.
Thread: the event loop. Next: `app.py`.

- A client must send each request within a time, and its head within a size; and read its answer
  within one (`write_timeout.py`).
- Who leaves is seen to leave also by the request that is being answered while others, sent ahead,
  wait behind it.
- A wish for another protocol that is not granted is left aside: the request is answered over HTTP.
- Clients of HTTP/1.0, which knows no chunks, get none.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from headrace.errors import HeadraceError, InvalidRequest
from headrace.server.express import EXTENSION
from headrace.server.write_timeout import WriteTimeout
from headrace.wire.error_body import error_body
from headrace.wire.ids import request_id

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

MAX_AHEAD = 16
"""Requests that a client may send before the first is answered and still be listened to: whoever is
not, is not seen to leave."""
MAX_HEAD_BYTES = 65_536
"""Of a request's line and headers, beside what one read of the socket brings."""


class _UnframedCycle(RequestResponseCycle):
    """An answer of unknown length goes on until the connection ends, as it does after each answer
    to HTTP/1.0."""

    _is_unframed = False

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", ())}
            self._is_unframed = b"content-length" not in names
            if self._is_unframed:
                self.chunked_encoding = False
        elif message["type"] == "http.response.body" and self._is_unframed:
            # As much as comes: else the parent class misses what was never promised.
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class HTTPConnection(WriteTimeout, HttpToolsProtocol):
    """One connection over HTTP/1."""

    read_timeout_s = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._is_in_head = True
        self._num_head_bytes = 0
        self._late = self._timer()
        self._data = b""
        self._answering: RequestResponseCycle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._late.cancel()
        # uvicorn leaves its timer running where a connection is reset, and with it all of this.
        self._unset_keepalive_if_required()
        # It tells the newest request alone, which may wait behind the one that is being answered.
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        was_in_head = self._is_in_head
        self._data = data
        super().data_received(data)
        if was_in_head and self._is_in_head:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._refuse(
                    b"431 Request Header Fields Too Large",
                    InvalidRequest(f"the request's headers are larger than {MAX_HEAD_BYTES} bytes"),
                )

    def on_message_begin(self) -> None:
        self._is_in_head = True
        self._late.cancel()
        self._late = self._timer()
        super().on_message_begin()
        # The scope is a plain dict, and this is ours: the types know only what ASGI knows.
        self.scope["extensions"] = {EXTENSION: self.transport}  # type: ignore[dict-item]

    def _should_upgrade(self) -> bool:
        # Of other requests the wish is left aside, as HTTP allows: they are answered over HTTP.
        return self.parser.get_method() == b"GET" and super()._should_upgrade()

    @property
    def _has_idle_wish(self) -> bool:
        """The request asks for a protocol that it will not get."""
        return self.parser.should_upgrade() and not self._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """The parser took the body for the other protocol: read all again without the wish."""
        refused = sys.exc_info()[1]
        assert isinstance(refused, httptools.HttpParserUpgrade)
        rest, method = self._data[refused.args[0] :], self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("this is no proxy")
            return
        version = self.parser.get_http_version().encode()
        head = [b"%b %b HTTP/%b" % (method, self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                kept = [each for each in value.split(b",") if each.strip().lower() != b"upgrade"]
                value = b",".join(kept) or b"keep-alive"
            if name != b"upgrade":
                head.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join(head) + b"\r\n\r\n" + rest)

    def handle_websocket_upgrade(self) -> None:
        self._late.cancel()  # from here on the connection is `SocketProtocol`'s
        super().handle_websocket_upgrade()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._num_head_bytes = 0
        if self._has_idle_wish:
            return
        super().on_headers_complete()
        if 0 < len(self.pipeline) <= MAX_AHEAD:
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        if cycle.scope["http_version"] == "1.0":
            # uvicorn makes the cycle where it reads the head, and asks nobody of what kind.
            cycle.__class__ = _UnframedCycle
        super()._start_asgi_task(cycle, app)

    def on_message_complete(self) -> None:
        if self._has_idle_wish:
            return
        self._late.cancel()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(b"400 Bad Request", InvalidRequest(msg))

    def _timer(self) -> asyncio.TimerHandle:
        return self.loop.call_later(self.read_timeout_s, self._give_up)

    def _give_up(self) -> None:
        # A request that is being read sees its client leave.
        self.transport.close()

    def _refuse(self, status: bytes, error: HeadraceError) -> None:
        body = error_body(error)
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\nconnection: close\r\n" % status
        head += b"x-request-id: %b\r\n" % request_id().encode()
        self.transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        self.transport.close()
