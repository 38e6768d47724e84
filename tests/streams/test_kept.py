"""Streams that are kept: for how long, how many, how large, and whose."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import HeadraceError, StreamGone, StreamNotFound
from headrace.events import Delta, Event, Failed, Finished, Started, Timings, TokenLogprob, Usage
from headrace.streams import keeping
from headrace.streams.keeping import KeptConfig, KeptStreams
from headrace.streams.kept import Kept
from headrace.streams.patience import Patience
from headrace.streams.pump import Pump
from headrace.streams.rounds import FEW, PAUSE_S, SHARE, Rounds
from support.asgi import run, settle

NOTHING = Usage(1, 0, 0)
TIMINGS = Timings(0.0, 0.0, 0.0)


class Told:
    """Writes each event as a frame of so many bytes as its text has."""

    def __init__(self) -> None:
        self.is_ended = False

    def encoder(self) -> Told:
        return Told()

    def encode(self, event: Event) -> bytes:
        self.is_ended = isinstance(event, (Finished, Failed))
        return b"data: %b\n\n" % (event.text.encode() if isinstance(event, Delta) else b"-")


class Stage:
    """Streams by name, each with a pump that says what the test says."""

    def __init__(self, **config: Any) -> None:
        self.streams: KeptStreams[Told] = KeptStreams(KeptConfig(**config))
        self.gone: list[str] = []
        self.streams.when_gone(self.gone.append)

    def keep(self, name: str, tenant: str = "t", num_choices: int = 1) -> Kept[Told]:
        pump = Pump(num_choices, parser=lambda _: None, patience=Patience(), on_end=lambda _: None)
        pump.hear([Started("r", 0, 1, 1, 0)], 0.0)
        return self.streams.keep(name, tenant, pump, Told(), served_by="m")

    def ended(self, name: str, tenant: str = "t", text: str = "") -> Kept[Told]:
        kept = self.keep(name, tenant)
        say(kept, text)
        finish(kept)
        return kept


def say(kept: Kept[Told], text: str) -> None:
    kept.pump.hear([Delta(0, 0, (1,), text)], 0.0)


def finish(kept: Kept[Told]) -> None:
    kept.pump.hear([Finished(0, "stop", NOTHING, TIMINGS)], 0.0)


def failure(kept: Kept[Told]) -> str | None:
    last = kept.pump.log.since(len(kept.pump.log) - 1)[0]
    return last.error.code if isinstance(last, Failed) else None


async def eventually(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.002)


def refusal(stage: Stage, name: str, tenant: str = "t") -> type[HeadraceError] | None:
    try:
        stage.streams.find(name, tenant)
    except HeadraceError as error:
        return type(error)
    return None


def test_a_stream_is_found_by_its_owner_alone() -> None:
    async def play() -> None:
        stage = Stage(ttl_s=0.01)
        kept = stage.keep("a")
        assert stage.streams.find("a", "t") is kept
        assert refusal(stage, "a", "other") is StreamNotFound
        assert refusal(stage, "b") is StreamNotFound
        finish(kept)
        assert stage.streams.find("a", "t") is kept
        await eventually(lambda: len(stage.streams) == 0)
        assert refusal(stage, "a") is StreamGone
        assert refusal(stage, "a", "other") is StreamNotFound
        assert stage.gone == ["a"]

    run(play)


def test_time_counts_from_the_end() -> None:
    async def play() -> None:
        stage = Stage(ttl_s=0.01)
        running = stage.keep("a")
        stage.ended("b")
        await eventually(lambda: stage.gone == ["b"])
        assert stage.streams.find("a", "t") is running and stage.streams.num_live == 1
        finish(running)
        await eventually(lambda: stage.gone == ["b", "a"])
        assert (len(stage.streams), stage.streams.num_live, stage.streams.num_bytes) == (0, 0, 0)

    run(play)


def test_the_oldest_of_the_greediest_makes_room() -> None:
    async def play() -> None:
        stage = Stage(max_streams=4)
        stage.ended("quiet", tenant="q")
        for name in ("a", "b", "c"):
            stage.ended(name)
        stage.keep("d")
        assert stage.gone == ["a"]
        stage.ended("e", tenant="q")
        assert stage.gone == ["a", "b"]
        stage.streams.close()

    run(play)


def test_what_has_ended_and_is_not_read_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_PACK_S", 0.005)

    async def play() -> None:
        stage = Stage()
        kept, running = stage.keep("a"), stage.keep("b")
        for number in range(50):
            say(kept, f"word {number}")
        with kept.reading():
            finish(kept)
            events, frames = list(kept.pump.log), list(kept.frames.after(0, 10**6))
            before = stage.streams.num_bytes
            await asyncio.sleep(0.03)
            assert kept.pump.log.recent  # it is being read
        await eventually(lambda: not kept.pump.log.recent)
        assert running.pump.log.recent
        assert stage.streams.num_bytes < before / 3
        again = stage.streams.find("a", "t")
        assert list(again.pump.log) == events and list(again.frames.after(0, 10**6)) == frames
        stage.streams.close()

    run(play)


def test_what_is_packed_is_weighed_and_goes_to_disk_like_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_PACK_S", 0.005)

    async def play() -> None:
        stage = Stage()
        kept = stage.ended("a", text="a word")
        events = list(kept.pump.log)
        await eventually(lambda: not kept.pump.log.recent)
        stage.streams.find("a", "t")
        num_packed = stage.streams.num_bytes
        assert num_packed == kept.pump.log.num_packed_bytes > 0
        kept.spill(tmp_path / "a")
        assert kept.num_disk_bytes >= num_packed and kept.measure() == 0
        assert list(kept.pump.log) == events
        stage.streams.close()

    run(play)


def test_what_readers_add_to_one_that_has_ended_is_weighed_and_packed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever reads it from its beginning has its frames made."""
    monkeypatch.setattr(keeping, "_PACK_S", 0.005)

    async def play() -> None:
        stage = Stage()
        kept = stage.ended("a", text="word " * 1000)
        await eventually(lambda: not kept.pump.log.recent)
        before = stage.streams.num_bytes
        for _ in range(100):
            with kept.reading():
                assert kept.frames.after(0, 10**6)
        assert stage.streams.num_bytes > before + 5000
        assert len(stage.streams._unpacked) == 1
        weighed = stage.streams.num_bytes
        await eventually(lambda: not stage.streams._unpacked)
        assert stage.streams.num_bytes < weighed
        stage.streams.close()

    run(play)


