"""A socket that two threads write: whole frames, in order, each once; and nothing is left open.

First one thread plays both sides over a real pair of sockets; then a real server, whose engine the
test steps, or that runs by itself.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.server.socket.shared import SharedTransport
from headrace.testing import scripted_engine
from headrace.wire.socket_frames import text_frames
from support.asgi import engine_saying
from support.live_door import LiveDoor, open_door
from support.socket_client import CLOSE, PING, SocketClient
from support.sockets import is_last, question

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
TEXT = " ".join(f"{number} words and more" for number in range(400))


def open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


class Pair:
    """A shared transport, and a client who reads when told to."""

    def __init__(self, buffer_size: int) -> None:
        self._ours, self.client = socket.socketpair()
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_size)
        self._ours.setblocking(False)
        self.client.setblocking(False)
        self.may_write = True
        self.received = b""

    async def begin(self) -> None:
        loop = asyncio.get_running_loop()
        transport: Any
        transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, self._ours)
        self.shared = SharedTransport(transport, loop, lambda: self.may_write)

    def read(self, num_bytes: int = 1 << 20) -> None:
        with suppress(BlockingIOError):
            self.received += self.client.recv(num_bytes)

    async def read_all(self) -> None:
        for _ in range(2000):
            self.read()
            await asyncio.sleep(0)
            if not self.shared.get_write_buffer_size():
                break
        self.read()

    async def end(self) -> None:
        self.shared.close_early()
        self.shared.abort()
        self.client.close()
        for _ in range(3):
            await asyncio.sleep(0)


def play(act: Callable[[], Any], loop: str) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60):
            await act()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(whole())


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["loop", "early", "early"]), st.sampled_from([1, 200, 5000])),
        st.tuples(st.just("turn"), st.integers(1, 3)),
        st.tuples(st.just("read"), st.integers(1, 6000)),
        st.tuples(st.just("reopen"), st.just(0)),
    ),
    max_size=40,
)


@pytest.mark.parametrize("loop", LOOPS)
@settings(max_examples=150, deadline=None)
@given(actions=ACTIONS, buffer_size=st.sampled_from([1, 1 << 16]))
@example(actions=[("loop", 5000), ("read", 6000), ("early", 1)], buffer_size=1)
def test_frames_are_whole_and_in_order(loop: str, actions: list[Any], buffer_size: int) -> None:
    """Whoever writes."""

    async def act() -> None:
        pair = Pair(buffer_size)
        await pair.begin()
        pair.shared.open_early()
        said = b""
        for number, (action, size) in enumerate(actions):
            message = b"%d;" % number * size
            frame = text_frames([message])
            match action:
                case "loop":
                    pair.shared.write(frame)
                    said += frame
                case "early":
                    if pair.shared.write_early(lambda message=message: [message]):
                        said += frame
                case "turn":
                    for _ in range(size):
                        await asyncio.sleep(0)
                case "read":
                    pair.read(size)
                case "reopen":
                    pair.shared.close_early()
                    assert not pair.shared.write_early(lambda: [b"closed"])
                    pair.shared.open_early()
        await pair.read_all()
        assert pair.received == said
        await pair.end()

    play(act, loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_nothing_follows_the_end(loop: str) -> None:
    async def act() -> None:
        pair = Pair(1 << 16)
        await pair.begin()
        pair.shared.open_early()
        assert pair.shared.write_early(lambda: [b"early"])
        pair.may_write = False
        pair.shared.write(b"the end")
        await pair.read_all()
        assert not pair.shared.write_early(lambda: [b"late"])
        await pair.read_all()
        assert pair.received == b"\x81\x05earlythe end"
        await pair.end()

    before = open_files()
    play(act, loop)
    assert open_files() == before


@contextmanager
def stuck(door: LiveDoor) -> Iterator[None]:
    """The server's loop does nothing meanwhile."""
    is_stuck, may_go_on = threading.Event(), threading.Event()

    def wait() -> None:
        is_stuck.set()
        may_go_on.wait(60)

    assert door.runner._loop is not None
    door.runner._loop.call_soon_threadsafe(wait)
    assert is_stuck.wait(10)
    try:
        yield
    finally:
        may_go_on.set()


