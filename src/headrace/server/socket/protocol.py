"""uvicorn's WebSocket, with many messages in one write, and a close code for a server that goes.

In: ASGI messages. Out: bytes. Thread: the event loop. Next: `shared.py`.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State

from headrace.errors import InvalidRequest
from headrace.server.socket.outlet import MESSAGES
from headrace.server.socket.shared import SharedTransport
from headrace.server.write_timeout import WriteTimeout
from headrace.wire.error_body import error_body
from headrace.wire.socket_frames import text_frames

_GOING_AWAY = 1001


class SocketProtocol(WriteTimeout, WebSocketsSansIOProtocol):
    """One connection, after its upgrade."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._shared = SharedTransport(transport, self.loop, lambda: self._is_open)
        self.transport = cast(asyncio.Transport, self._shared)

    @property
    def _is_open(self) -> bool:
        """Any thread."""
        return self.conn.state is State.OPEN and not self.close_sent and not self.disconnected

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if self.handshake_initiated and not self.handshake_complete:
            # The scope is a plain dict, and this is ours: the types know only what ASGI knows.
            self.scope["extensions"][MESSAGES] = {
                "write": self.write_now,
                "early": self._shared,
            }

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            # No request for a WebSocket: uvicorn would leave it without an answer, and open.
            self._refuse()

    def _refuse(self) -> None:
        self.handshake_initiated = self.close_sent = True
        answer = b"".join(self.conn.data_to_send())
        if not answer:
            body = error_body(InvalidRequest("this is no request for a WebSocket: it has a body"))
            head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            answer = head + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body
        self.transport.write(answer)
        self.transport.close()

    async def send(self, message: Any) -> None:
        """Beside what ASGI knows: all messages of a turn, framed by us, which takes a tenth of the
        time. Nothing of `websockets` is passed over: there are no extensions, no fragments, and
        the state is looked at."""
        if message["type"] != MESSAGES:
            await super().send(message)
            if message["type"] == "websocket.http.response.body" and self.close_sent:
                # A refusal is an answer to the handshake, too: uvicorn would call it an error.
                self.handshake_complete = True
            return
        await self.writable.wait()
        if not self.write_now(message["messages"]):
            raise ClientDisconnected

    def write_now(self, messages: list[bytes]) -> bool:
        """Send them without waiting; False where the client is slow, or gone."""
        if self._is_open and self.writable.is_set():
            self.transport.write(text_frames(messages))
            return True
        return False

    def shutdown(self) -> None:
        """The server goes: so say the close code, which by uvicorn is that of a restart."""
        if self.handshake_complete and self.conn.state is State.OPEN and not self.close_sent:
            self.stop_keepalive()
            self.queue.put_nowait({"type": "websocket.disconnect", "code": _GOING_AWAY})
            self.conn.send_close(_GOING_AWAY, "the server is shutting down")
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
            self.transport.close()
            return
        super().shutdown()
