"""The journal: what is in it after any death, and that nobody hears what is not in it."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as checks
from hypothesis import strategies as st

from headrace.engine.mailbox import Reader
from headrace.engine.past import Ended, Said
from headrace.engine.request import Request
from headrace.errors import (
    GenerationFailed,
    GenerationTimeout,
    HeadraceError,
    JournalFailed,
    RateLimited,
)
from headrace.events import Delta, Event, Failed, Finished, TokenLogprob
from headrace.streams import records
from headrace.streams import segments as segments_module
from headrace.streams.journal import Journal, is_interruption
from headrace.streams.recovery import Recovered, recover
from headrace.testing import ManualEngine
from support.resuming import Alphabet, Listener, again, by_choice, listen, past_in

LETTERS = Alphabet(b"abcdefgh", 99)
"""Every token is a character, so every token is a delta."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "streams"


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    journal = Journal.open(folder, clock=lambda: 1234.5)
    yield journal
    journal.close()


def found(folder: Path) -> dict[str, Recovered]:
    return {recovered.id: recovered for recovered in recover(folder)}


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.journal"))


def tokens(recovered: Recovered, choice: int = 0) -> list[int]:
    said = [one for one in recovered.past if isinstance(one, Said) and one.choice == choice]
    return [token for one in said for token in one.token_ids]


def after_death(folder: Path, where: Path) -> Path:
    """What a new process would find: a folder that nobody has locked."""
    shutil.copytree(folder, where, ignore=shutil.ignore_patterns("lock"))
    return where


