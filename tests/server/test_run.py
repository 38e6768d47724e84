"""A real server on a free port, around small apps: how it listens, drains and stops."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from headrace.engine.request import Request
from headrace.errors import CannotListen
from headrace.events import Delta
from headrace.server import run
from headrace.server.http import MAX_HEAD_BYTES
from headrace.server.run import Runner, close_all, listen
from headrace.testing import scripted_engine

TEXT = "A stream of words that goes on for a while, until it has said everything."


class App:
    """Counts its open requests; a request is answered with `TEXT`, by an engine."""

    def __init__(self, tokens_per_s: float = math.inf, text: str = TEXT) -> None:
        self.engine = scripted_engine(text, tokens_per_s=tokens_per_s)
        self.num_open = 0
        self.is_draining = False
        self.began = threading.Event()

    def begin_drain(self) -> None:
        self.is_draining = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.num_open += 1
        try:
            await self._body(receive)
            status = 503 if self.is_draining else 200
            await send({"type": "http.response.start", "status": status, "headers": []})
            if status == 200:
                await self._answer(send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self.num_open -= 1

    async def _body(self, receive: Receive) -> None:
        while (await receive()).get("more_body"):
            pass

    async def _answer(self, send: Send) -> None:
        async with self.engine.generate(Request(prompt="x")) as stream:
            async for event in stream:
                if isinstance(event, Delta):
                    body = event.text.encode()
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                    self.began.set()


class Server:
    """A runner on a thread of its own."""

    def __init__(self, app: App, **settings: Any) -> None:
        self.app = app
        self.runner = Runner(app, app, **settings)
        self.sockets = listen("127.0.0.1", 0)
        self.port = self.sockets[0].getsockname()[1]
        self.came: list[signal.Signals | None] = []
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._is_up.wait(20)

    def _run(self) -> None:
        self.came.append(self.runner.run(self.sockets, self._is_up.set))

    def connect(self, data: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(data)
        return connection

    def signal(self) -> None:
        """As if SIGTERM had come, which only the main thread can hear."""
        loop = self.runner._loop
        assert loop is not None
        loop.call_soon_threadsafe(self.runner._heard, signal.SIGTERM)

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextmanager
def serving(app: App | None = None, **settings: Any) -> Iterator[Server]:
    server = Server(app or App(), **settings)
    try:
        yield server
    finally:
        server.runner.stop()
        server.app.engine.close()
        server.join()


GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


def everything(connection: socket.socket) -> bytes:
    """Until the server closes."""
    received = b""
    with connection:
        while part := connection.recv(65536):
            received += part
    return received


def said(response: bytes) -> str:
    """The text of a chunked body."""
    body = response.partition(b"\r\n\r\n")[2]
    return b"".join(body.split(b"\r\n")[1::2]).decode()


def is_whole(response: bytes) -> bool:
    return response.endswith(b"0\r\n\r\n")


def test_an_answer_and_its_headers() -> None:
    with serving() as server:
        response = everything(server.connect(GET.replace(b"host", b"connection: close\r\nhost")))
    head = response.partition(b"\r\n\r\n")[0].lower()
    assert said(response) == TEXT
    assert b"date: " in head
    assert b"server:" not in head


def test_what_was_begun_ends_and_what_comes_late_is_told_so() -> None:
    with serving(App(tokens_per_s=100)) as server:
        begun = server.connect(GET)
        assert server.app.began.wait(20)
        idle = server.connect()
        server.runner.stop()
        late = None
        while late is None or not late.startswith(b"HTTP/1.1 503"):  # until the loop has heard
            late = everything(server.connect(GET.replace(b"host", b"connection: close\r\nhost")))
        response = everything(begun)
        assert (said(response), is_whole(response)) == (TEXT, True)
        server.join()
        assert everything(idle) == b""
        assert server.came == [None]
        with pytest.raises(OSError, match="refused"):
            server.connect()


def test_the_drain_has_an_end() -> None:
    app = App(tokens_per_s=100, text=TEXT * 1000)
    cut: list[int] = []

    def close() -> None:
        cut.append(app.num_open)
        app.engine.close()

    with serving(app, drain_timeout_s=0.1, cut=close) as server:
        begun = server.connect(GET)
        assert app.began.wait(20)
        server.signal()
        response = everything(begun)
        server.join()
    # The engine's last words reached it before its connection was closed.
    assert is_whole(response)
    assert said(response).startswith(TEXT[:10])
    assert cut == [1]
    assert server.came == [signal.SIGTERM]


def test_a_second_signal_stops_at_once(caplog: pytest.LogCaptureFixture) -> None:
    with serving(App(tokens_per_s=100, text=TEXT * 1000), drain_timeout_s=600) as server:
        begun = server.connect(GET)
        assert server.app.began.wait(20)
        server.signal()
        server.signal()
        assert not is_whole(everything(begun))
        server.join()
    assert server.app.num_open == 0
    assert not caplog.records


def test_stopping_before_the_start_stops_at_the_start() -> None:
    app = App()
    runner = Runner(app, app)
    runner.stop()
    assert runner.run(listen("127.0.0.1", 0)) is None
    runner.stop()
    app.engine.close()
    assert app.is_draining


def test_headers_without_end_are_refused() -> None:
    with serving() as server:
        begun = b"GET / HTTP/1.1\r\nx: "
        # Not a byte too many: what a server leaves unread resets the connection.
        received = everything(server.connect(begun + b"a" * (MAX_HEAD_BYTES + 1 - len(begun))))
    assert received.startswith(b"HTTP/1.1 431 ")
    error = json.loads(received.partition(b"\r\n\r\n")[2])["error"]
    assert str(MAX_HEAD_BYTES) in error["message"]


def test_a_long_body_is_no_long_head() -> None:
    with serving() as server:
        length = 4 * MAX_HEAD_BYTES
        head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        connection = server.connect(head % length)
        for _ in range(4):
            connection.sendall(b"a" * MAX_HEAD_BYTES)
        assert said(everything(connection)) == TEXT


def test_what_is_no_http_gets_the_envelope() -> None:
    with serving() as server:
        response = everything(server.connect(b"nonsense\r\n\r\n"))
    assert response.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert json.loads(response.partition(b"\r\n\r\n")[2])["error"]["type"]


@pytest.mark.parametrize(
    "begun",
    [b"", b"GET / HT", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab"],
    ids=["nothing", "half a head", "half a body"],
)
def test_a_client_that_sends_no_more_is_left(begun: bytes) -> None:
    with serving(read_timeout_s=0.1) as server:
        # Nothing but its own app's answer, if that did not notice: no request was whole.
        assert b"200 OK" not in everything(server.connect(begun)).partition(b"\r\n")[2]
        # An answer may take longer than its request.
        server.app.began.clear()
        slow = everything(server.connect(GET.replace(b"host", b"connection: close\r\nhost")))
        assert said(slow) == TEXT


def test_an_answer_may_take_longer_than_its_request() -> None:
    with serving(App(tokens_per_s=60), read_timeout_s=0.05) as server:
        response = everything(server.connect(GET.replace(b"host", b"connection: close\r\nhost")))
    assert said(response) == TEXT


def test_a_port_that_is_taken() -> None:
    [taken] = listen("127.0.0.1", 0)
    port = taken.getsockname()[1]
    with taken, pytest.raises(CannotListen, match=f"port {port} .* is in use") as caught:
        listen("127.0.0.1", port)
    assert f"--port {port + 1}" in caught.value.message


@pytest.mark.parametrize("host", ["no such host", "nobody.invalid", "x" * 70, "é" * 70])
def test_a_host_that_is_none(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if host == "nobody.invalid":
        monkeypatch.setattr(socket, "getaddrinfo", _unknown)
    with pytest.raises(CannotListen, match="set another `host`"):
        close_all(listen(host, 0))


def _unknown(*_: object, **__: object) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "unknown")


def test_an_address_of_another_machine() -> None:
    with pytest.raises(CannotListen, match=r"192\.0\.2\.1 is no address of this machine"):
        listen("192.0.2.1", 0)


def test_a_port_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_listening", _failing(errno.EACCES))
    with pytest.raises(CannotListen, match="port 80 is for programs with privileges"):
        listen("127.0.0.1", 80)


def _failing(number: int) -> Callable[..., socket.socket]:
    def bound(*_: object) -> socket.socket:
        raise OSError(number, "no")

    return bound


def test_all_addresses_of_a_name_get_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))
        for address in ("127.0.0.1", "192.0.2.1", "127.0.0.2", "127.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    sockets = listen("several", 0)
    names = [each.getsockname() for each in sockets]
    close_all(sockets)
    # The one that is not there is left out.
    assert [address for address, _ in names] == ["127.0.0.1", "127.0.0.2"]
    assert len({port for _, port in names}) == 1


def test_no_socket_is_left_where_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[socket.socket] = []

    def second_fails(*arguments: Any) -> socket.socket:
        if bound:
            raise OSError(errno.EADDRINUSE, "taken")
        bound.append(socket.socket(*arguments[:3]))
        return bound[-1]

    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))
        for address in ("127.0.0.1", "127.0.0.2")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(run, "_listening", second_fails)
    monkeypatch.setattr(socket.socket, "getsockname", lambda self: ("127.0.0.1", 5))
    with pytest.raises(CannotListen):
        listen("several", 5)
    assert bound[0].fileno() == -1


def test_signals_are_the_runners_and_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    app = App()
    runner = Runner(app, app)

    def interrupt() -> None:
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)

    assert runner.run(listen("127.0.0.1", 0), interrupt) is signal.SIGINT
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    app.engine.close()
