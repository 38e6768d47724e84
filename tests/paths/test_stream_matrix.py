"""Each state of a kept stream, each transport, and whatever its reader does: 72 cells.

| the stream is | and the reader, by SSE, WebSocket or long-poll, |
|---|---|
| queued: no step has computed for it | leaves: it goes on without |
| prefill: its prompt is half computed | returns: it gets what it has missed, and nothing twice |
| decoding: it has said some tokens | stops it: it ends for everybody, with one terminal event |
| finished: it has said its end | is slow: it harms nobody, and gets all of it |
| expired: it is not kept any more | whatever it does, it is told so (410), each time it comes |
| crashed: its server died, the next one goes on | as if nothing had happened |
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.engine.engine import EngineConfig
from headrace.engine.scheduler import SchedulerConfig
from headrace.streams.kept import Kept
from headrace.testing import END_ID, FakeModel, ManualEngine, saying
from support.asgi import CHAT, run, settle
from support.bodies import chat_body
from support.durable import House
from support.followers import TRANSPORTS, Follower, Frames, same

TEXT = "Water turns the wheel, and id: 7\ndata: [DONE] stone."
BODY = chat_body(model="fake", temperature=0, stream=True, stream_options={"resumable": True})
# Longer than what one step computes, so that a step leaves it in the middle.
LONG = {**BODY, "messages": [{"role": "user", "content": "x" * 150}]}
STATES = ("queued", "prefill", "decoding", "finished", "expired", "crashed")
NUM_STEPS = {"queued": 0, "prefill": 1, "decoding": 5, "finished": 80, "expired": 80, "crashed": 5}


def small_steps() -> ManualEngine:
    config = EngineConfig(scheduler=SchedulerConfig(max_running=4, max_step_tokens=64))
    return ManualEngine(FakeModel(rule=saying(TEXT.encode(), END_ID)), config)


class Cell:
    """One stream in a state, and one reader of it."""

    def __init__(self, folder: Path, state: str, transport: str) -> None:
        self.state = state
        self._folder = folder
        self.follower = Follower(transport)
        self.was_stopped = False

    async def begin(self) -> None:
        """A stream in its state, whose first client has left if it could."""
        self.house = House(self._folder, small_steps())
        call = self.house.post(CHAT, LONG if self.state == "prefill" else BODY)
        await call.until(lambda: call.status)
        self.name = call.header("x-headrace-stream") or ""
        await self.house.turn(NUM_STEPS[self.state])
        call.leave()
        await call.ended()
        if self.state == "crashed":
            before = self.house
            self.house = before.after_death(small_steps())
            self.house.revive()
            before.leave()
            before.engine.close()
        self.kept: Kept[Any] = self.house.serving.streams.find(self.name, "local")
        self._check_state()
        if self.state == "expired":
            self.house.serving.streams._drop(self.name)

    def _check_state(self) -> None:
        stats = self.house.engine.stats()
        match self.state:
            case "queued":
                assert stats.num_pending_requests == 1 and stats.num_running == 0
            case "prefill":
                assert stats.num_running == 1 and len(self.frames) <= 1
            case "decoding":
                assert 2 < len(self.frames) < 20
            case "crashed":
                assert not self.kept.is_over
            case _:
                assert self.kept.is_over

    @property
    def frames(self) -> Frames:
        return [(f.number, f.data.decode()) for f in self.kept.frames.after(0, 10**9)]

    async def come(self, *, is_slow: bool = False) -> None:
        self.follower.is_slow = is_slow
        self.follower.come(self.house, self.name)
        # In the queue it stays until somebody computes; else a step goes by.
        await (settle() if self.state in ("queued", "prefill") else self.house.turn())

    async def end(self) -> None:
        """The stream goes to its end; the reader has read all of it, and one end."""
        for _ in range(200):
            if self.kept.is_over:
                break
            await self.house.turn()
        whole = self.frames
        assert [data for _, data in whole].count("[DONE]") == 1 and whole[-1][1] == "[DONE]"
        for _ in range(3):  # a poll takes what there is, and asks again
            if self.follower.visit is None:
                self.follower.come(self.house, self.name)
            await self.follower.until_told(self.house)
        assert same(self.follower.read) == same(whole)
        said = [json.loads(data)["choices"][0] for _, data in whole[:-1]]
        text = "".join(choice["delta"].get("content", "") for choice in said)
        assert TEXT.startswith(text)
        assert text == TEXT or self.was_stopped

    async def leave(self) -> None:
        self.house.leave()
        await self.house.turn(2)
        self.house.assert_nothing_is_held()


async def leaves(cell: Cell) -> None:
    await cell.come()
    was_over = cell.kept.is_over
    await cell.follower.go()
    await settle()
    assert cell.kept.is_over == was_over
    stats = cell.house.engine.stats()
    assert stats.num_pending_requests == (0 if was_over else 1)


async def returns(cell: Cell) -> None:
    await cell.come()
    await cell.follower.go()
    await cell.house.turn(2)
    await cell.come()


async def stops(cell: Cell) -> None:
    await cell.come()
    cell.was_stopped = not cell.kept.is_over
    await cell.follower.stop(cell.house, cell.name)
    await cell.house.turn()
    assert cell.house.engine.stats().num_pending_requests == 0


async def is_slow(cell: Cell) -> None:
    await cell.come(is_slow=True)
    num_before = len(cell.frames)
    await cell.house.turn(3)
    assert cell.kept.is_over or len(cell.frames) > num_before or cell.state == "prefill"
    cell.follower.read_slowly(False)


ACTS: dict[str, Callable[[Cell], Awaitable[None]]] = {
    "leave": leaves,
    "return": returns,
    "stop": stops,
    "slow": is_slow,
}


async def is_told_that_it_is_gone(cell: Cell, act: str) -> None:
    """There is nothing to leave, to miss or to stop; but everybody is told, each time."""
    for _ in range(2 if act == "return" else 1):
        await cell.come(is_slow=act == "slow")
        cell.follower.read_slowly(False)
        await settle(30)
        assert cell.follower.refusal == 410
        if act == "stop" and cell.follower.transport == "socket":
            await cell.follower.stop(cell.house, cell.name)  # nothing is answered under its id
            assert len(cell.follower.visit.of("r")) == 1  # type: ignore[union-attr]
        elif act == "stop":
            stopping = cell.house.call("DELETE", f"/v1/streams/{cell.name}")
            assert (await cell.house.answer(stopping)).status == 410
        await cell.follower.go()


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("state", STATES)
def test_every_cell(tmp_path: Path, state: str, transport: str, act: str) -> None:
    async def play() -> None:
        cell = Cell(tmp_path / "streams", state, transport)
        await cell.begin()
        if state == "expired":
            await is_told_that_it_is_gone(cell, act)
        else:
            await ACTS[act](cell)
            await cell.end()
        await cell.leave()

    run(play)
