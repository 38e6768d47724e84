"""Runs the app: sockets, uvicorn, signals, and the way out.

In: an ASGI app and the sockets it listens on. Out: the signal that ended it.
Thread: the process's main one, whose event loop this is. Next: `app.py`.

On SIGTERM or SIGINT the server goes on listening, so that new requests are told to come again,
until what was admitted is answered or `drain_timeout_s` is over; whoever is not done then is told
so. A second signal stops at once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import signal
import socket
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, cast

import uvicorn
import uvloop
from starlette.types import ASGIApp

from headrace.errors import CannotListen
from headrace.server.http import HTTPConnection
from headrace.server.socket.protocol import SocketProtocol

BACKLOG = 2048
"""Connections that may wait to be accepted."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TICK_S = 1.0
"""How often the `date` header moves on: all that an idle server does."""
_LOOK_S = 0.05
"""How often a server that drains looks whether it is done."""
_LAST_WORDS_S = 2
"""For the last words to those who are not done when the drain is over."""


class Drainable(Protocol):
    """What is known of the requests. Used on the event loop."""

    def begin_drain(self) -> None:
        """Take no more requests; finish what was admitted."""

    @property
    def num_open(self) -> int:
        """Requests that are being answered."""


class Runner:
    """One app, run once."""

    def __init__(
        self,
        app: ASGIApp,
        drainable: Drainable,
        *,
        drain_timeout_s: float = 25.0,
        keep_alive_s: float = 75.0,
        read_timeout_s: float = 30.0,
        write_timeout_s: float = 60.0,
        max_message_bytes: int = 4_000_000,
        cut: Callable[[], None] = lambda: None,
    ) -> None:
        """`max_message_bytes` is the most of one message over a WebSocket. `cut` ends whatever is
        still open after `drain_timeout_s`; it is called on a thread, and may take a moment. Times
        are in seconds; see `ServerSettings`."""
        self._drainable = drainable
        self._drain_timeout_s = drain_timeout_s
        self._cut = cut
        self._config = _config(
            app, keep_alive_s, read_timeout_s, write_timeout_s, max_message_bytes
        )
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()
        self._signal: signal.Signals | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopped = False
        self._is_cutting = False
        self._server: _Server | None = None

    def run(
        self, sockets: Sequence[socket.socket], on_started: Callable[[], None] = lambda: None
    ) -> signal.Signals | None:
        """Serve until a signal, or `stop`; returns the first signal. Closes the sockets.

        `on_started` is called on the loop as soon as connections are accepted.
        """
        log = logging.getLogger("uvicorn.error")
        log.addFilter(self._is_news)
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve(sockets, on_started))
        finally:
            log.removeFilter(self._is_news)
        return self._signal

    def stop(self) -> None:
        """Any thread: drain and end, as after SIGTERM."""
        self._is_stopped = True
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._stopping.set)

    async def _serve(
        self, sockets: Sequence[socket.socket], on_started: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        if self._is_stopped:
            self._stopping.set()
        self._server = _Server(self._config, self._until_drained, on_started)
        with self._signals(self._loop):
            await self._server.serve(list(sockets))

    @contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # Python gives signals to the main thread alone.
            return
        for each in _SIGNALS:
            loop.add_signal_handler(each, self._heard, each)
        try:
            yield
        finally:
            for each in _SIGNALS:
                loop.remove_signal_handler(each)

    def _is_news(self, record: logging.LogRecord) -> bool:
        """Requests that are cut off on purpose fail, which is no news."""
        return not self._is_cutting

    def _heard(self, which: signal.Signals) -> None:
        if self._signal is None:
            self._signal = which
            self._stopping.set()
            return
        self._is_cutting = True
        self._at_once.set()
        if self._server is not None:
            self._server.force_exit = True

    async def _until_drained(self) -> None:
        """Returns when the server is to close its connections."""
        await self._stopping.wait()
        self._drainable.begin_drain()
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._drain_timeout_s
        while self._drainable.num_open and loop.time() < ends_at and not self._at_once.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._at_once.wait(), _LOOK_S)
        if self._at_once.is_set():
            self._config.timeout_graceful_shutdown = 0
            return
        if self._drainable.num_open:
            self._is_cutting = True
            await asyncio.to_thread(self._cut)
        # Answers that are whole may still be on their way to a slow reader.
        left_s = math.ceil(ends_at - loop.time())
        self._config.timeout_graceful_shutdown = max(_LAST_WORDS_S, left_s)


