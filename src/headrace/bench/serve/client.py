"""The least HTTP/1.1 client that load needs: bytes go to a listener as they come, without a task.

In: whole requests. Out: statuses and bodies, told to listeners. Thread: one event loop's.
Next: `answer.py`, the listener.

An arriving token costs one callback of the event loop; a client that wakes a task for each would
take from the server, on the same cores, what it is meant to measure.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from headrace import __version__
from headrace.errors import BenchError

DEFAULT_PATH = "/v1"


class Listener(Protocol):
    """Hears one answer. Must not raise."""

    def hear_status(self, status: int) -> None: ...

    def hear_body(self, data: bytes, at: float) -> None:
        """A piece of the body, and the `perf_counter` moment when it came."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where requests go."""

    host: str
    port: int
    is_tls: bool
    path: str
    """Before every endpoint, e.g. `/openai/v1`; no slash at its end."""
    api_key: str | None = None

    @classmethod
    def parse(cls, url: str, api_key: str | None = None) -> Server:
        """Of a base URL; one without a path is taken for an OpenAI-compatible root, `/v1`.

        Raises `BenchError`."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise BenchError(f"{url!r} is no base URL such as http://127.0.0.1:8000/v1")
        is_tls = parts.scheme == "https"
        path = parts.path.rstrip("/") or DEFAULT_PATH
        return cls(parts.hostname, port or (443 if is_tls else 80), is_tls, path, api_key)

    @property
    def url(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://{self._authority}{self.path}"

    def request(self, method: str, endpoint: str, body: bytes = b"") -> bytes:
        """A whole request, ready to be sent."""
        lines = [
            f"{method} {self.path}{endpoint} HTTP/1.1",
            f"Host: {self._authority}",
            f"User-Agent: headrace-bench/{__version__}",
            "Accept: text/event-stream, application/json",
        ]
        if self.api_key is not None:
            lines.append(f"Authorization: Bearer {self.api_key}")
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body

    @property
    def _authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Connection(asyncio.Protocol):
    """One connection, for one exchange after the other."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._listener: Listener | None = None
        self._whole: asyncio.Future[None] | None = None
        self._has_length = False
        self._ends_by_closing = False
        """The body goes on until the connection is closed."""
        self.has_heard = False
        """Something of the current answer has come."""
        self.is_open = True

    async def exchange(self, request: bytes, listener: Listener) -> None:
        """Until the answer is whole. Raises `ConnectionError` where it never will be."""
        if self._transport is None or not self.is_open:
            raise ConnectionResetError("the connection is closed")
        self._whole = asyncio.get_running_loop().create_future()
        self._listener = listener
        self.has_heard = False
        self._transport.write(request)
        await self._whole

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not asserted: uvloop's transports do not descend from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._now = perf_counter()
        self.has_heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionAbortedError(f"the answer is not HTTP: {error}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._ends_by_closing and exc is None:
            self._succeed()
        elif self.has_heard:
            self._fail(ConnectionAbortedError("the connection was cut"))
        else:
            self._fail(ConnectionResetError("the connection was closed before an answer"))

    def on_message_begin(self) -> None:
        self._has_length = False
        self._ends_by_closing = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._has_length = True

    def on_headers_complete(self) -> None:
        self._ends_by_closing = not self._has_length
        if self._listener is not None and (status := self._parser.get_status_code()) >= 200:
            self._listener.hear_status(status)

    def on_body(self, data: bytes) -> None:
        if self._listener is not None:
            self._listener.hear_body(data, self._now)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            return
        if not self._parser.should_keep_alive():
            self.close()
        self._succeed()

    def _succeed(self) -> None:
        self._listener = None
        if self._whole is not None and not self._whole.done():
            self._whole.set_result(None)

    def _fail(self, error: ConnectionError) -> None:
        self._listener = None
        if self._whole is not None and not self._whole.done():
            self._whole.set_exception(error)


class Pool:
    """Connections to one server, used again while they are open."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._tls = ssl.create_default_context() if server.is_tls else None
        self._idle: list[Connection] = []

    async def ask(self, request: bytes, listener: Listener) -> None:
        """Until the answer is whole. Raises `OSError` where it never will be."""
        while self._idle:
            used = self._idle.pop()
            if not used.is_open:
                continue
            try:
                await self._exchange(used, request, listener)
            except ConnectionResetError:
                if used.has_heard:
                    raise
                # The server had closed it meanwhile, as it may: nothing was asked.
            else:
                return
        await self._exchange(await self._connect(), request, listener)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _exchange(self, connection: Connection, request: bytes, listener: Listener) -> None:
        try:
            await connection.exchange(request, listener)
        except BaseException:
            connection.close()
            raise
        if connection.is_open:
            self._idle.append(connection)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            Connection, self.server.host, self.server.port, ssl=self._tls
        )
        return connection