def test_one_that_runs_never_makes_room_for_another() -> None:
    async def play() -> None:
        stage = Stage(max_streams=1)
        kept = [stage.keep(name) for name in ("a", "b")]
        assert stage.gone == [] and len(stage.streams) == 2
        for one in kept:
            finish(one)
        stage.keep("c")
        assert stage.gone == ["a", "b"]
        stage.streams.close()

    run(play)


def test_memory_is_bounded_by_those_that_ended() -> None:
    async def play() -> None:
        stage = Stage(max_bytes=20_000)
        stage.ended("small", tenant="q", text="x" * 100)
        for name in ("a", "b", "c"):
            stage.ended(name, text="x" * 3000)
        assert stage.streams.num_bytes <= 20_000
        assert stage.gone == ["a"]
        # Who reads one makes it larger: its frames are kept, too.
        for name in ("b", "c"):
            len(stage.streams.find(name, "t").frames)
        before = stage.streams.num_bytes
        stage.streams.find("b", "t")
        assert stage.streams.num_bytes > before
        stage.streams.close()

    run(play)


def test_a_stream_that_grows_too_large_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.streams.keeping._MEASURE_S", 0.005)

    async def play() -> None:
        stage = Stage(max_bytes=80_000)
        small, large = stage.keep("a"), stage.keep("b")
        say(small, "x" * 100)
        say(large, "x" * 8000)
        await eventually(lambda: large.is_over)
        assert failure(large) == "stream_too_large" and not small.is_over
        stage.streams.close()

    run(play)


def test_where_all_run_the_largest_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.streams.keeping._MEASURE_S", 0.005)

    async def play() -> None:
        stage = Stage(max_bytes=40_000)
        kept = [stage.keep(str(index)) for index in range(12)]
        for index, one in enumerate(kept):
            say(one, "x" * (1400 + index))
        await eventually(lambda: stage.streams.num_bytes <= 40_000)
        assert failure(kept[-1]) == "stream_too_large" and not kept[0].is_over
        stage.streams.close()

    run(play)


