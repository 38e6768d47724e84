"""A WebSocket without a socket: an ASGI application asked message by message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from support.asgi import Door

SOCKET = "/v1/chat/completions"
MANY = "headrace.messages"


class SocketCall:
    """One client of `app`, from its upgrade to its close.

    `takes_many`: the server that is played knows our extension of ASGI.
    """

    def __init__(
        self,
        app: Any,
        path: str = SOCKET,
        headers: Mapping[str, str] | None = None,
        subprotocols: Sequence[str] = (),
        *,
        takes_many: bool = True,
    ) -> None:
        self.messages: list[dict[str, Any]] = []
        """What the client got, parsed."""
        self.writes: list[int] = []
        """How many messages each write had."""
        self.accepted: Mapping[str, Any] | None = None
        self.status: int | None = None
        """Of a refused upgrade."""
        self.refusal = b""
        self.close: tuple[int, str] | None = None
        self.num_waiting = 0
        """Calls of `send` that wait for the client to read."""
        self._arriving: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self._arriving.put_nowait({"type": "websocket.connect"})
        self._may_send = asyncio.Event()
        self._may_send.set()
        self._has_left = False
        given = {"host": "127.0.0.1:8000", **(headers or {})}
        extensions = {
            "websocket.http.response": {},
            **({MANY: {"write": self._write}} if takes_many else {}),
        }
        scope = {
            "type": "websocket",
            "path": path,
            "headers": [(n.lower().encode(), v.encode("latin-1")) for n, v in given.items()],
            "subprotocols": list(subprotocols),
            "extensions": extensions,
        }
        self._task = asyncio.create_task(app(scope, self._receive, self._send))

    @classmethod
    def at(cls, door: Door, **how: Any) -> SocketCall:
        return cls(door.app, **how)

    def say(self, message: Any) -> None:
        """Text, bytes, or what becomes JSON."""
        if isinstance(message, bytes):
            self._arriving.put_nowait({"type": "websocket.receive", "bytes": message})
            return
        text = message if isinstance(message, str) else json.dumps(message)
        self._arriving.put_nowait({"type": "websocket.receive", "text": text})

    def ask(self, answer_id: str, **fields: Any) -> None:
        self.say(question(answer_id, **fields))

    def leave(self) -> None:
        self._has_left = True
        self._arriving.put_nowait({"type": "websocket.disconnect", "code": 1001})
        self._may_send.set()

    def stop_reading(self) -> None:
        self._may_send.clear()

    def read_on(self) -> None:
        self._may_send.set()

    @property
    def has_ended(self) -> bool:
        return self._task.done()

    async def ended(self) -> SocketCall:
        await asyncio.wait_for(self._task, 30)
        return self

    def of(self, answer_id: str | None) -> list[dict[str, Any]]:
        """The messages under an id."""
        return [message for message in self.messages if message["id"] == answer_id]

    def text(self, answer_id: str) -> str:
        return text_of(self.of(answer_id))

    def _write(self, messages: Sequence[bytes]) -> bool:
        assert self.accepted is not None
        if self._has_left or not self._may_send.is_set():
            return False
        self._got(messages)
        return True

    async def _receive(self) -> Mapping[str, Any]:
        return await self._arriving.get()

    async def _send(self, message: Mapping[str, Any]) -> None:
        self.num_waiting += 1
        await self._may_send.wait()
        self.num_waiting -= 1
        if self._has_left:
            raise OSError("the client has gone")
        match message["type"]:
            case "websocket.accept":
                self.accepted = message
            case "websocket.close":
                self.close = message["code"], message["reason"]
                self._has_left = True
            case "websocket.http.response.start":
                self.status = message["status"]
            case "websocket.http.response.body":
                self.refusal += message["body"]
            case "websocket.send" if self.accepted is not None:
                self._got([message["text"]])
            case _ if message["type"] == MANY and self.accepted is not None:
                self._got(message["messages"])
            case kind:
                raise AssertionError(f"{kind} does not belong here")

    def _got(self, messages: Sequence[str | bytes]) -> None:
        self.writes.append(len(messages))
        self.messages += [json.loads(message) for message in messages]


def question(answer_id: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hi"}]
    return {"id": answer_id, "model": "fake", "messages": messages, **fields}


def text_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """What choice 0 says in an answer's messages."""
    chunks = [message["data"] for message in messages if isinstance(message.get("data"), dict)]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(c["delta"].get("content", "") for c in choices if c["index"] == 0)


def is_last(message: Mapping[str, Any]) -> bool:
    """Nothing follows under this id."""
    return "error" in message or message.get("data") == "[DONE]"
