"""A step's events on their way out: to whom, when, and with how many wake-ups."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from headrace.engine import outbox as outbox_module
from headrace.engine.mailbox import LoopReader, ThreadReader
from headrace.engine.outbox import Outbox
from headrace.events import Delta, Event


def delta(start: int, text: str) -> Delta:
    return Delta(0, start, (start,), text)


class CountingLoop(asyncio.SelectorEventLoop):
    """An event loop that counts how often other threads wake it."""

    num_wakes = 0

    def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
        self.num_wakes += 1
        return super().call_soon_threadsafe(*args, **kwargs)


def test_one_wake_up_per_loop_and_step() -> None:
    loops = [CountingLoop(), CountingLoop()]

    async def make_readers() -> list[LoopReader]:
        return [LoopReader() for _ in range(5)]

    readers = [reader for loop in loops for reader in loop.run_until_complete(make_readers())]
    outbox = Outbox()
    for start in range(3):
        for reader in readers:
            outbox.post(reader, delta(start, "a"))
    assert outbox.flush() == []
    assert [loop.num_wakes for loop in loops] == [1, 1]
    assert outbox.flush() == []
    assert [loop.num_wakes for loop in loops] == [1, 1]
    for loop in loops:
        loop.close()


def test_readers_of_a_closed_loop_are_named_and_others_served() -> None:
    loop = asyncio.new_event_loop()

    async def make_reader() -> LoopReader:
        return LoopReader()

    gone = loop.run_until_complete(make_reader())
    loop.close()
    here = ThreadReader()
    outbox = Outbox()
    outbox.post(gone, delta(0, "a"))
    outbox.post(here, delta(0, "b"))
    assert outbox.flush() == [gone]
    assert here.take() == [delta(0, "b")]


class Eager:
    """A reader that takes what it can on the engine thread, while it is willing."""

    def __init__(self, loop: CountingLoop) -> None:
        self.loop = loop
        self.is_willing = True
        self.early: list[Event] = []
        self.heard: list[Event] = []

    def receive_early(self, events: Sequence[Event]) -> bool:
        if self.is_willing:
            self.early.extend(events)
        return self.is_willing

    def catch_up(self) -> None:
        self.heard += self.early
        self.early = []

    def receive(self, events: Sequence[Event]) -> None:
        self.catch_up()
        self.heard.extend(events)


class Scene:
    """Eager readers on a loop that turns when told to."""

    def __init__(self, num_readers: int) -> None:
        self.loop = CountingLoop()
        self.readers = [Eager(self.loop) for _ in range(num_readers)]
        self.outbox = Outbox()
        self.num_said = 0

    def step(self, num_speaking: int | None = None) -> list[Any]:
        for reader in self.readers[:num_speaking]:
            self.outbox.post(reader, delta(self.num_said, "a"))
        self.num_said += 1
        return self.outbox.flush()

    def turn(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))


@pytest.fixture
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "_LATEST_S", 1e9)


@pytest.mark.usefixtures("no_hurry")
def test_a_few_readers_are_served_without_their_loop() -> None:
    scene = Scene(4)
    for _ in range(3):
        assert scene.step() == []
    assert scene.loop.num_wakes == 0
    assert all(len(reader.early) == 3 and not reader.heard for reader in scene.readers)


@pytest.mark.usefixtures("no_hurry")
def test_many_readers_are_left_to_their_loop_together() -> None:
    scene = Scene(5)
    scene.step()
    assert scene.loop.num_wakes == 1
    assert not any(reader.early for reader in scene.readers)
    scene.turn()
    assert all(reader.heard == [delta(0, "a")] for reader in scene.readers)


@pytest.mark.usefixtures("no_hurry")
def test_nothing_overtakes_what_is_under_way() -> None:
    """Not even of a reader that has nothing under way itself: one look for all is cheaper."""
    scene = Scene(2)
    scene.readers[1].is_willing = False
    scene.step()
    scene.readers[1].is_willing = True
    scene.step()
    assert [len(reader.early) for reader in scene.readers] == [1, 0]
    scene.turn()
    scene.step()
    assert [len(reader.early) for reader in scene.readers] == [1, 1]
    for reader in scene.readers:
        assert [*reader.heard, *reader.early] == [delta(start, "a") for start in range(3)]


def test_a_loop_hears_of_what_was_taken_early_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a reader that has not said anything since."""
    monkeypatch.setattr(outbox_module, "_LATEST_S", 1e9)
    scene = Scene(3)
    scene.step()
    monkeypatch.setattr(outbox_module, "_LATEST_S", 0.0)
    scene.step(num_speaking=1)
    assert scene.loop.num_wakes == 1
    scene.turn()
    assert [len(reader.heard) for reader in scene.readers] == [2, 1, 1]


@pytest.mark.usefixtures("no_hurry")
def test_a_reader_that_took_early_is_lost_with_its_loop() -> None:
    scene = Scene(2)
    scene.readers[1].is_willing = False
    scene.loop.close()
    assert set(scene.step()) == set(scene.readers)


def test_a_reader_that_fails_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Eager):
        def receive(self, events: Sequence[Event]) -> None:
            raise RuntimeError("a bug")

    scene = Scene(6)
    scene.readers[0] = Broken(scene.loop)
    scene.step()
    scene.turn()
    assert all(reader.heard == [delta(0, "a")] for reader in scene.readers[1:])
    assert "a reader failed" in caplog.text
    scene.readers = scene.readers[1:3]
    scene.step()
    assert all(reader.early == [delta(1, "a")] for reader in scene.readers)


@pytest.mark.usefixtures("no_hurry")
def test_a_reader_that_cannot_catch_up_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Eager):
        def catch_up(self) -> None:
            raise RuntimeError("a bug")

    scene = Scene(4)
    scene.readers[0] = Broken(scene.loop)
    scene.step()
    scene.readers[3].is_willing = False
    scene.step()
    scene.turn()
    said = [delta(0, "a"), delta(1, "a")]
    assert all(reader.heard == said for reader in scene.readers[1:])
    assert "a reader failed" in caplog.text
    scene.readers = scene.readers[1:3]
    scene.step()
    assert all(reader.early == [delta(2, "a")] for reader in scene.readers)


@pytest.mark.usefixtures("no_hurry")
def test_a_reader_that_fails_early_is_left_to_its_loop(caplog: pytest.LogCaptureFixture) -> None:
    """On the engine thread, where nothing may be thrown into a step."""

    class Broken(Eager):
        def receive_early(self, events: Sequence[Event]) -> bool:
            raise RuntimeError("a bug")

    scene = Scene(2)
    scene.readers[0] = Broken(scene.loop)
    assert scene.step() == []
    scene.turn()
    assert scene.readers[0].heard == [delta(0, "a")]
    assert scene.readers[1].early + scene.readers[1].heard == [delta(0, "a")]
    assert "a reader failed" in caplog.text


def test_loops_that_are_gone_are_forgotten() -> None:
    outbox = Outbox()
    for _ in range(3):
        scene = Scene(1)
        scene.outbox = outbox
        scene.step()
        scene.loop.close()
    assert len(outbox._crossings) == 1