def test_what_does_not_fit_into_memory_is_read_from_disk(tmp_path: Path) -> None:
    """From any number on, and by its owner alone."""

    async def play() -> None:
        stage = Stage(max_bytes=20_000)
        stage.streams.spill_to(tmp_path / "spilled")
        for name in ("a", "b", "c"):
            stage.ended(name, text=name * 3000)
        assert stage.streams.num_bytes <= 20_000 and stage.gone == []
        assert [path.name for path in (tmp_path / "spilled").iterdir()] == ["a.spilled"]
        assert stat.S_IMODE((tmp_path / "spilled" / "a.spilled").stat().st_mode) == 0o600
        for name in ("a", "b", "c"):
            kept = stage.streams.find(name, "t")
            bodies = [frame.body for frame in kept.frames.after(0, 100_000)]
            assert bodies == [b"data: -", b"data: " + name.encode() * 3000, b"data: -"]
            assert [frame.number for frame in kept.frames.after(2, 100_000)] == [3]
            assert [type(event) for event in kept.pump.log] == [Started, Delta, Finished]
        with pytest.raises(StreamNotFound):
            stage.streams.find("a", "another")
        stage.streams.close()
        assert list((tmp_path / "spilled").iterdir()) == []
        assert stage.streams.num_disk_bytes == 0

    run(play)


