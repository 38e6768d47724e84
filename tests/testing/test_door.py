"""The tests' own door: it may be trusted to bring an answer."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from support.asgi import CHAT, Door, run, streamed_text
from support.bodies import chat_body


def test_a_request_that_first_waits_for_a_thread_is_answered() -> None:
    async def play() -> None:
        door = Door()
        answering, gate = door.app, threading.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.to_thread(gate.wait)
            await answering(scope, receive, send)

        door.app = app  # type: ignore[assignment]
        # Long after a door would have given up that counts its turns.
        asyncio.get_running_loop().call_later(1.0, gate.set)
        call = await door.answer(door.post(CHAT, chat_body(model="fake", stream=True)))
        assert streamed_text(call.body) == "Hello."

    run(play)
