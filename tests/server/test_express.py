"""Tokens written by the engine thread: nothing lost, doubled, overtaken, or left open.

First one thread plays both sides, in any order, over a real pair of sockets; then a real server.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.engine import outbox as outbox_module
from headrace.engine.outbox import Outbox
from headrace.errors import GenerationFailed, GenerationTimeout
from headrace.events import Delta, Event, Failed, Finished, Started, Timings, Usage, fold
from headrace.server.express import EXTENSION, Lane
from headrace.server.sse import EventWriter
from headrace.streams.patience import Patience
from headrace.streams.pump import Pump
from headrace.wire.ask import Stamp
from headrace.wire.chat_answer import ChatStream
from headrace.wire.sse import EventDecoder
from support.asgi import streamed_text

STAMP = Stamp(id="chatcmpl-1", request_id="req_1", created=1, model="m", fingerprint="fp_1")
USAGE, TIMINGS = Usage(1, 0, 0), Timings(0.0, 0.0, 0.0)
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Bystander:
    """Another stream's reader."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    def receive_early(self, events: Sequence[Event]) -> bool:
        return False

    def receive(self, events: Sequence[Event]) -> None:
        """It is not looked at."""

    def catch_up(self) -> None:
        """Nothing was taken early."""


class Script:
    """Stands in for an engine: hands over what the test says."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._outbox = Outbox()
        self._others = [Bystander(loop) for _ in range(4)]
        self.num_said = 0
        self.text = ""
        self.num_early = 0
        self.is_cancelled = False
        self.reader: Any = None

    def submit(self, prepared: Any, reader: Any) -> Any:
        self.reader = reader
        submission = SimpleNamespace(seed=1)
        return SimpleNamespace(submission=submission, reader=reader, cancel=self._cancel)

    def _cancel(self) -> None:
        self.is_cancelled = True

    def step(self, events: Sequence[Event], is_busy: bool = False) -> bool:
        """One step's events; True when they were taken early. `is_busy`: there are others."""
        num_early = len(self.reader._early)
        for event in events:
            self._outbox.post(self.reader, event)
        for other in self._others if is_busy else ():
            self._outbox.post(other, STARTED)
        self.lost = self._outbox.flush()
        is_early = len(self.reader._early) > num_early
        self.num_early += is_early
        return is_early

    def delta(self, num_chars: int = 0) -> Delta:
        """The next token; its text says which it is, in at least so many characters."""
        text = f"({self.num_said:0{num_chars}})"
        delta = Delta(0, self.num_said, (self.num_said,), text)
        self.num_said += 1
        self.text += text
        return delta


class Connection(asyncio.Protocol):
    """What a server knows of a client, with the framing and the flow control of uvicorn's."""

    def __init__(self) -> None:
        self.is_lost = False
        self._can_write = asyncio.Event()
        self._can_write.set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(high=200, low=50)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        self._can_write.set()

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    async def send(self, message: Any) -> None:
        await self._can_write.wait()
        if self.is_lost or message["type"] == "http.response.start":
            return
        body = message["body"]
        if body:
            self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        if not message["more_body"]:
            self.transport.write(b"0\r\n\r\n")

    @property
    def scope(self) -> dict[str, Any]:
        return {"http_version": "1.1", "extensions": {EXTENSION: self.transport}}


class Stage:
    """A stream being written to a client who reads when told to."""

    def __init__(self, buffer_size: int = 2048) -> None:
        ours, self.client = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_size)
        ours.setblocking(False)
        self.client.setblocking(False)
        self._ours = ours
        self.received = b""

    async def begin(self, num_choices: int = 1, parser: Any = None) -> None:
        loop = asyncio.get_running_loop()
        _, self.connection = await loop.connect_accepted_socket(Connection, self._ours)
        self.script = Script(loop)
        self.num_ends = 0
        self.pump = Pump(
            num_choices, parser=lambda choice: parser, patience=Patience(), on_end=self._end
        )
        prepared: Any = [SimpleNamespace(request=SimpleNamespace(n=num_choices))]
        self.pump.submit(self.script, prepared)  # type: ignore[arg-type]
        self.write()

    async def join(self, other: Stage) -> None:
        """Read what another stage reads."""
        loop = asyncio.get_running_loop()
        _, self.connection = await loop.connect_accepted_socket(Connection, self._ours)
        self.pump, self.script = other.pump, other.script
        self.write()

    def _end(self, pump: Pump) -> None:
        self.num_ends += 1

    def write(self) -> None:
        encoder = ChatStream(STAMP, seed=1, n=self.pump.log.num_choices)
        self.writer = EventWriter(self.pump, encoder, self.connection.scope, self.connection.send)
        self.writing = asyncio.create_task(self.writer.write([]))

    def read(self, num_bytes: int = 1 << 20) -> None:
        with suppress(BlockingIOError):
            self.received += self.client.recv(num_bytes)

    async def close(self) -> None:
        if not self.connection.is_lost:
            self.connection.transport.abort()
        self.client.close()
        await turns(3)

    async def finish(self) -> bytes:
        """Read until all is written; the response's body."""
        for _ in range(20_000):
            self.read()
            await asyncio.sleep(0)
            if self.writing.done() and not self.connection.transport.get_write_buffer_size():
                break
        await self.writing
        self.read()
        return body_of(self.received)


