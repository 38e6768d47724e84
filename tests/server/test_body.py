"""Bodies come in parts, or not at all, or for too long."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from headrace.errors import BodyTooLarge
from headrace.server.body import read_body
from support.asgi import CHAT, Door, run, settle
from support.bodies import chat_body


def read(
    parts: Sequence[bytes | None], max_bytes: int = 10, *headers: tuple[bytes, bytes]
) -> bytes:
    """What is read of these parts; None: the client leaves. More than there are is an error."""
    coming = list(parts)

    async def receive() -> dict[str, Any]:
        part = coming.pop(0)
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": bool(coming)}

    body = asyncio.run(read_body({"headers": list(headers)}, receive, max_bytes))
    assert not coming
    return body


@pytest.mark.parametrize(
    "parts", [[b""], [b"0123456789"], [b"01234", b"56789"], [b"", b"0123456789", b""]]
)
def test_parts_are_joined(parts: list[bytes]) -> None:
    assert read(parts) == b"".join(parts)


def test_messages_without_a_body() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    assert asyncio.run(read_body({"headers": []}, receive, 10)) == b""


@pytest.mark.parametrize("parts", [[b"0123456789a"], [b"0123456789", b"a"], [b"x" * 99, b""]])
def test_too_long(parts: list[bytes]) -> None:
    with pytest.raises(BodyTooLarge, match="larger than 10 bytes"):
        read(parts)


def test_too_long_is_said_before_it_is_read() -> None:
    with pytest.raises(BodyTooLarge):
        read([], 10, (b"content-length", b"11"))
    assert read([b"0123456789"], 10, (b"content-length", b"10")) == b"0123456789"


@pytest.mark.parametrize("length", [b"", b"-1", b"1e9", b"abc", "²".encode()])
def test_a_length_that_is_none_is_not_believed(length: bytes) -> None:
    assert read([b"01234"], 10, (b"content-length", length)) == b"01234"


@pytest.mark.parametrize("parts", [[None], [b"01", None]])
def test_who_leaves_has_asked_nothing(parts: list[bytes | None]) -> None:
    with pytest.raises(ClientDisconnect):
        read(parts)


def test_through_the_door() -> None:
    async def play() -> None:
        door = Door(max_body_bytes=400)
        long = chat_body({"role": "user", "content": "x" * 400}, model="fake")
        told = await door.answer(door.post(CHAT, long))
        chunked = door.call("POST", CHAT, None)
        for _ in range(5):
            chunked.send_body(b" " * 100)
        for call in (told, await chunked.ended()):
            assert (call.status, door.ended[-1].error_code) == (413, "request_too_large")
            assert b'"the body is larger than 400 bytes; send a shorter one"' in call.body
        slow = door.call("POST", CHAT, None)
        for byte in b'{"model":"fake","messages":[{"role":"user","content":"Hi"}]}':
            slow.send_body(bytes((byte,)))
            await settle(1)
        slow.send_body(b"", is_last=True)
        assert (await door.answer(slow)).status == 200
        door.assert_nothing_is_held()

    run(play)


def test_who_leaves_while_asking_is_noted() -> None:
    async def play() -> None:
        door = Door()
        call = door.call("POST", CHAT, None)
        call.send_body(b'{"model":')
        await settle()
        call.leave()
        await call.ended()
        assert call.status is None
        (fact,) = door.ended
        assert (fact.status, fact.error_code, fact.endpoint) == (499, None, "/chat/completions")
        door.assert_nothing_is_held()

    run(play)
