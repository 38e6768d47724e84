"""Every way through a kept stream: readers of all kinds come, go, read slowly and come back.

Whoever reads from a number on gets exactly what an undisturbed reader got after that number, and
one terminal frame; whatever the others do.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.streams.kept import Kept
from headrace.testing.asgi import Call
from support.asgi import CHAT, Door, engine_saying, settle
from support.bodies import chat_body
from support.followers import TRANSPORTS, Follower, Frames, same, socket_frames, sse_frames
from support.sockets import SocketCall, is_last

TEXT = "Water turns the wheel, and id: 7\ndata: [DONE] stone."
BODY = chat_body(model="fake", temperature=0, stream=True, stream_options={"resumable": True})


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

    @initialize(stays=st.booleans(), by_socket=st.booleans())
    def begin(self, stays: bool, by_socket: bool) -> None:
        async def play() -> None:
            self.door = Door(engine_saying(TEXT))
            self.name = await (self._ask_by_socket() if by_socket else self._ask_by_post())
            self.kept: Kept[Any] = self.door.serving.streams.find(self.name, "local")
            if not stays:
                self.first.leave()
                await self.first.ended()

        self.do(play())

    async def _ask_by_post(self) -> str:
        self.first: Call | SocketCall = (call := self.door.post(CHAT, BODY))
        await call.until(lambda: call.status)
        return call.header("x-headrace-stream") or ""

    async def _ask_by_socket(self) -> str:
        self.first = socket = SocketCall.at(self.door)
        socket.say({"id": "a", **BODY})
        await settle(20)
        return str(socket.messages[0]["headers"]["x-headrace-stream"])

    @rule(transport=st.sampled_from(TRANSPORTS), after=st.integers(0, 70))
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

    @precondition(lambda self: any(f.visit is None for f in self.followers))
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        away = [follower for follower in self.followers if follower.visit is None]

        async def play() -> None:
            data.draw(st.sampled_from(away)).come(self.door, self.name)
            await settle()

        self.do(play())

    @precondition(lambda self: self.followers)
    @rule(data=st.data(), is_slow=st.booleans())
    def read_slowly(self, data: st.DataObject, is_slow: bool) -> None:
        data.draw(st.sampled_from(self.followers)).read_slowly(is_slow)

    @precondition(lambda self: any(f.visit is not None for f in self.followers))
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        self.was_stopped = True
        here = [follower for follower in self.followers if follower.visit is not None]
        self.do(data.draw(st.sampled_from(here)).stop(self.door, self.name))

    @invariant()
    def nobody_reads_anything_else(self) -> None:
        if not hasattr(self, "kept"):
            return
        whole = self._whole()
        for follower in self.followers:
            follower.take()
            read = follower.read
            assert same(read) == same(whole[follower.after :][: len(read)])
            assert not read or read[-1][0] == follower.after + len(read)
            self._check_one_end(follower)
        terminal = [number for number, data in whole if data == "[DONE]"]
        assert terminal == ([len(whole)] if self.kept.frames.is_ended else [])

    def _whole(self) -> Frames:
        return [(f.number, f.data.decode()) for f in self.kept.frames.after(0, 10**9)]

    @staticmethod
    def _check_one_end(follower: Follower) -> None:
        """No visit is told an end twice, nor anything after it, whatever it had before."""
        match follower.visit:
            case SocketCall() as socket:
                ends = list(map(is_last, socket.of("r")))
            case Call() as call if follower.transport == "sse" and call.status == 200:
                ends = [data == "[DONE]" for _, data in sse_frames(call.body)]
            case _:
                ends = [data == "[DONE]" for _, data in follower.read]
        assert ends.count(True) == ends[-1:].count(True)

    def teardown(self) -> None:
        if hasattr(self, "kept"):
            self.do(self._end())
        self.loop.run_until_complete(settle())
        assert not asyncio.all_tasks(self.loop)
        self.loop.close()

    async def _end(self) -> None:
        """Everybody reads to the end, and all have read the same."""
        for follower in self.followers:
            follower.read_slowly(False)
        self.first.read_on()
        for _ in range(200):
            await self.door.turn()
            if self.kept.is_over:
                break
        whole = self._whole()
        assert whole[-1][1] == "[DONE]"
        if not self.was_stopped:
            text = [json.loads(data)["choices"][0]["delta"] for _, data in whole[:-1]]
            assert "".join(delta.get("content", "") for delta in text) == TEXT
        for follower in self.followers:
            await follower.go()
            for _ in range(3):
                follower.come(self.door, self.name)
                await follower.until_told(self.door)
            assert same(follower.read) == same(whole[follower.after :])
        await self._end_first(whole)
        self.door.serving.streams.close()
        await self.door.turn(2)
        self.door.assert_nothing_is_held()

    async def _end_first(self, whole: Frames) -> None:
        """Who asked has read the same, if it stayed."""
        first = self.first
        if isinstance(first, Call):
            if not first.has_ended:
                await self.door.answer(first)
            if first.is_whole:
                assert sse_frames(first.body) == whole
        elif not first.has_ended:
            await settle(40)
            assert same(socket_frames(first.of("a"))) == same(whole)
            first.leave()
            await first.ended()


TestReaders = Readers.TestCase
TestReaders.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