def body_of(chunked: bytes) -> bytes:
    """A chunked body; fails where the framing is broken or not at its end."""
    body = b""
    while True:
        size, _, chunked = chunked.partition(b"\r\n")
        length = int(size, 16)
        part, end, chunked = chunked[:length], chunked[length : length + 2], chunked[length + 2 :]
        assert len(part) == length and end == b"\r\n"
        if not length:
            assert chunked == b""
            return body
        body += part


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def play(act: Callable[[], Any], loop: str = "asyncio") -> None:
    async def whole() -> None:
        async with asyncio.timeout(60):
            await act()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(whole())


@pytest.fixture(autouse=True, scope="module")
def uvloop_has_run() -> None:
    """It opens files of its own once, and keeps them."""

    async def act() -> None:
        await asyncio.sleep(0)

    play(act, "uvloop")


def open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


STARTED = Started("r", 0, 1, 1, 0)
FINISHED = Finished(0, "stop", USAGE, TIMINGS)


@pytest.mark.parametrize("loop", LOOPS)
def test_tokens_are_with_the_client_before_the_loop_has_turned(loop: str) -> None:
    async def act() -> None:
        stage = Stage()
        await stage.begin()
        stage.script.step([STARTED])
        await turns(8)
        stage.read()
        for number in range(3):
            assert stage.script.step([stage.script.delta()])
            before = stage.received
            stage.read()
            assert b"(%d)" % number in stage.received[len(before) :]
            assert len(stage.pump.log) == 1
        stage.script.step([stage.script.delta(), FINISHED])
        assert streamed_text(await stage.finish()) == "(0)(1)(2)(3)"
        assert fold(stage.pump.log)[0].text == "(0)(1)(2)(3)"
        assert (stage.script.num_early, stage.num_ends) == (3, 1)
        await stage.close()

    play(act, loop)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """As for a process that has opened all the files it may; those that are open stay so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("loop", LOOPS)
def test_without_a_descriptor_left_tokens_go_by_the_loop(loop: str) -> None:
    class Starved(Stage):
        def write(self) -> None:
            with no_descriptors():
                super().write()

    async def act() -> None:
        stage = Starved()
        await stage.begin()
        stage.script.step([STARTED])
        for _ in range(3):
            await turns(8)
            assert not stage.script.step([stage.script.delta()])
        stage.script.step([FINISHED])
        assert streamed_text(await stage.finish()) == "(0)(1)(2)"
        await stage.close()

    play(act, loop)


SAY = st.tuples(st.just("say"), st.integers(1, 2), st.sampled_from([0, 2000]), st.booleans())
TURN = st.tuples(st.just("turn"), st.sampled_from([1, 1, 2, 8]))
ACTIONS = st.lists(
    SAY
    | SAY
    | TURN
    | st.tuples(st.just("read"), st.integers(1, 6000))
    | st.tuples(st.just("catch up"))
    | st.tuples(st.just("view")),
    max_size=60,
)


@pytest.mark.parametrize("loop", LOOPS)
@settings(max_examples=150, deadline=None)
@given(
    actions=ACTIONS,
    end=st.sampled_from(["finished", "delta and finished", "failed", "run out"]),
    latest_s=st.sampled_from([0.0, 1e9]),
    buffer_size=st.sampled_from([1, 1 << 16]),
)
@example(
    actions=[("turn", 8), *[("say", 1, 0, False), ("turn", 2)] * 40],
    end="finished",
    latest_s=1e9,
    buffer_size=1,
)
def test_any_interleaving(
    loop: str, actions: list[Any], end: str, latest_s: float, buffer_size: int
) -> None:
    """However early and late deliveries, turns of the loop and reads mix, the bytes decode to
    exactly what the engine said, in order; so does the log; and so does any other reader's view."""

    async def act() -> None:
        stage = Stage(buffer_size)
        await stage.begin()
        script, pump = stage.script, stage.pump
        views = [pump.log.view()]
        script.step([STARTED])
        for action in actions:
            match action:
                case ("say", number, num_chars, is_busy):
                    script.step([script.delta(num_chars) for _ in range(number)], is_busy)
                case ("turn", number):
                    await turns(number)
                case ("read", number):
                    stage.read(number)
                case ("catch up",):
                    script.reader.catch_up()
                case ("view",):
                    views.append(pump.log.view())
        match end:
            case "finished":
                script.step([FINISHED])
            case "delta and finished":
                script.step([script.delta(), FINISHED])
            case "failed":
                script.step([Failed(0, GenerationFailed("x"), USAGE, TIMINGS)])
            case "run out":
                # What was handed over before is heard before.
                await turns(2)
                pump._watchdog._catch_up()
                pump._run_out(GenerationTimeout("late"))
        body = await stage.finish()
        assert stage.num_ends == 1
        assert text_of(list(pump.log)) == script.text
        for view in views:
            assert text_of(await view.take()) == script.text
        if end in ("failed", "run out"):
            last = EventDecoder().feed(body)[-1]
            assert last.event == "error" and b"[DONE]" not in body
            body = body[: body.index(b"event: error")] + b"data: [DONE]\n\n"
        assert streamed_text(body) == script.text
        await stage.close()

    before = open_files()
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(outbox_module, "_LATEST_S", latest_s)
    try:
        play(act, loop)
    finally:
        monkeypatch.undo()
    assert open_files() == before


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


