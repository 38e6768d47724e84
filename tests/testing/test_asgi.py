"""The harness itself: what it shows of an application is what the application did."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.testing.asgi import Call


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Sends each part of the body back, until its end or the client's."""
    headers = [(b"x-path", scope["path"].encode()), (b"x-query", scope["query_string"])]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        await send({"type": "http.response.body", "body": message["body"], "more_body": True})
        if not message["more_body"]:
            break
    await send({"type": "http.response.body"})


def play(act: Any) -> None:
    asyncio.run(act())


def test_a_body_is_seen_while_it_grows() -> None:
    async def act() -> None:
        call = Call(echo, "POST", "/a%2Fb%20c?x=%2F", None)
        call.send_body(b"one")
        await call.until(lambda: call.parts == [b"one"])
        assert (call.status, call.is_whole, call.has_ended) == (200, False, False)
        assert call.header("x-path") == "/a/b c" and call.header("x-query") == "x=%2F"
        assert call.header("x-other") is None
        call.send_body(b"two", is_last=True)
        assert (await call.ended()).body == b"onetwo"
        assert call.is_whole

    play(act)


def test_leaving_is_heard_and_what_comes_after_goes_nowhere() -> None:
    async def act() -> None:
        call = Call(echo, "POST", "/", None)
        call.send_body(b"one")
        call.leave()
        await call.ended()
        assert not call.is_whole

    play(act)


def test_a_client_that_does_not_read_holds_up_its_sender() -> None:
    async def act() -> None:
        call = Call(echo, "POST", "/", b"one")
        call.stop_reading()
        with pytest.raises(TimeoutError):
            await call.until(lambda: call.has_ended)
        call.read_on()
        assert (await call.ended()).body == b"one"

    play(act)


@pytest.mark.parametrize(
    "messages",
    [
        [{"type": "http.response.body", "body": b"x"}],
        [{"type": "http.response.start", "status": 200, "headers": []}] * 2,
        [
            {"type": "http.response.start", "status": 200, "headers": []},
            {"type": "http.response.body"},
            {"type": "http.response.body"},
        ],
    ],
)
def test_messages_in_a_wrong_order_are_an_error(messages: list[dict[str, Any]]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    async def act() -> None:
        with pytest.raises(AssertionError):
            await Call(app, "GET", "/").ended()

    play(act)


def test_headers_that_are_there_twice_are_not_one() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"a", b"1"), (b"a", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def act() -> None:
        call = await Call(app, "GET", "/").ended()
        with pytest.raises(ValueError, match="2 headers"):
            call.header("a")

    play(act)