class TestKeeping:
    def test_a_stream_comes_back(self, journal: Journal, folder: Path) -> None:
        header = {"prompt": [1, 2, 3], "seed": 2**64 - 1, "temperature": 0.1, "text": "é\n"}
        journal.opened("stream", header, 2)
        journal.said("stream", 1, 0, [])
        journal.said("stream", 0, 0, [5, 6])
        journal.said("stream", 1, 0, [7])
        journal.commit()
        journal.ended("stream", 1, "stop")
        journal.commit()
        [recovered] = recover(folder)
        assert recovered.id == "stream"
        assert recovered.header == header
        assert recovered.num_choices == 2
        assert recovered.opened_at == 1234.5
        assert recovered.ended_at is None
        assert [(one.choice, list(one.token_ids)) for one in recovered.past[:3]] == [  # type: ignore[union-attr]
            (1, []),
            (0, [5, 6]),
            (1, [7]),
        ]
        assert recovered.past[3] == Ended(1, "stop")
        journal.ended("stream", 0, "length")
        journal.commit()
        assert found(folder)["stream"].ended_at == 1234.5

    def test_log_probabilities_are_the_same_bits(self, journal: Journal, folder: Path) -> None:
        logprobs = (
            TokenLogprob(5, -0.1234567890123456, ((5, -0.1234567890123456), (9, -7.0))),
            TokenLogprob(6, float("-inf"), ()),
        )
        journal.opened("stream", {})
        journal.said("stream", 0, 0, (5, 6), logprobs)
        journal.commit()
        [one] = recover(folder)[0].past
        assert isinstance(one, Said)
        assert one.logprobs == logprobs

    @pytest.mark.parametrize("error", [GenerationTimeout("too slow"), GenerationFailed("NaN")])
    def test_errors_come_back(self, journal: Journal, folder: Path, error: Any) -> None:
        journal.opened("stream", {})
        journal.ended("stream", 0, error)
        journal.commit()
        [one] = recover(folder)[0].past
        assert isinstance(one, Ended) and isinstance(one.how, HeadraceError)
        assert type(one.how) is type(error)
        assert (one.how.message, one.how.status) == (error.message, error.status)

    def test_errors_that_are_made_otherwise(self, journal: Journal, folder: Path) -> None:
        error = RateLimited("enough", wire_type="tokens", retry_after_s=3.0)
        journal.opened("stream", {})
        journal.ended("stream", 0, error)
        journal.commit()
        [one] = recover(folder)[0].past
        assert isinstance(one, Ended) and isinstance(one.how, RateLimited)
        assert one.how.message == "enough"

    def test_an_error_of_another_version(self) -> None:
        data = records.MAGIC + records.encode(
            records.Over(Ended(0, type("Newer", (GenerationFailed,), {})("what")), 1.0), 1, 0
        )
        [(over, _, _, _)] = records.decode(data)
        assert isinstance(over, records.Over) and isinstance(over.ended.how, GenerationFailed)

    def test_what_is_said_twice_is_kept_once(self, journal: Journal, folder: Path) -> None:
        journal.opened("stream", {})
        for start, said in ((0, []), (0, [1, 2]), (0, []), (0, [1]), (1, [2]), (1, [2, 3, 4])):
            journal.said("stream", 0, start, said)
        journal.ended("stream", 0, "stop")
        journal.ended("stream", 0, GenerationTimeout("late"))
        journal.said("stream", 0, 4, [5])
        journal.commit()
        [recovered] = recover(folder)
        assert tokens(recovered) == [1, 2, 3, 4]
        assert recovered.past[-1] == Ended(0, "stop")

    def test_one_id_twice(self, journal: Journal) -> None:
        journal.opened("stream", {})
        with pytest.raises(ValueError, match="here already"):
            journal.opened("stream", {})

    def test_nobody_else_may_read_it(self, journal: Journal, folder: Path) -> None:
        journal.opened("stream", {})
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for path in (*segments(folder), folder / "lock"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_no_stream_no_file(self, journal: Journal, folder: Path) -> None:
        journal.commit()
        assert [path.name for path in folder.iterdir()] == ["lock"]

    def test_a_second_journal_in_one_folder(self, journal: Journal, folder: Path) -> None:
        with pytest.raises(JournalFailed, match="another process"):
            Journal.open(folder)
        journal.close()
        Journal.open(folder).close()

    def test_another_process_in_one_folder(self, journal: Journal, folder: Path) -> None:
        script = (
            "import sys; from pathlib import Path; from headrace.streams.journal import Journal\n"
            "Journal.open(Path(sys.argv[1]))"
        )
        process = subprocess.run(
            [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=60
        )
        assert "JournalFailed: another process keeps its streams in" in process.stderr

    def test_a_folder_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(JournalFailed, match="cannot be kept in"):
            Journal.open(tmp_path / "file")


class TestSegments:
    def test_the_next_journal_goes_on(self, folder: Path) -> None:
        for start in range(3):
            journal = Journal.open(folder)
            if start == 0:
                journal.opened("stream", {"n": 1})
            assert [tokens(recovered) for recovered in journal.recovered] == (
                [list(range(start))] if start else []
            )
            for again_from in range(start + 1):
                journal.said("stream", 0, again_from, [again_from])
            journal.commit()
            journal.close()
        assert tokens(found(folder)["stream"]) == [0, 1, 2]
        assert len(segments(folder)) == 3

    def test_full_ones_are_left_and_deleted_when_nobody_needs_them(self, folder: Path) -> None:
        journal = Journal.open(folder, segment_bytes=100)
        for name in ("a", "b", "c"):
            journal.opened(name, {"padding": "x" * 100})
        assert len(segments(folder)) == 3
        journal.gone("b")  # the note of it is in the third or a fourth
        assert found(folder).keys() == {"a", "c"}
        assert segments(folder)[0].name == "00000001.journal"
        journal.gone("a")
        assert found(folder).keys() == {"c"}
        assert segments(folder)[0].name == "00000003.journal"
        journal.gone("c")
        journal.gone("c")
        assert segments(folder) == []
        journal.opened("d", {})
        assert found(folder).keys() == {"d"}
        journal.close()
        assert found(folder).keys() == {"d"}

    def test_one_that_is_gone_stays_gone(self, folder: Path) -> None:
        for name in ("a", "b"):
            journal = Journal.open(folder)
            journal.opened(name, {})
            journal.close()
        journal = Journal.open(folder)
        journal.gone("b")
        journal.close()
        assert found(folder).keys() == {"a"}
        journal = Journal.open(folder)
        assert [recovered.id for recovered in journal.recovered] == ["a"]
        journal.gone("a")
        journal.close()
        assert segments(folder) == []

    def test_a_gap_ends_a_stream_until_it_is_said_again(self, folder: Path) -> None:
        """What follows a loss in an earlier segment means nothing; the other stream is whole."""
        journal = Journal.open(folder, segment_bytes=1)
        journal.opened("a", {})
        journal.opened("b", {})
        for number in range(4):
            journal.said("a", 0, number, [number])
            journal.said("b", 0, number, [number])
            journal.commit()
        journal.close()
        torn = segments(folder)[3]
        torn.write_bytes(torn.read_bytes()[:20])
        assert tokens(found(folder)["a"]) == [0]
        assert tokens(found(folder)["b"]) == [0]
        journal = Journal.open(folder, segment_bytes=1)
        for number in range(6):
            journal.said("a", 0, number, [number])
            journal.commit()
        journal.close()
        assert tokens(found(folder)["a"]) == [0, 1, 2, 3, 4, 5]
        assert tokens(found(folder)["b"]) == [0]


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[records.Record, int, int]]:
    """Some streams' records, mixed."""
    num_records = [0, 0, 0]
    history: list[tuple[records.Record, int, int]] = []
    for stream in draw(st.lists(st.integers(0, 2), max_size=12)):
        index = num_records[stream]
        num_records[stream] += 1
        said = draw(st.lists(st.integers(0, 2**31 - 1), max_size=3))
        records_of_any_kind: list[records.Record] = [
            Said(draw(st.integers(0, 2)), said),
            records.Over(Ended(0, "stop"), 5.0),
            records.Gone(),
        ]
        record = draw(st.sampled_from(records_of_any_kind))
        if index == 0:
            record = records.Opened(f"s{stream}", 3, {"seed": draw(st.integers(0, 9))}, 1.0)
        history.append((record, stream, index))
    return history


def alike(
    read: Iterable[tuple[records.Record, int, int] | records.Entry],
) -> list[tuple[object, int, int]]:
    """Comparable: token ids as tuples."""
    return [
        ((one.choice, tuple(one.token_ids)) if isinstance(one, Said) else one, stream, index)
        for one, stream, index, *_ in read
    ]


class TestBrokenBytes:
    @given(history=histories(), data=st.data())
    @checks(max_examples=150, deadline=None)
    def test_everything_before_the_first_broken_record_is_read(
        self, history: list[tuple[records.Record, int, int]], data: st.DataObject
    ) -> None:
        parts = [records.encode(*entry) for entry in history]
        segment = bytearray(records.MAGIC + b"".join(parts))
        assert alike(records.decode(bytes(segment))) == alike(history)
        whole = bytes(segment)
        position = data.draw(st.integers(0, len(segment) - 1))
        if data.draw(st.booleans()):
            segment[position] ^= data.draw(st.integers(1, 255))
        else:
            del segment[position:]
            segment += data.draw(st.sampled_from([b"", bytes(30)]))
        end, num_whole = len(records.MAGIC), 0
        for part in parts:
            end += len(part)
            num_whole += segment[:end] == whole[:end]
        assert alike(records.decode(bytes(segment))) == alike(history[:num_whole])
        _check_recovery(bytes(segment), history[:num_whole])

    @given(garbage=st.binary(max_size=200))
    @checks(max_examples=50)
    def test_garbage(self, garbage: bytes) -> None:
        assert list(records.decode(garbage)) == []
        assert list(records.decode(records.MAGIC + garbage)) == []

    def test_a_kind_that_nobody_knows(self) -> None:
        sound = records.encode(records.Gone(), 1, 0)
        body = bytes([99]) + sound[9:]
        odd = sound[:4] + records._checksum(body).to_bytes(4, "little") + body
        read = records.decode(records.MAGIC + sound + odd + sound)
        assert alike(read) == [(records.Gone(), 1, 0)]


def _check_recovery(segment: bytes, history: Sequence[tuple[records.Record, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        (folder / "00000001.journal").write_bytes(segment)
        streams = {stream: [r for r, of, _ in history if of == stream] for stream in range(3)}
        expected = {
            f"s{stream}": sum(not isinstance(record, records.Opened) for record in said)
            for stream, said in streams.items()
            if said and not any(isinstance(record, records.Gone) for record in said)
        }
        assert {r.id: len(r.past) for r in recover(folder)} == expected
        Journal.open(folder).close()
        assert {r.id: len(r.past) for r in recover(folder)} == expected


class Checking(Listener):
    """A reader that may hear nothing which is not on disk."""

    def __init__(self, folder: Path, stream_id: str, num_choices: int = 1) -> None:
        super().__init__(num_choices)
        self._folder = folder
        self._id = stream_id

    def receive(self, events: Sequence[Event]) -> None:
        if is_interruption(events):
            return
        super().receive(events)
        past = found(self._folder)[self._id].past
        heard = past_in(self.events)
        assert [_plain(one) for one in past][: len(heard)] == [_plain(one) for one in heard]


def _plain(one: Said | Ended) -> tuple[int, object]:
    return one.choice, tuple(one.token_ids) if isinstance(one, Said) else one.how


def durable(
    engine: ManualEngine, journal: Journal, stream_id: str, request: Request, listener: Listener
) -> None:
    journal.opened(stream_id, {}, request.n)
    journal.attach(stream_id, listener)
    engine.submit(engine.prepare(request), listener)


class TestWithTheEngine:
    def test_nobody_hears_what_is_not_on_disk(self, journal: Journal, folder: Path) -> None:
        engine = ManualEngine()
        engine.record_with(journal.before_publish)
        request = Request(
            prompt="ask", n=3, temperature=1.0, max_tokens=9, logprobs=True, stop=["a"]
        )
        listener = Checking(folder, "stream", 3)
        durable(engine, journal, "stream", request, listener)
        plain = listen(engine, engine.prepare(Request(prompt="other", max_tokens=30)))
        engine.run_until_idle()
        assert len(by_choice(listener.events)) == 3
        assert isinstance(plain.events[-1], Finished)
        assert found(folder).keys() == {"stream"}
        assert found(folder)["stream"].ended_at is not None

    def test_one_write_a_step_for_all(
        self, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = ManualEngine()
        engine.record_with(journal.before_publish)
        for number in range(5):
            request = Request(prompt="ask", n=2, max_tokens=9, grammar=LETTERS)
            durable(engine, journal, f"stream-{number}", request, Listener(2))
        engine.step()
        written = _count_writes(monkeypatch)
        for number in range(1, 8):
            engine.step()
            assert len(written) == number

    def test_no_write_for_those_who_do_not_ask(
        self, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = ManualEngine()
        engine.record_with(journal.before_publish)
        durable(engine, journal, "stream", Request(prompt="ask", max_tokens=2), Listener())
        engine.run_until_idle()
        written = _count_writes(monkeypatch)
        listen(engine, engine.prepare(Request(prompt="ask", max_tokens=9)))
        engine.run_until_idle()
        assert written == []

    def test_several_prompts_of_one_stream(self, journal: Journal, folder: Path) -> None:
        engine = ManualEngine()
        engine.record_with(journal.before_publish)
        request = Request(prompt="ask", n=2, max_tokens=3)
        journal.opened("stream", {}, 4)
        for first in (0, 2):
            listener = Listener(2)
            journal.attach("stream", listener, first)
            engine.submit(engine.prepare(request), listener)
        engine.run_until_idle()
        [recovered] = recover(folder)
        assert {one.choice for one in recovered.past} == {0, 1, 2, 3}
        assert recovered.ended_at is not None
        assert {one.choice for one in recovered.past_of(2, 2)} == {0, 1}

    def test_an_engine_that_goes_is_no_end(self, journal: Journal, folder: Path) -> None:
        engine = ManualEngine()
        engine.record_with(journal.before_publish)
        listener = Listener()
        durable(engine, journal, "stream", Request(prompt="ask", grammar=LETTERS), listener)
        for _ in range(4):
            engine.step()
        engine.close()
        assert is_interruption(listener.events)
        [recovered] = recover(folder)
        assert recovered.ended_at is None
        assert len(tokens(recovered)) == 4

    @given(data=st.data())
    @checks(max_examples=25, deadline=None)
    def test_any_number_of_deaths(self, data: st.DataObject) -> None:
        """The process dies again and again; a reader that was there all the time hears, after its
        last event, what it would have heard."""
        num_tokens = data.draw(st.integers(1, 12))
        request = Request(
            prompt="ask",
            n=data.draw(st.integers(1, 3)),
            seed=data.draw(st.integers(0, 99)),
            temperature=1.0,
            max_tokens=num_tokens,
            logprobs=data.draw(st.booleans()),
            frequency_penalty=0.5,
            stop=["ab", "c"],
            grammar=data.draw(st.sampled_from([None, LETTERS])),
        )
        engine = ManualEngine()
        undisturbed = listen(engine, engine.prepare(request))
        engine.run_until_idle()
        with tempfile.TemporaryDirectory() as where:
            heard = _survive(Path(where), request, lambda: data.draw(st.integers(0, num_tokens)))
        assert by_choice(heard) == by_choice(undisturbed.events)

    def test_a_resumed_stream_is_not_written_again(self, folder: Path, tmp_path: Path) -> None:
        request = Request(prompt="ask", seed=1, max_tokens=20, grammar=LETTERS)
        journal = Journal.open(folder)
        engine = ManualEngine()
        engine.record_with(journal.before_publish)
        durable(engine, journal, "stream", request, Listener())
        for _ in range(10):
            engine.step()
        copy = after_death(folder, tmp_path / "copy")
        size = sum(path.stat().st_size for path in segments(copy))
        journal.close()
        journal, engine = Journal.open(copy), ManualEngine()
        engine.record_with(journal.before_publish)
        listener = Checking(copy, "stream")
        journal.attach("stream", listener)
        past = journal.recovered[0].past
        engine.submit(again(engine, engine.prepare(request), past), listener)
        engine.step()
        engine.step()
        grown = sum(path.stat().st_size for path in segments(copy)) - size
        assert grown == len(records.MAGIC) + 2 * len(records.encode(Said(0, [1]), 1, 1))
        journal.close()


def _survive(where: Path, request: Request, num_steps: Callable[[], int]) -> list[Event]:
    """The events of the last of several processes, each of which found what the last one left."""
    heard: list[Event] = []
    for life in range(4):
        folder = where / str(life)
        if life:
            after_death(where / str(life - 1), folder)
        journal = Journal.open(folder)
        engine = ManualEngine()
        engine.record_with(journal.before_publish)
        prepared = engine.prepare(request)
        if life == 0:
            journal.opened("stream", {}, request.n)
        else:
            prepared = again(engine, prepared, journal.recovered[0].past)
        listener = Checking(folder, "stream", request.n)
        journal.attach("stream", listener)
        engine.submit(prepared, listener)
        if life == 3:
            engine.run_until_idle()
        else:
            for _ in range(num_steps()):
                engine.step()
        said = past_in(heard)
        heard = list(listener.events) or heard
        assert [_plain(one) for one in past_in(heard)][: len(said)] == [_plain(one) for one in said]
        journal.close()
    return heard


def _count_writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    written: list[int] = []
    write = os.write

    def counting(file: int, data: bytes) -> int:
        written.append(len(data))
        return write(file, data)

    monkeypatch.setattr(os, "write", counting)
    return written


_WRITER = """
import sys
from pathlib import Path
from headrace.engine.engine import Engine
from headrace.engine.request import Request
from headrace.streams.journal import Journal
from headrace.testing import FakeModel, FakeTemplate, FakeTokenizer

class Printer:
    loop = None
    def receive_early(self, events):
        return False
    def catch_up(self):
        pass
    def receive(self, events):
        for event in events:
            for token in getattr(event, "token_ids", ()):
                print(token, flush=True)

journal = Journal.open(Path(sys.argv[1]))
engine = Engine(FakeModel(), FakeTokenizer(), FakeTemplate())
engine.record_with(journal.before_publish)
reader = Printer()
journal.opened("stream", {})
journal.attach("stream", reader)
request = Request(prompt="ask", seed=5, temperature=1.0, ignore_eos=True, max_tokens=200)
engine.submit(engine.prepare(request), reader)
sys.stdin.read()
"""


@pytest.mark.parametrize("num_heard", [1, 37])
def test_a_process_that_is_killed_has_kept_all_that_was_heard(folder: Path, num_heard: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        heard = [int(process.stdout.readline()) for _ in range(num_heard)]
        process.kill()
        heard += [int(line) for line in process.stdout if line.endswith(b"\n")]
    journal = Journal.open(folder)  # the lock died with its process
    [recovered] = journal.recovered
    kept = tokens(recovered)
    assert kept[: len(heard)] == heard
    engine = ManualEngine()
    request = Request(prompt="ask", seed=5, temperature=1.0, ignore_eos=True, max_tokens=200)
    undisturbed = listen(engine, engine.prepare(request))
    resumed = listen(engine, again(engine, engine.prepare(request), recovered.past))
    engine.run_until_idle()
    assert by_choice(resumed.events) == by_choice(undisturbed.events)
    journal.close()


class TestFullDisk:
    @pytest.fixture
    def fill(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
        """A disk that takes some bytes of each write and then no more, while it is full."""
        write = os.write
        full = False

        def writing(file: int, data: bytes) -> int:
            if not full:
                return write(file, data)
            if len(data) <= 5:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(file, data[:5])

        def fill(is_full: bool) -> None:
            nonlocal full
            full = is_full

        monkeypatch.setattr(os, "write", writing)
        return fill

    def test_durable_streams_fail_and_others_go_on(
        self, journal: Journal, folder: Path, fill: Callable[[bool], None]
    ) -> None:
        engine = ManualEngine()
        engine.record_with(journal.before_publish)
        kept = Listener(2)
        request = Request(prompt="ask", n=2, max_tokens=9, grammar=LETTERS)
        durable(engine, journal, "kept", request, kept)
        plain = listen(engine, engine.prepare(Request(prompt="other", max_tokens=9)))
        for _ in range(3):
            engine.step()
        fill(True)
        engine.step()
        for choice in by_choice(kept.events).values():
            assert isinstance(choice[-1], Failed)
            assert isinstance(choice[-1].error, JournalFailed)
            assert "No space left on device" in choice[-1].error.message
            assert sum(isinstance(event, (Finished, Failed)) for event in choice) == 1
            starts = [event.start for event in choice if isinstance(event, Delta)]
            assert starts == [0, 1, 2, 3]
        with pytest.raises(JournalFailed, match="No space"):
            journal.opened("another", {})
        engine.run_until_idle()
        assert isinstance(plain.events[-1], Finished)
        fill(False)
        later = Checking(folder, "later")
        durable(engine, journal, "later", Request(prompt="ask", max_tokens=3), later)
        engine.run_until_idle()
        assert isinstance(later.events[-1], Finished)
        assert found(folder).keys() == {"kept", "later"}
        assert len(tokens(found(folder)["kept"])) == 3
        journal.gone("kept")
        assert found(folder).keys() == {"later"}

    def test_a_stream_that_ends_in_that_step_has_ended(
        self, journal: Journal, fill: Callable[[bool], None]
    ) -> None:
        engine = ManualEngine()
        engine.record_with(journal.before_publish)
        listener = Listener()
        durable(engine, journal, "stream", Request(prompt="ask", max_tokens=2), listener)
        engine.step()
        fill(True)
        engine.step()
        assert isinstance(listener.events[-1], Finished)
        assert sum(isinstance(event, (Finished, Failed)) for event in listener.events) == 1

    def test_what_cannot_be_taken_back_is_left(
        self,
        journal: Journal,
        folder: Path,
        fill: Callable[[bool], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def refuse(file: int, size: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        journal.opened("stream", {})
        monkeypatch.setattr(os, "ftruncate", refuse)
        fill(True)
        journal.said("stream", 0, 0, [1])
        with pytest.raises(JournalFailed):
            journal.commit()
        fill(False)
        journal.opened("later", {})
        assert found(folder).keys() == {"stream", "later"}
        assert len(segments(folder)) == 2

    def test_a_write_that_fails_breaks_all_that_it_held(
        self, journal: Journal, folder: Path, fill: Callable[[bool], None]
    ) -> None:
        """What one thread has noted may be written by another."""
        journal.opened("a", {})
        journal.opened("b", {})
        journal.said("a", 0, 0, [1])
        journal.said("b", 0, 0, [1])
        fill(True)
        with pytest.raises(JournalFailed):
            journal.commit()
        fill(False)
        journal.said("a", 0, 1, [2])
        journal.said("b", 0, 1, [2])
        journal.commit()
        assert [tokens(recovered) for recovered in recover(folder)] == [[], []]

    def test_a_fault_of_the_journal_ends_no_engine(self, journal: Journal) -> None:
        engine = ManualEngine()
        engine.record_with(journal.before_publish)
        listener = Listener()
        durable(engine, journal, "stream", Request(prompt="ask", grammar=LETTERS), listener)
        engine.step()
        journal._streams["stream"].num_said[0] = -1
        engine.step()
        end = listener.events[-1]
        assert isinstance(end, Failed) and isinstance(end.error, JournalFailed)


class TestSynchronizing:
    def test_once_a_step_for_all(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        synchronized: list[int] = []
        monkeypatch.setattr(segments_module, "synchronize", synchronized.append)
        journal = Journal.open(folder, durability="fsync")
        engine = ManualEngine()
        engine.record_with(journal.before_publish)
        heard: list[Reader] = []
        for number in range(3):
            listener = Checking(folder, f"stream-{number}")
            request = Request(prompt="ask", max_tokens=9, grammar=LETTERS)
            durable(engine, journal, f"stream-{number}", request, listener)
            heard.append(listener)
        for number in range(1, 5):
            engine.step()
            assert len(synchronized) == number
        journal.close()

    def test_a_full_segment_is_synchronized_before_the_next(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synchronized: list[int] = []
        monkeypatch.setattr(segments_module, "synchronize", synchronized.append)
        journal = Journal.open(folder, durability="fsync", segment_bytes=1)
        journal.opened("a", {})
        assert synchronized == []
        journal.opened("b", {})
        assert len(synchronized) == 1
        journal.close()

    def test_one_that_fails_fails_the_streams(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(file: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(segments_module, "synchronize", refuse)
        journal = Journal.open(folder, durability="fsync")
        engine = ManualEngine()
        engine.record_with(journal.before_publish)
        listener = Listener()
        durable(engine, journal, "stream", Request(prompt="ask", grammar=LETTERS), listener)
        engine.step()
        end = listener.events[-1]
        assert isinstance(end, Failed) and "Input/output error" in end.error.message
        journal.close()
