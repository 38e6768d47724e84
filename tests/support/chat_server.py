"""A chat server on the loopback address that streams what it is told to, in any dialect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


def chunk(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


def frames(*payloads: dict[str, Any], done: bool = True) -> bytes:
    written = "".join(f"data: {json.dumps(payload)}\n\n" for payload in payloads)
    return (written + "data: [DONE]\n\n" * done).encode()


def answer(*texts: str, usage: dict[str, Any] | None = None) -> bytes:
    """A whole stream as a sound server says it; `usage` comes last, in a chunk of its own."""
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
    tail = [] if usage is None else [{"choices": [], "usage": usage}]
    return frames({"choices": [{"delta": {"role": "assistant"}}]}, *map(chunk, texts), end, *tail)


USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 2,
    "prompt_tokens_details": {"cached_tokens": 3},
}


@dataclass
class Asked:
    """One request that the server had."""

    head: str
    body: dict[str, Any]
    connection: int
    num_open: int
    """Requests being answered when it came, itself included."""


@dataclass
class Reply:
    """How to answer: `body` in pieces of `piece` bytes; framed by "chunked", "length" or "closing";
    once `gate` is open."""

    body: bytes = field(default_factory=lambda: answer("Hello", " you", usage=USAGE))
    status: int = 200
    framing: str = "chunked"
    piece: int = 10_000
    keep_alive: bool = True
    cut_after: int | None = None
    gate: asyncio.Event | None = None


class ChatServer:
    """Replies as `reply` says for each request; remembers what was `asked`."""

    def __init__(self, reply: Callable[[Asked], Reply] | None = None) -> None:
        self.reply = reply or (lambda asked: Reply())
        self.asked: list[Asked] = []
        self.max_open = 0
        self.url = ""
        self._num_connections = 0
        self._num_open = 0
        self._handlers: set[asyncio.Task[None]] = set()
        self.writers: list[asyncio.StreamWriter] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        self._num_connections += 1
        self.writers.append(writer)
        connection = self._num_connections
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await self._exchange(reader, writer, connection):
                pass
        writer.close()

    def stop(self) -> None:
        """Whoever still waits for a gate waits no more."""
        for task in self._handlers:
            task.cancel()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int
    ) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lengths = [line[15:] for line in head.split("\r\n") if line.startswith("Content-Length:")]
        body = await reader.readexactly(int(lengths[0])) if lengths else b""
        self._num_open += 1
        self.max_open = max(self.max_open, self._num_open)
        asked = Asked(head, json.loads(body or b"{}"), connection, self._num_open)
        self.asked.append(asked)
        try:
            if head.startswith("GET"):
                reply = Reply(b'{"data":[{"id":"first"},{"id":"second"}]}', framing="length")
            else:
                reply = self.reply(asked)
            if reply.gate is not None:
                await reply.gate.wait()
            return await _send(writer, reply)
        finally:
            self._num_open -= 1


async def _send(writer: asyncio.StreamWriter, reply: Reply) -> bool:
    head = [f"HTTP/1.1 {reply.status} Some Reason", "Content-Type: text/event-stream"]
    if reply.framing == "length":
        head.append(f"Content-Length: {len(reply.body)}")
    elif reply.framing == "chunked":
        head.append("Transfer-Encoding: chunked")
    if not reply.keep_alive:
        head.append("Connection: close")
    out = "\r\n".join([*head, "", ""]).encode()
    for start in range(0, len(reply.body), reply.piece):
        piece = reply.body[start : start + reply.piece]
        out += b"%x\r\n%b\r\n" % (len(piece), piece) if reply.framing == "chunked" else piece
    out += b"0\r\n\r\n" * (reply.framing == "chunked")
    for start in range(0, len(out[: reply.cut_after]), max(1, reply.piece)):
        writer.write(out[start : min(start + reply.piece, reply.cut_after or len(out))])
        await writer.drain()
        await asyncio.sleep(0)
    return reply.keep_alive and reply.framing != "closing" and reply.cut_after is None


@asynccontextmanager
async def serving(chat: ChatServer) -> AsyncIterator[str]:
    """Serve while the block runs; yields the base URL."""
    server = await asyncio.start_server(chat.handle, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/v1"
        chat.stop()
