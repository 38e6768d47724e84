"""One WebSocket from its opening to its end, whatever is talked about over it.

In: the scope of an upgrade. Out: messages to a talk, and a close code. Thread: the event loop.
Next: `chat.py`.

| code | the server closes because |
|---|---|
| 1000 | nothing was asked or answered for a long time |
| 1001 | it is shutting down; what was asked before is answered first |
| 1003 | message after message was no JSON object |
| 1009 | a message was too large |
| 1011 | its pings were not answered |
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from starlette.types import Receive, Scope, Send

from headrace.errors import ServerDraining
from headrace.server.exchange import exchange_of
from headrace.server.serving import Serving
from headrace.server.socket.caller import Caller
from headrace.server.socket.outlet import Outlet

MAX_BAD = 8
"""Messages in a row that are no JSON objects."""


class Talk(Protocol):
    """What is said over one socket."""

    @property
    def num_open(self) -> int:
        """Answers that are not done."""

    def hear(self, message: bytes) -> bool:
        """Take a message. False where nothing could be made of it."""

    async def leave(self) -> None:
        """Nobody is there any more. Returns when nothing is left running for them."""


BeginTalk: TypeAlias = Callable[[Serving, Caller, Outlet], Talk]


@dataclass(frozen=True, slots=True)
class Close:
    """Why the server closes."""

    code: int
    reason: str


class Sockets:
    """The ASGI application of one URL."""

    def __init__(self, serving: Serving, begin: BeginTalk) -> None:
        self._serving = serving
        self._begin = begin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises what refuses the upgrade."""
        serving = self._serving
        caller = Caller(serving.access, scope)
        exchange_of(scope).tenant = caller.tenant().id
        if serving.is_draining:
            raise ServerDraining(
                "this server is shutting down; connect again in a moment",
                retry_after_s=serving.settings.drain_timeout_s,
            )
        await receive()  # the client's wish to connect, of which all is known
        with suppress(OSError):  # it goes while it is accepted, or closed
            await send({"type": "websocket.accept", "subprotocol": caller.subprotocol})
            outlet = Outlet(scope, send)
            talk = self._begin(serving, caller, outlet)
            connection = Connection(talk, outlet, serving.settings.socket_idle_s)
            if close := await connection.run(receive):
                reason = close.reason
                await send({"type": "websocket.close", "code": close.code, "reason": reason})


class Connection:
    """Hears and says, until one side has enough."""

    def __init__(self, talk: Talk, outlet: Outlet, idle_s: float) -> None:
        self._talk = talk
        self._outlet = outlet
        self._idle_s = idle_s
        self._busy_at = asyncio.get_running_loop().time()

    async def run(self, receive: Receive) -> Close | None:
        """Until the end; None where it was the client's, or nothing can be sent any more."""
        tasks = [
            asyncio.create_task(self._hear(receive)),
            asyncio.create_task(self._say()),
            asyncio.create_task(self._watch()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._talk.leave()
        return next((end for task in tasks if task in done and (end := task.result())), None)

    async def _hear(self, receive: Receive) -> Close | None:
        num_bad = 0
        while (message := await receive())["type"] != "websocket.disconnect":
            self._busy_at = asyncio.get_running_loop().time()
            text = message.get("text")
            raw = message["bytes"] if text is None else text.encode()
            num_bad = 0 if self._talk.hear(raw) else num_bad + 1
            if num_bad == MAX_BAD:
                return Close(1003, f"{MAX_BAD} messages in a row were no JSON objects")
            await self._outlet.room()
        return None

    async def _say(self) -> None:
        try:
            await self._outlet.run()
        except OSError:
            return  # the client has gone

    async def _watch(self) -> Close:
        """Returns when nothing has happened for a long time."""
        loop = asyncio.get_running_loop()
        while True:
            if self._talk.num_open:
                self._busy_at = loop.time()
            left_s = self._busy_at + self._idle_s - loop.time()
            if left_s <= 0:
                return Close(1000, f"nothing was asked for {self._idle_s:g} s")
            await asyncio.sleep(left_s)