@settings(max_examples=60, deadline=None)
@given(
    actions=st.lists(
        SAY | TURN | st.tuples(st.just("read")),
        max_size=40,
    ),
    says_so_first=st.booleans(),
)
def test_whoever_leaves_leaves_nothing(actions: list[Any], says_so_first: bool) -> None:
    """A client that goes away at any moment: the writer ends without an error, nothing stays open,
    and what the engine says later is still heard."""

    async def act() -> None:
        stage = Stage(1)
        await stage.begin()
        stage.script.step([STARTED])
        for action in actions:
            match action:
                case ("say", number, num_chars, is_busy):
                    deltas = [stage.script.delta(num_chars) for _ in range(number)]
                    stage.script.step(deltas, is_busy)
                case ("turn", number):
                    await turns(number)
                case ("read",):
                    stage.read()
        if says_so_first:
            stage.client.shutdown(socket.SHUT_WR)
            await turns(3)
        stage.client.close()
        await turns(3)
        for _ in range(3):
            stage.script.step([stage.script.delta()])
            await turns(2)
        stage.script.step([FINISHED])
        for _ in range(1000):
            if stage.writing.done():
                break
            await asyncio.sleep(0)
        await stage.writing
        assert text_of(list(stage.pump.log)) == stage.script.text
        assert (stage.num_ends, stage.script.is_cancelled) == (1, False)
        await stage.close()

    before = open_files()
    for loop in LOOPS:
        play(act, loop)
    assert open_files() == before


def test_streams_on_one_connection_do_not_mix() -> None:
    """What the engine says of an answer that is over, late, is not in the next one."""

    async def act() -> None:
        stage = Stage()
        await stage.begin()
        first, old = stage.script, stage.pump
        first.step([STARTED])
        await turns(8)
        first.step([first.delta()])
        first.step([FINISHED])
        assert streamed_text(await stage.finish()) == "(0)"
        stage.received = b""
        loop = asyncio.get_running_loop()
        stage.script = Script(loop)
        stage.pump = Pump(1, parser=lambda c: None, patience=Patience(), on_end=stage._end)
        prepared: Any = [SimpleNamespace(request=SimpleNamespace(n=1))]
        stage.pump.submit(stage.script, prepared)  # type: ignore[arg-type]
        stage.write()
        stage.script.step([STARTED])
        await turns(8)
        for _ in range(4):
            stage.script.step([stage.script.delta()])
            # A mistake of the engine's, which nobody should see.
            assert not first.step([Delta(0, 9, (9,), "late")])
        stage.script.step([FINISHED])
        assert streamed_text(await stage.finish()) == "(0)(1)(2)(3)"
        assert text_of(list(old.log)) == "(0)"
        await stage.close()

    play(act)


@pytest.mark.parametrize("is_open", [True, False])
def test_a_reader_that_is_cut_off_closes_its_lane(is_open: bool) -> None:
    """The task that writes is cancelled, as when a server stops at once."""

    async def act() -> None:
        before = open_files()
        stage = Stage(1)
        await stage.begin()
        stage.script.step([STARTED])
        await turns(8)
        assert stage.script.step([stage.script.delta()])
        while not is_open and stage.script.step([stage.script.delta()]):
            pass
        stage.writing.cancel()
        await asyncio.wait([stage.writing])
        num_received = len(stage.received)
        assert not stage.script.step([stage.script.delta()])
        await turns(4)
        stage.script.step([FINISHED])
        await turns(4)
        assert stage.num_ends == 1 and num_received == len(stage.received)
        await stage.close()
        # The pair of sockets was opened after the count.
        assert open_files() == before

    play(act)


