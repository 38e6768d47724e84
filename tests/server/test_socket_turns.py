"""Turns of kept conversations over a WebSocket: one after the other, refused, queued, left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.testing.asgi import Call
from support.asgi import CHAT, Door, run
from support.sockets import SocketCall, is_last, question

ITEMS = "/v1/conversations/c/items?order=asc&limit=100"


def played(tmp_path: Path, play: Callable[[Door, SocketCall], Any]) -> None:
    async def whole() -> None:
        door = Door(database_url=f"sqlite:///{tmp_path}/c.db")
        socket = SocketCall.at(door)
        await play(door, socket)
        if not socket.has_ended:
            socket.leave()
        await stepped(door, lambda: socket.has_ended and not door.serving.conversations.num_open)
        door.serving.streams.close()
        door.assert_nothing_is_held()
        door.serving.conversations.close()

    run(whole)


async def stepped(door: Door, is_enough: Callable[[], bool]) -> None:
    """Step until it is so, however long the database takes."""
    async with asyncio.timeout(30):
        while not is_enough():
            await asyncio.sleep(0.002)
            if door.engine.stats().num_pending_requests:
                door._step()


async def running(door: Door) -> None:
    """Returns when the engine has something to do."""
    async with asyncio.timeout(30):
        while not door.engine.stats().num_pending_requests:
            await asyncio.sleep(0.002)


async def done(door: Door, socket: SocketCall, *answer_ids: str) -> None:
    await stepped(door, lambda: all(any(map(is_last, socket.of(one))) for one in answer_ids))


def turn(answer_id: str, text: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    conversation = {"id": "c", "create": True}
    return question(answer_id) | {"messages": messages, "conversation": conversation} | fields


async def said(door: Door) -> list[tuple[str, str]]:
    """Text and status of all that is kept, oldest first."""
    await stepped(door, lambda: not door.serving.conversations.num_open)
    call: Call = door.call("GET", ITEMS)
    listed = json.loads((await asyncio.wait_for(call.ended(), 30)).body)
    return [(item["content"][0]["text"], item["status"]) for item in listed["data"]]


def test_a_turn_is_told_what_was_said_before_and_kept(tmp_path: Path) -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        prompts = []
        for answer_id in ("a", "b"):
            socket.say(turn(answer_id, f"question {answer_id}"))
            await done(door, socket, answer_id)
            first, *_ = socket.of(answer_id)
            assert first["headers"]["x-headrace-conversation-id"] == "c"
            assert socket.text(answer_id) == "Hello."
            last = [m["data"] for m in socket.of(answer_id) if "data" in m][-2]
            prompts.append(last["x_groq"]["usage"]["prompt_tokens"])
        assert prompts[1] > prompts[0] + len("question a") + len("Hello.")
        assert [text for text, _ in await said(door)] == [
            *("question a", "Hello."),
            *("question b", "Hello."),
        ]
        # By HTTP it is the same conversation.
        call = door.post(CHAT, {**turn("", "question c"), "id": None})
        await stepped(door, lambda: call.has_ended)
        assert len(await said(door)) == 6

    played(tmp_path, play)


def test_what_is_typed_into_a_conversation_is_computed_after_what_was_said(tmp_path: Path) -> None:
    text = "And how many times a minute does the wheel turn round in the summer, tell me? "

    async def play(door: Door, socket: SocketCall) -> None:
        socket.say(turn("a", "What turns the wheel of the mill?"))
        await done(door, socket, "a")
        await stepped(door, lambda: not door.serving.conversations.num_open)
        body = {**turn("b", ""), "messages": []}
        socket.say({**body, "type": "input.append", "text": text})
        for _ in range(100):
            await asyncio.sleep(0.002)
            if door.engine.stats().num_pending_requests:
                door._step()
        socket.say({"id": "b", "type": "input.commit"})
        await done(door, socket, "b")
        last = [m["data"] for m in socket.of("b") if "data" in m][-2]
        usage = last["x_groq"]["usage"]
        # All but the text's last word, and what the template writes after it.
        assert usage["prompt_tokens"] > len(text) + len("What turns the wheel of the mill?Hello.")
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert usage["prompt_tokens"] - cached < 48

    played(tmp_path, play)


@pytest.mark.parametrize("is_elsewhere", [False, True], ids=["same socket", "another"])
def test_a_second_turn_is_refused_or_waits(tmp_path: Path, is_elsewhere: bool) -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        other = SocketCall.at(door) if is_elsewhere else socket
        socket.say(turn("a", "one"))
        await running(door)
        other.say(turn("b", "two"))
        async with asyncio.timeout(30):
            while not other.of("b"):
                await asyncio.sleep(0.002)
        (refused,) = other.of("b")
        error = refused["error"]
        assert (error["code"], error["status_code"]) == ("conversation_busy", 409)
        other.say(turn("c", "three", queue=True))
        other.say(turn("d", "four", queue=True))
        await done(door, socket, "a")
        await done(door, other, "c", "d")
        assert [text for text, _ in await said(door)][::2] == ["one", "three", "four"]
        if is_elsewhere:
            other.leave()
            await other.ended()

    played(tmp_path, play)


def test_a_turn_that_is_cancelled_is_kept_as_far_as_it_came(tmp_path: Path) -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        socket.say(turn("a", "one"))
        await stepped(door, lambda: bool(socket.text("a")))
        socket.say({"id": "a", "type": "cancel"})
        await done(door, socket, "a")
        (_, (text, status)) = await said(door)
        assert status == "incomplete" and text and "Hello.".startswith(text)
        socket.say(turn("b", "two"))
        await done(door, socket, "b")
        assert len(await said(door)) == 4

    played(tmp_path, play)


def test_a_client_that_leaves_while_its_turn_waits_leaves_nothing_of_it(tmp_path: Path) -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        first = door.post(CHAT, {**turn("", "one"), "id": None})
        await running(door)
        socket.say(turn("b", "two", queue=True))
        await asyncio.sleep(0.02)
        socket.leave()
        await stepped(door, lambda: first.has_ended and socket.has_ended)
        await stepped(door, lambda: not door.serving.conversations.num_open)
        kept = [text for text, _ in await said(door)]
        assert kept[:2] == ["one", "Hello."]
        assert len(door.serving.conversations.turns._by_place) == 0

    played(tmp_path, play)
