"""A WebSocket client byte by byte, against a server on a real port."""

from __future__ import annotations

import json
from typing import Any

from support.live_door import Client
from support.sockets import SOCKET, is_last, text_of

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class SocketClient(Client):
    """Connected when it is made."""

    def __init__(self, port: int, *, buffer_size: int | None = None) -> None:
        super().__init__(port, buffer_size=buffer_size)
        self.socket.sendall(
            f"GET {SOCKET} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n"
            "upgrade: websocket\r\nsec-websocket-version: 13\r\n"
            "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        assert self.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        self.messages: list[dict[str, Any]] = []
        self.num_pongs = 0

    def send(self, opcode: int, data: bytes) -> None:
        """One frame, masked with zeros."""
        assert len(data) < 65_536
        head = bytes((0x80 | opcode, 0xFE)) + len(data).to_bytes(2)
        self.socket.sendall(head + bytes(4) + data)

    def say(self, message: Any) -> None:
        self.send(TEXT, json.dumps(message).encode())

    def read_frame(self) -> tuple[int, bytes]:
        """Its kind and what it says; fails where it is none."""
        first, length = self._exactly(2)
        assert first & 0xF0 == 0x80 and length < 128, "no whole frame begins here"
        if length > 125:
            length = int.from_bytes(self._exactly(2 if length == 126 else 8))
        opcode, data = first & 0x0F, self._exactly(length)
        if opcode == TEXT:
            self.messages.append(json.loads(data))
        self.num_pongs += opcode == PONG
        return opcode, data

    def read_message(self) -> dict[str, Any]:
        """The next one; pongs and pings between are passed over."""
        while (opcode := self.read_frame()[0]) != TEXT:
            assert opcode in (PING, PONG)
        return self.messages[-1]

    def read_answers(self, *answer_ids: str) -> list[str]:
        """Read until these have ended; what they said."""
        open_ids = set(answer_ids)
        while open_ids:
            if is_last(message := self.read_message()):
                open_ids.discard(message["id"])
        return [text_of([m for m in self.messages if m["id"] == each]) for each in answer_ids]

    def _exactly(self, num_bytes: int) -> bytes:
        while len(self._received) < num_bytes:
            part = self.socket.recv(65_536)
            assert part, "the connection was closed"
            self._received += part
        data, self._received = self._received[:num_bytes], self._received[num_bytes:]
        return data
