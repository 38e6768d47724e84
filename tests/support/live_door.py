"""The whole server on a real port, on a thread of its own, with an engine that the test steps."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from headrace.engine.mailbox import Cancel, Submit
from headrace.server.run import Runner, listen
from headrace.testing import ManualEngine
from support.asgi import Door

WAIT_S = 10.0
"""For what must happen; only failures take it."""


class LiveDoor(Door):
    """Use with `open_door`."""

    def start(self, buffer_size: int | None = None) -> None:
        """`buffer_size`: how little the kernel keeps of what a client has not read."""
        self._sockets = listen("127.0.0.1", 0)
        if buffer_size is not None:
            for each in self._sockets:  # connections inherit it
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_size)
        self.port: int = self._sockets[0].getsockname()[1]
        self.runner = Runner(
            self.app,
            self.serving,
            drain_timeout_s=WAIT_S / 4,
            write_timeout_s=self.serving.settings.write_timeout_s,
        )
        is_up = threading.Event()
        self.thread = threading.Thread(
            target=self.runner.run, args=(self._sockets, is_up.set), daemon=True
        )
        self.thread.start()
        assert is_up.wait(WAIT_S)

    def stop(self) -> None:
        self.runner.stop()
        self.engine.close()
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()

    def ask(self, path: str, body: Mapping[str, Any], *, buffer_size: int | None = None) -> Client:
        client = Client(self.port, buffer_size=buffer_size)
        client.ask(path, body)
        return client

    def step(self, num_steps: int = 1) -> None:
        """As the engine thread would; in this thread."""
        assert isinstance(self.engine, ManualEngine)
        for _ in range(num_steps):
            self.engine.step()

    def until(self, is_so: Callable[[], Any], *, stepping: bool = False) -> None:
        """Wait for the other thread; with `stepping`, the engine goes on meanwhile."""
        ends_at = time.monotonic() + WAIT_S
        while not is_so():
            assert time.monotonic() < ends_at, "it never happened"
            if stepping:
                self.step()
            time.sleep(0.001)

    @property
    def num_cancelled(self) -> int:
        """Requests whose cancellation has come to the engine's door and was not obeyed yet."""
        engine = self.engine
        jobs = {voice.submission.request_id for voice in tuple(engine._loop._choices)}
        commands = list(engine._inbox._commands)
        jobs |= {c.submission.request_id for c in commands if isinstance(c, Submit)}
        cancelled = {c.submission.request_id for c in commands if isinstance(c, Cancel)}
        return len(jobs & cancelled)

    @property
    def num_pending(self) -> int:
        return self.engine.stats().num_pending_requests


class Client:
    """A connection of a client's, byte by byte."""

    def __init__(self, port: int, *, buffer_size: int | None = None) -> None:
        """`buffer_size`: how little the kernel keeps for it."""
        self.socket = socket.socket()
        if buffer_size is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_size)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(("127.0.0.1", port))
        self._received = b""

    def ask(self, path: str, body: Mapping[str, Any]) -> None:
        self.send_head(path, raw := json.dumps(body).encode())
        self.socket.sendall(raw)

    def send_head(self, path: str, body: bytes) -> None:
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        self.socket.sendall(head.encode())

    def read_until(self, end: bytes) -> bytes:
        """Everything up to `end`, which must come."""
        while end not in self._received:
            part = self.socket.recv(65536)
            assert part, f"{end!r} did not come; there is {self._received[-200:]!r}"
            self._received += part
        found, _, self._received = self._received.partition(end)
        return found + end

    def read_answer(self) -> tuple[int, bytes]:
        """Status and body of one response, of a known length or chunked."""
        head = self.read_until(b"\r\n\r\n").lower()
        status = int(head.split()[1])
        if b"transfer-encoding: chunked" in head:
            return status, b"".join(self._chunks())
        length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(self._received) < length:
            self._received += self.socket.recv(65536)
        body, self._received = self._received[:length], self._received[length:]
        return status, body

    def _chunks(self) -> Iterator[bytes]:
        while length := int(self.read_until(b"\r\n"), 16):
            while len(self._received) < length + 2:
                part = self.socket.recv(65536)
                assert part, "the body was cut"
                self._received += part
            yield self._received[:length]
            assert self._received[length : length + 2] == b"\r\n"
            self._received = self._received[length + 2 :]
        assert self.read_until(b"\r\n") == b"\r\n"

    def leave(self, *, at_once: bool = False) -> None:
        """Close; `at_once`: as a process that dies, with a reset."""
        if at_once:
            linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.socket.close()


@contextmanager
def open_door(
    engine: Any = None, *, buffer_size: int | None = None, **settings: Any
) -> Iterator[LiveDoor]:
    door = LiveDoor(engine, **settings)
    door.start(buffer_size)
    try:
        yield door
    finally:
        door.stop()
