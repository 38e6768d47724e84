"""A log written as a response, message by message."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.errors import GenerationFailed
from headrace.events import Delta, Event, Failed, Finished, Started, Timings, Usage
from headrace.server import sse
from headrace.server.sse import EventWriter
from headrace.streams.log import StreamLog
from headrace.wire.ask import Stamp
from headrace.wire.chat_answer import ChatStream
from support.asgi import frames, run, settle, streamed_text

STAMP = Stamp(id="chatcmpl-1", request_id="req_1", created=1, model="m", fingerprint="fp_1")
STARTED = Started("r", 0, 1, 1, 0)
FINISHED = Finished(0, "stop", Usage(1, 0, 1), Timings(0.0, 0.0, 0.0))
FAILED = Failed(0, GenerationFailed("x"), Usage(1, 0, 1), Timings(0.0, 0.0, 0.0))


def delta(text: str, start: int = 0) -> Delta:
    return Delta(0, start, (start,), text)


class Client:
    """Gets what a writer sends; a log is all that the writer needs of a pump."""

    def __init__(self) -> None:
        self.log = StreamLog(1)
        self.messages: list[dict[str, Any]] = []
        self.may_send = asyncio.Event()
        self.may_send.set()
        pump: Any = SimpleNamespace(log=self.log)
        writer = EventWriter(pump, ChatStream(STAMP, seed=1), {"http_version": "1.1"}, self._send)
        self.writing = asyncio.create_task(writer.write([(b"x-more", b"1")]))

    async def _send(self, message: Any) -> None:
        await self.may_send.wait()
        self.messages.append(dict(message))

    async def hear(self, *events: Event) -> None:
        self.log.extend(events)
        await settle()

    @property
    def parts(self) -> list[bytes]:
        return [m["body"] for m in self.messages if m["type"] == "http.response.body"]

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)


def test_the_whole_response() -> None:
    async def play() -> None:
        client = Client()
        await settle()
        assert client.messages == [
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", b"text/event-stream"),
                    (b"cache-control", b"no-cache"),
                    (b"x-accel-buffering", b"no"),
                    (b"x-more", b"1"),
                ],
            }
        ]
        await client.hear(STARTED)
        await client.hear(delta("a"))
        await client.hear(delta("b", 1))
        await client.hear(FINISHED)
        await client.writing
        assert [m.get("more_body") for m in client.messages[1:]] == [True] * 4 + [False]
        assert client.parts[-1] == b""
        assert streamed_text(client.body) == "ab"

    run(play)


def test_what_says_nothing_is_not_sent() -> None:
    """A token whose text is held back yet."""

    async def play() -> None:
        client = Client()
        await client.hear(STARTED)
        await client.hear(delta(""))
        await client.hear(delta("a", 1), FINISHED)
        await client.writing
        assert len(client.parts) == 3 and b"" not in client.parts[:-1]

    run(play)


@pytest.mark.parametrize("events", [[STARTED, delta("a"), delta("b", 1), FINISHED]])
def test_who_comes_late_gets_it_in_one(events: Sequence[Event]) -> None:
    async def play() -> None:
        client = Client()
        await client.hear(*events)
        await client.writing
        assert len(client.parts) == 2
        assert streamed_text(client.body) == "ab"
        assert client.body.count(b'"content":"ab"') == 1

    run(play)


def test_what_comes_while_the_client_does_not_read_is_merged() -> None:
    async def play() -> None:
        client = Client()
        await client.hear(STARTED, delta("a"))
        client.may_send.clear()
        for number in range(1, 50):
            await client.hear(delta("b", number))
        await client.hear(FINISHED)
        assert not client.writing.done()
        client.may_send.set()
        await client.writing
        # One that was on its way, one with the rest, and the end.
        assert len(client.parts) == 4
        assert streamed_text(client.body) == "a" + "b" * 49

    run(play)


def test_a_failure_is_the_last_frame() -> None:
    async def play() -> None:
        client = Client()
        await client.hear(STARTED, delta("a"), FAILED)
        await client.writing
        assert [frame.event for frame in frames(client.body)] == ["message", "message", "error"]
        assert client.messages[-1]["more_body"] is False

    run(play)


def test_a_client_that_cannot_be_written_to_is_somebody_else_s_problem() -> None:
    """What `send` raises comes out; the log goes on."""

    async def play() -> None:
        client = Client()
        await client.hear(STARTED)

        def broken() -> None:
            raise ConnectionError("gone")

        client.may_send.wait = broken  # type: ignore[method-assign, assignment]
        await client.hear(delta("a"))
        with pytest.raises(ConnectionError):
            await client.writing
        await client.hear(FINISHED)
        assert client.log.is_over

    run(play)


def test_leaving_is_noticed_and_nothing_else() -> None:
    async def play() -> None:
        coming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        leaving = asyncio.create_task(sse.left(coming.get))
        for _ in range(3):
            coming.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        await settle()
        assert not leaving.done()
        coming.put_nowait({"type": "http.disconnect"})
        await leaving

    run(play)