def test_a_response_that_cannot_begin_closes_its_lane() -> None:
    async def act() -> None:
        stage = Stage()
        await stage.begin()
        await turns(3)
        stage.writing.cancel()
        await asyncio.wait([stage.writing])
        num_files = open_files()

        async def send(message: Any) -> None:
            raise RuntimeError("Invalid HTTP header value.")

        encoder = ChatStream(STAMP, seed=1)
        writer = EventWriter(stage.pump, encoder, stage.connection.scope, send)
        assert open_files() == num_files + 1
        with pytest.raises(RuntimeError):
            await writer.write([])
        assert open_files() == num_files
        await stage.close()

    play(act)


@pytest.mark.parametrize("is_cut_off", [True, False])
def test_a_second_reader_loses_nothing(is_cut_off: bool) -> None:
    """While one has a bypass, others read the log the usual way; what was taken early by one that
    was cut off is not overtaken by the next one's bypass."""

    async def act() -> None:
        stage, other = Stage(), Stage()
        await stage.begin()
        stage.script.step([STARTED])
        await turns(8)
        assert stage.script.step([stage.script.delta()])
        await other.join(stage)
        await turns(8)
        if is_cut_off:
            stage.writing.cancel()
            await asyncio.wait([stage.writing])
        else:
            assert stage.script.step([stage.script.delta()])
            assert stage.writer._lane is stage.script.reader._bypass
        for _ in range(5):
            stage.script.step([stage.script.delta()])
            await turns(4)
        for _ in range(5):
            stage.script.step([stage.script.delta(), stage.script.delta()], is_busy=True)
            await turns(3)
        stage.script.step([FINISHED])
        for each in (other,) if is_cut_off else (stage, other):
            assert streamed_text(await each.finish()) == stage.script.text
        assert text_of(list(stage.pump.log)) == stage.script.text
        for each in (stage, other):
            await each.close()

    play(act)


def test_an_end_is_told_though_more_was_taken_early_after_it() -> None:
    """Patience runs out on the loop, while the engine thread is just writing a token."""

    async def act() -> None:
        stage = Stage()
        await stage.begin()
        stage.script.step([STARTED])
        await turns(8)
        assert stage.script.step([stage.script.delta()])
        stage.pump._run_out(GenerationTimeout("late"))
        stage.script.reader.catch_up()
        stage.script.step([FINISHED])
        body = await stage.finish()
        assert EventDecoder().feed(body)[-1].event == "error"
        assert (stage.num_ends, stage.script.is_cancelled) == (1, True)
        await stage.close()

    play(act)


def test_of_many_streams_the_loop_writes_without_waking_anybody() -> None:
    """In the turn that brings a token it is with the client, and in the log."""

    async def act() -> None:
        stage = Stage()
        await stage.begin()
        stage.script.step([STARTED])
        await turns(8)
        stage.read()
        for number in range(3):
            assert not stage.script.step([stage.script.delta()], is_busy=True)
            before = stage.received
            await turns(1)
            assert len(stage.pump.log) == 2 + number
            stage.read()
            assert b"(%d)" % number in stage.received[len(before) :]
        stage.script.step([FINISHED], is_busy=True)
        assert streamed_text(await stage.finish()) == stage.script.text
        await stage.close()

    play(act)


@pytest.mark.parametrize("loop", LOOPS)
def test_tokens_that_came_together_are_chunks_of_their_own(loop: str) -> None:
    """The loop was late, not the client, which has taken all that was written."""

    async def act() -> None:
        stage = Stage()
        await stage.begin()
        stage.script.step([STARTED], is_busy=True)
        for _ in range(3):
            stage.script.step([stage.script.delta()], is_busy=True)
        stage.script.step([FINISHED], is_busy=True)
        chunks = [json.loads(e.data) for e in EventDecoder().feed(await stage.finish())[:-1]]
        said = [c["choices"][0]["delta"].get("content") for c in chunks]
        assert [text for text in said if text] == ["(0)", "(1)", "(2)"]
        await stage.close()

    play(act, loop)


