"""Whatever is asked, cancelled, resumed and refused in whatever order: each answer has one end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from support.asgi import Door, engine_saying, run, settle
from support.sockets import SocketCall, is_last, question, text_of

IDS = st.sampled_from("abcd")
SAID = "Hello, world."
ACTIONS = st.one_of(
    st.tuples(st.just("ask"), IDS, st.booleans(), st.integers(1, 2)),
    st.tuples(st.just("resume"), IDS, st.integers(0, 3), st.integers(0, 40)),
    st.tuples(st.just("cancel"), IDS),
    st.tuples(st.just("refused"), IDS),
    st.tuples(st.just("junk"), st.sampled_from(["{", "[]", '{"id":1}'])),
    st.tuples(st.just("steps"), st.integers(1, 6)),
    st.tuples(st.just("settle"), st.integers(0, 3)),
    st.tuples(st.just("stop_reading")),
    st.tuples(st.just("read_on")),
)


class Client:
    """Does what it is told, and remembers the streams it was told of."""

    def __init__(self, door: Door, socket: SocketCall) -> None:
        self._door = door
        self._socket = socket
        self.num_sent = 0
        """Messages that must have an end."""

    async def do(self, action: Sequence[Any]) -> None:
        match action:
            case ("ask", answer_id, is_resumable, n):
                self._say({**question(answer_id, n=n), **_options(is_resumable)})
            case ("resume", answer_id, which, after):
                stream = self._stream(which)
                self._say({"id": answer_id, "type": "resume", "stream": stream, "after": after})
            case ("cancel", answer_id):
                self._socket.say({"id": answer_id, "type": "cancel"})
            case ("refused", answer_id):
                self._say(question(answer_id, temperature=9))
            case ("junk", text):
                self._say(text)
            case ("steps", num):
                await self._door.turn(num)
            case ("settle", num):
                await settle(num)
            case ("stop_reading",):
                self._socket.stop_reading()
            case ("read_on",):
                self._socket.read_on()

    def _say(self, message: Any) -> None:
        self._socket.say(message)
        self.num_sent += 1

    def _stream(self, which: int) -> str:
        """One of those that were told of."""
        openings = [message.get("headers", {}) for message in self._socket.messages]
        streams = [each["x-headrace-stream"] for each in openings if "x-headrace-stream" in each]
        return streams[which % len(streams)] if streams else "stream_none"


def _options(is_resumable: bool) -> dict[str, Any]:
    return {"stream_options": {"resumable": True}} if is_resumable else {}


def answers(messages: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """An id's messages, cut after each last one."""
    found: list[list[dict[str, Any]]] = [[]]
    for message in messages:
        found[-1].append(message)
        if is_last(message):
            found.append([])
    assert found.pop() == []  # nothing after an end, and no answer without one
    return found


def check(answer: Sequence[dict[str, Any]]) -> None:
    first, *rest = answer
    assert "headers" in first and not any("headers" in message for message in rest)
    if "error" in first:
        return
    numbers = [message["event"] for message in rest if "event" in message]
    assert len(numbers) in (0, len(rest))
    assert numbers == [numbers[0] + each for each in range(len(numbers))]
    assert text_of(rest) in SAID


@settings(max_examples=60, deadline=None)
@given(st.lists(ACTIONS, max_size=25), st.booleans())
def test_every_answer_has_one_end(actions: list[Any], leaves_early: bool) -> None:
    async def play() -> None:
        door = Door(engine_saying(SAID, max_running=3))
        socket = SocketCall.at(door)
        client = Client(door, socket)
        await settle()
        for action in actions:
            await client.do(action)
        if not leaves_early:
            socket.read_on()
            for _ in range(60):
                await door.turn()
            if socket.close is None:
                for answer_id in (None, *"abcd"):
                    for answer in answers(socket.of(answer_id)):
                        check(answer)
                assert sum(map(is_last, socket.messages)) == client.num_sent
        socket.leave()
        for _ in range(60):
            await door.turn()
        await socket.ended()
        assert len(door.ended) == client.num_sent or socket.close is not None or leaves_early
        door.serving.streams.close()
        await door.turn(2)
        door.assert_nothing_is_held()

    run(play)