class _Server(uvicorn.Server):
    """uvicorn's server, which wakes once a second instead of ten times, and drains before it shuts
    its connections."""

    def __init__(
        self,
        config: uvicorn.Config,
        until_drained: Callable[[], Any],
        on_started: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._until_drained = until_drained
        self._on_started = on_started

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """They are the runner's."""
        yield

    async def main_loop(self) -> None:
        await self.on_tick(0)
        self._on_started()
        ticking = asyncio.create_task(self._tick())
        try:
            await self._until_drained()
        finally:
            ticking.cancel()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            await self.on_tick(0)


def _config(
    app: ASGIApp,
    keep_alive_s: float,
    read_timeout_s: float,
    write_timeout_s: float,
    max_message_bytes: int,
) -> uvicorn.Config:
    limits = {"read_timeout_s": read_timeout_s, "write_timeout_s": write_timeout_s}
    return uvicorn.Config(
        cast(Any, app),
        interface="asgi3",
        http=type("HTTP", (HTTPConnection,), limits),
        ws=type("Socket", (SocketProtocol,), limits),
        ws_max_size=max_message_bytes,
        # Tokens are too short to be worth the time.
        ws_per_message_deflate=False,
        lifespan="off",
        workers=1,
        backlog=BACKLOG,
        timeout_keep_alive=math.ceil(keep_alive_s),
        # Who stands behind a proxy is the proxy's business; no header is believed.
        proxy_headers=False,
        server_header=False,
        # One line a request is `observe/logs.py`'s.
        access_log=False,
        log_config=None,
        log_level="error",
    )


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on `port` at every address that `host` means. Who connects waits until
    the server runs.

    Port 0 takes a free one. Raises `CannotListen`, with the remedy.
    """
    try:
        found = socket.getaddrinfo(
            host.removeprefix("[").removesuffix("]"),
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
    except (OSError, UnicodeError):
        raise CannotListen(
            f"{host!r} is no address or name of this machine; set another `host`", param="host"
        ) from None
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(found):
        # All of a name's addresses get the same port.
        at = (address[0], sockets[0].getsockname()[1] if sockets else port, *address[2:])
        try:
            sockets.append(_listening(family, kind, protocol, at))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                close_all(sockets)
                raise _cannot_listen(error, host, port) from error
            absent = error  # `localhost` where there is no IPv6, for example
    if not sockets:
        raise _cannot_listen(absent or OSError(), host, port)
    return sockets


def close_all(sockets: Sequence[socket.socket]) -> None:
    for each in sockets:
        each.close()


def _listening(family: int, kind: int, protocol: int, address: tuple[Any, ...]) -> socket.socket:
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _cannot_listen(error: OSError, host: str, port: int) -> CannotListen:
    match error.errno:
        case errno.EADDRINUSE:
            return CannotListen(
                f"port {port} of {host} is in use by another program; stop that, or choose "
                f"another with --port {port + 1 if port < 65535 else 0}",
                param="port",
            )
        case errno.EACCES | errno.EPERM:
            return CannotListen(
                f"port {port} is for programs with privileges; choose one from 1024 on with --port",
                param="port",
            )
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return CannotListen(f"{host} is no address of this machine; set another `host`")
    return CannotListen(f"cannot listen on port {port} of {host}: {error.strerror or error}")
