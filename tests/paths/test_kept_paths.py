"""Every way through a kept stream: readers of all kinds come, go, read slowly and come back.

Whoever reads from a number on gets exactly what an undisturbed reader got after that number, and
one terminal frame; whatever the others do.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.streams.kept import Kept
from headrace.testing.asgi import Call
from headrace.wire.sse import EventDecoder
from support.asgi import CHAT, Door, engine_saying, run, settle
from support.bodies import chat_body

TEXT = "Water turns the wheel, and id: 7\ndata: [DONE] stone."
BODY = chat_body(model="fake", temperature=0, stream=True, stream_options={"resumable": True})
Frames = list[tuple[int, str]]


def sse_frames(body: bytes) -> Frames:
    """Number and data of the whole events in `body`."""
    events = EventDecoder().feed(body)
    return [(int(event.id), event.data) for event in events]


def poll_frames(page: dict[str, Any]) -> Frames:
    return [(event["id"], data_of(event["data"])) for event in page["events"]]


def data_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def same(frames: Frames) -> list[tuple[int, Any]]:
    """Without regard to how JSON is spaced."""
    return [(n, data if data == "[DONE]" else json.loads(data)) for n, data in frames]


@dataclass
class Follower:
    """One reader: by which transport it reads, and what it has read, over all its visits."""

    transport: str
    after: int
    read: Frames = field(default_factory=list)
    call: Call | None = None
    num_taken: int = 0
    is_slow: bool = False

    @property
    def last(self) -> int:
        return self.read[-1][0] if self.read else self.after

    def come(self, door: Door, name: str) -> None:
        path = f"/v1/streams/{name}"
        if self.transport == "sse":
            self.call = door.call("GET", path, headers={"last-event-id": str(self.last)})
        else:
            self.call = door.call("GET", f"{path}/events?after={self.last}&wait=30")
        if self.is_slow:
            self.call.stop_reading()

    def take(self) -> None:
        """What has arrived, as far as it is whole."""
        call = self.call
        if call is None or call.status is None or call.status == 204:
            return
        if self.transport == "sse":
            frames = sse_frames(call.body)
            self.read += frames[self.num_taken :]
            self.num_taken = len(frames)
        elif call.is_whole:
            self.read += poll_frames(json.loads(call.body))

    async def go(self) -> None:
        """Leave, with what has arrived."""
        if self.call is not None:
            self.take()
            self.call.leave()
            await self.call.ended()
            self.call, self.num_taken = None, 0


class Readers(RuleBasedStateMachine):
    """One stream, and readers who do what they like with it."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.followers: list[Follower] = []
        self.was_stopped = False

    def do(self, what: Any) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(30):
                return await what

        return self.loop.run_until_complete(bounded())

    @initialize(stays=st.booleans())
    def begin(self, stays: bool) -> None:
        async def play() -> None:
            self.door = Door(engine_saying(TEXT))
            self.first = self.door.post(CHAT, BODY)
            await self.first.until(lambda: self.first.status)
            self.name = self.first.header("x-headrace-stream") or ""
            self.kept: Kept[Any] = self.door.serving.streams.find(self.name, "local")
            if not stays:
                self.first.leave()
                await self.first.ended()

        self.do(play())

    @rule(transport=st.sampled_from(["sse", "poll"]), after=st.integers(0, 70))
    def join(self, transport: str, after: int) -> None:
        follower = Follower(transport, after)
        self.followers.append(follower)

        async def play() -> None:
            follower.come(self.door, self.name)
            await settle()

        self.do(play())

    @rule(num_steps=st.integers(1, 12))
    def compute(self, num_steps: int) -> None:
        self.do(self.door.turn(num_steps))

    @precondition(lambda self: self.followers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.do(data.draw(st.sampled_from(self.followers)).go())

    @precondition(lambda self: any(f.call is None for f in self.followers))
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        away = [follower for follower in self.followers if follower.call is None]

        async def play() -> None:
            data.draw(st.sampled_from(away)).come(self.door, self.name)
            await settle()

        self.do(play())

    @precondition(lambda self: self.followers)
    @rule(data=st.data(), is_slow=st.booleans())
    def read_slowly(self, data: st.DataObject, is_slow: bool) -> None:
        follower = data.draw(st.sampled_from(self.followers))
        follower.is_slow = is_slow
        if follower.call is not None:
            (follower.call.stop_reading if is_slow else follower.call.read_on)()

    @rule()
    def stop(self) -> None:
        self.was_stopped = True

        async def play() -> None:
            await self.door.answer(self.door.call("DELETE", f"/v1/streams/{self.name}"))

        self.do(play())

    @invariant()
    def nobody_reads_anything_else(self) -> None:
        if not hasattr(self, "kept"):
            return
        whole = [(f.number, f.data.decode()) for f in self.kept.frames.after(0, 10**9)]
        for follower in self.followers:
            follower_read = [*follower.read]
            assert same(follower_read) == same(whole[follower.after :][: len(follower_read)])
        terminal = [data for _, data in whole if data == "[DONE]"]
        assert len(terminal) == int(self.kept.frames.is_ended)

    def teardown(self) -> None:
        if hasattr(self, "kept"):
            self.do(self._end())
        self.loop.run_until_complete(settle())
        assert not asyncio.all_tasks(self.loop)
        self.loop.close()

    async def _end(self) -> None:
        """Everybody reads to the end, and all have read the same."""
        for follower in self.followers:
            if follower.call is not None:
                follower.call.read_on()
        self.first.read_on()
        for _ in range(200):
            await self.door.turn()
            if self.kept.is_over:
                break
        whole = [(f.number, f.data.decode()) for f in self.kept.frames.after(0, 10**9)]
        assert whole[-1][1] == "[DONE]"
        if not self.was_stopped:
            text = [json.loads(data)["choices"][0]["delta"] for _, data in whole[:-1]]
            assert "".join(delta.get("content", "") for delta in text) == TEXT
        for follower in self.followers:
            follower.is_slow = False
            await follower.go()
            for _ in range(3):
                follower.come(self.door, self.name)
                assert follower.call is not None
                await self.door.answer(follower.call)
                follower.take()
                follower.call, follower.num_taken = None, 0
            assert same(follower.read) == same(whole[follower.after :])
        if not self.first.has_ended:
            await self.door.answer(self.first)
        if self.first.is_whole:
            assert sse_frames(self.first.body) == whole
        self.door.serving.streams.close()
        await self.door.turn(2)
        self.door.assert_nothing_is_held()


TestReaders = Readers.TestCase
TestReaders.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


async def play_cell(state: str, transport: str, act: str) -> None:
    """A stream in a state, a reader by a transport, and what it does then."""
    door = Door(engine_saying(TEXT), heartbeat_s=0.05)
    name, first = await in_state(door, state)
    if state == "expired":
        door.serving.streams._drop(name)
        follower = Follower(transport, 0)
        follower.come(door, name)
        assert follower.call is not None
        assert (await follower.call.ended()).status == 410
        return
    kept = door.serving.streams.find(name, "local")
    follower = Follower(transport, 0, is_slow=act == "slow")
    follower.come(door, name)
    await door.turn(0 if state == "queued" else 1)
    match act:
        case "leave":
            await follower.go()
            assert not kept.is_over or state == "finished"
        case "return":
            await follower.go()
            await door.turn(2)
            follower.come(door, name)
        case "stop":
            stopping = door.call("POST", f"/v1/streams/{name}/cancel")
            assert (await door.answer(stopping)).status == 200
        case "slow":
            await door.turn(3)
            assert follower.call is not None
            follower.is_slow = False
            follower.call.read_on()
    while not kept.is_over:
        await door.turn()
    whole = [(f.number, f.data.decode()) for f in kept.frames.after(0, 10**9)]
    assert [data for _, data in whole if data == "[DONE]"] == ["[DONE]"]
    for _ in range(3):  # a poll takes what there is, and asks again
        if follower.call is None:
            follower.come(door, name)
        assert follower.call is not None
        await door.answer(follower.call)
        follower.take()
        follower.call, follower.num_taken = None, 0
    assert same(follower.read) == same(whole)
    if first is not None:
        first.leave()
        await first.ended()
    door.serving.streams.close()
    await door.turn(2)
    door.assert_nothing_is_held()


async def in_state(door: Door, state: str) -> tuple[str, Call | None]:
    """A stream's name, and the call that began it where that goes on."""
    if state == "prefill":
        # Longer than what one step computes, so that a step leaves it in the middle.
        body = {**BODY, "messages": [{"role": "user", "content": "x" * 150}]}
    else:
        body = BODY
    call = door.post(CHAT, body)
    await call.until(lambda: call.status)
    name = call.header("x-headrace-stream") or ""
    kept = door.serving.streams.find(name, "local")
    if state in ("finished", "expired"):
        await door.answer(call)
        return name, None
    if state == "prefill":
        await door.turn(1)
    if state == "decoding":
        await door.turn(5)
        assert len(kept.frames) > 2
    assert not kept.is_over
    return name, call


@pytest.mark.parametrize("act", ["leave", "return", "stop", "slow"])
@pytest.mark.parametrize("transport", ["sse", "poll"])
@pytest.mark.parametrize("state", ["queued", "prefill", "decoding", "finished", "expired"])
def test_every_cell(state: str, transport: str, act: str) -> None:
    run(lambda: play_cell(state, transport, act))
