"""The table of `negotiation.py`, row by row, by the function and through the door."""

from __future__ import annotations

import json

import pytest

from headrace.server.negotiation import wants_stream
from headrace.testing.asgi import Call
from headrace.wire.ask import Ask
from support.asgi import CHAT, RESPONSES, Door, run
from support.bodies import chat_body

NAMES_IT = [
    "text/event-stream",
    "TEXT/Event-Stream",
    "application/json, text/event-stream",
    "text/event-stream;q=0.9, */*;q=0.1",
    " text/event-stream ; charset=utf-8",
    "application/json,text/event-stream;q=0.001",
]
DOES_NOT = ["", "*/*", "text/*", "application/json", "text/event-streams", "x-text/event-stream"]
DOES_NOT += ["text/event-stream;q=0", "text/event-stream; q=0.000, application/json"]


@pytest.mark.parametrize("by_default", [False, True])
@pytest.mark.parametrize("accept", NAMES_IT + DOES_NOT)
@pytest.mark.parametrize("stream", [True, False])
def test_a_field_that_is_there_is_never_negotiated(
    stream: bool, accept: str, by_default: bool
) -> None:
    assert wants_stream(Ask(model="m", stream=stream), accept, by_default=by_default) is stream


@pytest.mark.parametrize("accept", NAMES_IT + DOES_NOT)
def test_else_the_header_decides_and_then_the_default(accept: str) -> None:
    ask = Ask(model="m")
    assert wants_stream(ask, accept, by_default=False) is (accept in NAMES_IT)
    assert wants_stream(ask, accept, by_default=True)


@pytest.mark.parametrize("by_default", [False, True])
@pytest.mark.parametrize("accept", [None, *NAMES_IT, "*/*", "application/json"])
@pytest.mark.parametrize("stream", ["absent", None, True, False])
def test_through_the_door(stream: object, accept: str | None, by_default: bool) -> None:
    async def play() -> None:
        door = Door(stream_by_default=by_default)
        fields = {} if stream == "absent" else {"stream": stream}
        headers = {} if accept is None else {"accept": accept}
        for path, body in (
            (CHAT, chat_body(model="fake", **fields)),
            (RESPONSES, {"model": "fake", "input": "Hi", **fields}),
        ):
            call = await door.answer(door.post(path, body, headers))
            is_streamed = stream if isinstance(stream, bool) else by_default or accept in NAMES_IT
            kind = "text/event-stream" if is_streamed else "application/json"
            assert (call.status, call.header("content-type")) == (200, kind)
            assert door.ended[-1].is_streamed is is_streamed

    run(play)


def test_a_header_on_two_lines_is_one() -> None:
    async def play() -> None:
        door = Door()
        body = json.dumps(chat_body(model="fake")).encode()
        lines = [("accept", "application/json"), ("accept", "text/event-stream")]
        call = Call(door.app, "POST", CHAT, body, [("host", "localhost"), *lines])
        await door.answer(call)
        assert call.header("content-type") == "text/event-stream"

    run(play)