def begun(door: LiveDoor, client: SocketClient, *answer_ids: str) -> None:
    """These have told their first chunk and wait for tokens alone."""
    for answer_id in answer_ids:
        client.say(question(answer_id, ignore_eos=True, max_tokens=40))
    door.until(lambda: door.num_pending == len(answer_ids))
    door.step(2)
    waiting = set(answer_ids)
    while waiting:
        waiting -= {m["id"] for m in [client.read_message()] if "choices" in m.get("data", "")}


@pytest.mark.parametrize("answer_ids", ["a", "abc"])
def test_tokens_come_while_the_loop_is_busy(answer_ids: str) -> None:
    with open_door(engine_saying("Hello.")) as door:
        client = SocketClient(door.port)
        begun(door, client, *answer_ids)
        _all_are_idle(client)
        with stuck(door):
            for _ in range(3):
                door.step()
                came = [client.read_message() for _ in answer_ids]
                assert {message["id"] for message in came} == set(answer_ids)
                assert all(message["data"]["choices"][0]["delta"]["content"] for message in came)
        door.until(lambda: door.num_pending == 0, stepping=True)
        assert client.read_answers(*answer_ids) == ["Hello."] * len(answer_ids)
        client.leave()
        door.until(lambda: door.serving.num_open == 0)
        door.assert_nothing_is_held()


def _all_are_idle(client: SocketClient) -> None:
    """Nothing is under way to the client, and the loop has nothing to do."""
    for _ in range(2):
        client.send(PING, b"")
        num_pongs = client.num_pongs
        while client.num_pongs == num_pongs:
            client.read_frame()


def test_answers_pings_and_refusals_do_not_mix() -> None:
    engine = scripted_engine(TEXT, tokens_per_s=4000)
    with open_door(engine) as door:
        client = SocketClient(door.port)
        for each in range(3):
            client.say(question(f"a{each}", max_tokens=4000))
            for _ in range(20):
                client.send(PING, b"are you there?")
                client.say({"id": f"bad{each}", "temperature": 9})
                client.read_message()
        assert client.read_answers("a0", "a1", "a2") == [TEXT] * 3
        while client.num_pongs < 60:
            client.read_frame()
        client.leave()
        door.until(lambda: door.serving.num_open == 0)
        door.assert_nothing_is_held()


@pytest.mark.parametrize("size", [1, 700])
def test_a_reader_that_dawdles_gets_all_of_it(size: int) -> None:
    engine = scripted_engine(TEXT, tokens_per_s=20_000)
    with open_door(engine, buffer_size=4096) as door:
        client = SocketClient(door.port, buffer_size=4096)
        client.say(question("a", max_tokens=4000))
        for _ in range(200):
            client._received += client.socket.recv(size)
        door.until(lambda: door.num_pending == 0)
        assert client.read_answers("a") == [TEXT]
        assert len(client.messages) < 1000
        client.leave()
        door.until(lambda: door.serving.num_open == 0)
        door.assert_nothing_is_held()


@pytest.mark.parametrize("at_once", [True, False])
def test_who_leaves_leaves_nothing_open(at_once: bool) -> None:
    with open_door(scripted_engine(TEXT, tokens_per_s=4000)) as door:
        first = SocketClient(door.port)  # what a loop opens once and keeps
        first.say(question("a", max_tokens=8))
        first.read_answers("a")
        before = open_files()
        for number in range(1, 30):
            client = SocketClient(door.port)
            client.say(question("a", max_tokens=4000))
            for _ in range(number):
                client.read_message()
            client.leave(at_once=at_once)
        door.until(lambda: door.serving.num_open == 0 and open_files() == before)
        door.until(lambda: door.num_pending == 0)
        first.say(question("b", max_tokens=4000))
        assert first.read_answers("b") == [TEXT]
        first.leave()


def test_after_the_close_frame_nothing_comes() -> None:
    with open_door(scripted_engine(TEXT, tokens_per_s=4000)) as door:
        for number in range(1, 20):
            client = SocketClient(door.port)
            client.say(question("a", max_tokens=4000))
            for _ in range(number):
                client.read_message()
            client.send(CLOSE, (1000).to_bytes(2))
            while client.read_frame()[0] != CLOSE:
                assert not is_last(client.messages[-1])
            assert client._received == b"" and client.socket.recv(1) == b""
            client.leave()
        door.until(lambda: door.serving.num_open == 0)
        door.until(lambda: door.num_pending == 0)