class Later:
    """A transport that sends at the end of the loop's turn."""

    def __init__(self, ours: socket.socket) -> None:
        self._ours, self._buffer = ours, b""

    def get_extra_info(self, name: str) -> Any:
        return self._ours if name == "socket" else None

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def write(self, data: bytes) -> None:
        self._buffer += data

    def end_turn(self) -> None:
        self._ours.sendall(self._buffer)
        self._buffer = b""


def test_the_engine_does_not_overtake_what_the_loop_wrote_in_the_same_turn() -> None:
    ours, client = socket.socketpair()
    with ours, client:
        transport = Later(ours)
        scope = {"http_version": "1.1", "extensions": {EXTENSION: transport}}
        lane = Lane.of(scope, ChatStream(STAMP, seed=1))
        assert lane is not None
        words = [Delta(0, i, (i,), f"w{i}. ") for i in range(2)]
        assert lane.take(words[:1], is_early=False)
        assert not lane.take(words[1:], is_early=True)
        transport.end_turn()
        assert lane.take(words[1:], is_early=True)
        body = body_of(client.recv(1 << 16) + b"0\r\n\r\n")
        chunks = [json.loads(event.data) for event in EventDecoder().feed(body)]
        assert [c["choices"][0]["delta"]["content"] for c in chunks] == ["w0. ", "w1. "]
        lane.end()


class Loud:
    num_reasoning_tokens = 0

    def push(self, delta: Delta) -> Sequence[Delta]:
        return [delta]

    def finish(self, reason: Any) -> Any:
        return [], reason


@pytest.mark.parametrize(("num_choices", "parser"), [(2, None), (1, Loud())])
def test_what_must_be_read_first_is_never_taken_early(num_choices: int, parser: Any) -> None:
    async def act() -> None:
        stage = Stage()
        await stage.begin(num_choices, parser)
        stage.script.step([STARTED])
        await turns(8)
        for _ in range(5):
            assert not stage.script.step([stage.script.delta()])
            await turns(1)
            assert stage.pump._bypass is stage.writer._lane
            stage.read()
            assert b"(%d)" % (stage.script.num_said - 1) in stage.received
            await turns(8)
        stage.script.step([Finished(choice, "stop", USAGE, TIMINGS) for choice in (1, 0)][-1:])
        if num_choices == 2:
            stage.script.step([Finished(1, "stop", USAGE, TIMINGS)])
        assert streamed_text(await stage.finish()) == stage.script.text
        await stage.close()

    play(act)


def test_a_frame_that_cannot_be_written_harms_its_stream_alone() -> None:
    """The engine thread must survive whatever an encoder does."""

    class Broken(ChatStream):
        def encode(self, event: Event) -> bytes:
            if isinstance(event, Delta):
                raise RuntimeError("a bug")
            return super().encode(event)

    async def act() -> None:
        stage = Stage()
        await stage.begin()
        stage.writing.cancel()
        await asyncio.wait([stage.writing])
        encoder = Broken(STAMP, seed=1)
        scope, send = stage.connection.scope, stage.connection.send
        writing = asyncio.create_task(EventWriter(stage.pump, encoder, scope, send).write([]))
        stage.script.step([STARTED])
        await turns(8)
        assert not stage.script.step([stage.script.delta()])
        await turns(8)
        with pytest.raises(RuntimeError, match="a bug"):
            await writing
        await stage.close()

    play(act)


def test_a_loop_that_is_gone_is_no_fault_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a process ends without ending its tasks: the engine thread goes on."""
    stages = []

    async def act() -> None:
        stage = Stage()
        await stage.begin()
        stage.script.step([STARTED])
        await turns(8)
        stages.append(stage)

    monkeypatch.setattr(outbox_module, "_LATEST_S", -1.0)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(act())
    loop.close()
    (stage,) = stages
    assert stage.script.step([stage.script.delta()])
    stage.client.close()
    stage.writing._log_destroy_pending = False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "scope",
    [
        {"http_version": "1.1"},
        {"http_version": "1.1", "extensions": {}},
        {"http_version": "1.0", "extensions": {EXTENSION: SimpleNamespace()}},
        {
            "http_version": "1.1",
            "extensions": {
                EXTENSION: SimpleNamespace(get_extra_info=lambda name: "tls", is_closing=bool)
            },
        },
        {
            "http_version": "1.1",
            "extensions": {
                EXTENSION: SimpleNamespace(
                    get_extra_info=lambda name: None, is_closing=lambda: True
                )
            },
        },
    ],
)
def test_other_connections_have_no_lane(scope: dict[str, Any]) -> None:
    if scope["http_version"] == "1.0":
        scope["extensions"][EXTENSION].get_extra_info = lambda name: None
    assert Lane.of(scope, ChatStream(STAMP, seed=1)) is None