def test_a_stream_that_goes_on_goes_to_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It does not fail, and its reader misses nothing."""
    monkeypatch.setattr("headrace.streams.keeping._MEASURE_S", 0.002)

    async def play() -> None:
        stage = Stage(max_bytes=80_000)
        stage.streams.spill_to(tmp_path)
        kept = stage.keep("a")
        number, heard = 1, b""
        for part in range(40):
            kept.pump.hear([Delta(0, part, (1,), f"{part}," + "x" * 3000)], 0.0)
            await asyncio.sleep(0.002)
            more, number = kept.frames.part_after(number, 1_000_000)
            heard += more
        await eventually(lambda: kept.num_disk_bytes > 80_000)
        finish(kept)
        assert isinstance(kept.pump.log.since(41)[0], Finished)
        whole, _ = kept.frames.part_after(1, 1_000_000)
        assert heard == whole[: len(heard)] and heard.count(b"id: ") == 40
        assert stage.streams.num_bytes < 80_000 and stage.gone == []
        stage.streams.close()

    run(play)


def test_the_disk_is_bounded_by_those_that_ended(tmp_path: Path) -> None:
    async def play() -> None:
        stage = Stage(max_bytes=5_000, max_disk_bytes=20_000)
        stage.streams.spill_to(tmp_path)
        stage.ended("small", tenant="q", text="x" * 1000)
        for name in ("a", "b", "c", "d"):
            stage.ended(name, text="x" * 6000)
        assert stage.streams.num_disk_bytes <= 20_000
        assert stage.gone and "small" not in stage.gone
        for name in stage.gone:
            with pytest.raises(StreamGone):
                stage.streams.find(name, "t")
        assert stage.streams.num_disk_bytes == sum(
            path.stat().st_size for path in tmp_path.iterdir()
        )
        stage.streams.close()

    run(play)


def test_who_reads_what_is_gone_from_the_disk_reads_on(tmp_path: Path) -> None:
    async def play() -> None:
        stage = Stage(max_bytes=1)
        stage.streams.spill_to(tmp_path)
        kept = stage.ended("a", text="x" * 3000)
        with kept.reading():
            stage.streams.close()
            assert stage.gone == ["a"]
            assert len(kept.frames.after(0, 100_000)) == 3
        assert list(tmp_path.iterdir()) == []

    run(play)


def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    """Then memory is all there is."""

    async def play() -> None:
        stage = Stage(max_bytes=20_000)
        stage.streams.spill_to(tmp_path / "spilled")
        (tmp_path / "spilled").rmdir()
        for name in ("a", "b", "c"):
            stage.ended(name, text="x" * 3000)
        assert stage.streams.num_bytes <= 20_000 and stage.gone == ["a"]
        stage.streams.close()

    run(play)


def test_what_a_dead_process_left_on_disk_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "old.spilled").write_bytes(b"x")
    Stage().streams.spill_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_log_probabilities_count() -> None:
    async def play() -> None:
        stage = Stage()
        plain, wordy = stage.keep("a"), stage.keep("b")
        say(plain, "x")
        top = tuple((token, -1.0) for token in range(20))
        wordy.pump.hear([Delta(0, 0, (1,), "x", (TokenLogprob(1, -1.0, top),))], 0.0)
        assert wordy.measure() > plain.measure() + 2000
        assert wordy.measure() == wordy.measure()
        stage.streams.close()

    run(play)


def test_an_orphan_fails_and_one_that_is_read_goes_on() -> None:
    async def play() -> None:
        stage = Stage(orphan_s=0.02)
        read, orphan = stage.keep("a"), stage.keep("b")
        with read.reading(), read.reading():
            await eventually(lambda: orphan.is_over)
            assert failure(orphan) == "stream_abandoned"
            await asyncio.sleep(0.04)
            assert not read.is_over and read.num_readers == 2
        await eventually(lambda: read.is_over)
        assert failure(read) == "stream_abandoned"
        stage.streams.close()

    run(play)


def test_closing_tells_who_still_reads() -> None:
    async def play() -> None:
        stage = Stage()
        kept = stage.keep("a")
        stage.ended("b")
        waiting = kept.arrival()
        stage.streams.close()
        assert failure(kept) == "stream_gone" and waiting.done()
        assert len(stage.streams) == 0 and sorted(stage.gone) == ["a", "b"]

    run(play)


def test_a_few_readers_hear_of_every_event() -> None:
    async def play() -> None:
        stage = Stage()
        kept = stage.keep("a")
        for _ in range(3):
            waiting = [kept.arrival() for _ in range(FEW)]
            await settle(2)
            assert not any(one.done() for one in waiting)
            say(kept, "x")
            await settle(3)
            assert all(one.done() for one in waiting)
        stage.streams.close()

    run(play)


def test_a_crowd_hears_in_rounds() -> None:
    async def play() -> None:
        stage = Stage()
        kept = stage.keep("a")
        crowd = [kept.arrival() for _ in range(FEW * 20)]
        say(kept, "x")
        await settle(3)
        assert all(one.done() for one in crowd)
        crowd = [kept.arrival() for _ in range(FEW * 20)]
        say(kept, "x")
        await settle(3)
        assert not any(one.done() for one in crowd)
        left = crowd.pop()
        left.cancel()
        began_at = asyncio.get_running_loop().time()
        for one in crowd:
            await one
        assert asyncio.get_running_loop().time() - began_at < FEW * 20 * PAUSE_S + 10
        crowd = [kept.arrival() for _ in range(FEW * 20)]
        say(kept, "x")
        finish(kept)  # nobody waits for a round that would be the last
        assert all(one.done() for one in crowd)
        stage.streams.close()

    run(play)


def test_a_crowd_that_takes_long_is_woken_less_often() -> None:
    async def play() -> None:
        stage = Stage()
        kept = stage.keep("a")
        loop = asyncio.get_running_loop()
        crowd = [kept.arrival() for _ in range(FEW * 2)]
        crowd[0].add_done_callback(lambda _: time.sleep(0.02))
        say(kept, "x")
        await settle(3)
        began_at = loop.time()
        crowd = [kept.arrival() for _ in range(FEW * 2)]
        say(kept, "x")
        for one in crowd:
            await one
        # Without a measure it would be FEW * 2 * PAUSE_S.
        assert loop.time() - began_at > 0.02 / SHARE / 2
        stage.streams.close()

    run(play)


def test_whoever_waits_no_more_is_forgotten() -> None:
    async def play() -> None:
        stage = Stage()
        kept = stage.keep("a")
        rounds: Rounds = kept._rounds
        for _ in range(10):
            kept.arrival().cancel()
        await settle(2)
        assert not rounds._waiting
        stage.streams.close()

    run(play)
