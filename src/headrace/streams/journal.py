"""Streams that survive the death of the process: what they said is on disk before anybody hears it.

In: a step's events. Out: segments of records, and after a crash the streams that were in them.
Thread: any; the engine's writes, once a step for all streams together. Next: `records.py`.

A journal is a folder of segments, appended to and never changed. What follows from tokens is not
kept: a new engine says them again (`engine/past.py`). So what must not be said twice here is left
out by its number, when it is.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias

import filelock

from headrace.engine.mailbox import Reader
from headrace.engine.past import Ended, Said
from headrace.errors import EngineClosed, HeadraceError, JournalFailed
from headrace.events import Delta, Event, Failed, Finished, FinishReason, Started, TokenLogprob
from headrace.streams import records, segments
from headrace.streams.records import Gone, Opened, Over
from headrace.streams.recovery import Recovered, Traced, read
from headrace.streams.segments import Segments, failing, failure, numbers_in

_log = logging.getLogger(__name__)

Durability: TypeAlias = Literal["none", "fsync"]
"""`none`: what was said survives the process. `fsync`: the machine, too."""

_NOBODY: Final[Mapping[Reader, HeadraceError]] = {}
_SEGMENT_BYTES: Final = 16 << 20


def is_interruption(events: Iterable[Event]) -> bool:
    """Whether a batch of events says that the engine is going: nothing of it is on record, and some
    of it would have been said otherwise. Whoever reads a stream that is kept drops it whole, and
    hears the rest from the next engine."""
    return any(isinstance(e, Failed) and isinstance(e.error, EngineClosed) for e in events)


class Journal:
    """An open journal, the only one in its folder. Usable from any thread.

    Give its `before_publish` to the engine (`Engine.record_with`); `opened` and `attach` a stream
    before it is submitted.
    """

    def __init__(
        self,
        folder: Path,
        lock: filelock.BaseFileLock,
        *,
        durability: Durability,
        segment_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        """Use `Journal.open`."""
        self._folder = folder
        self._folder_lock = lock
        self._clock = clock
        self._lock = threading.Lock()
        self._buffer = bytearray()
        self._buffered: list[Traced] = []
        """Whose records are in the buffer."""
        self._attached: dict[Reader, tuple[str, int]] = {}
        """Stream and first choice of each reader whose events are kept."""
        numbers = numbers_in(folder)
        found = read(folder, numbers)
        self._segments = Segments(
            folder, numbers, segment_bytes=segment_bytes, is_synchronized=durability == "fsync"
        )
        self.recovered: Sequence[Recovered] = [recovered for recovered, _ in found]
        """The streams that were here; each is to be continued or declared gone."""
        self._streams = {recovered.id: stream for recovered, stream in found}
        self._drop_segments()

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        durability: Durability = "none",
        segment_bytes: int = _SEGMENT_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Open the journal in `folder`, made if need be, for this user's eyes only. `clock` tells
        Unix seconds. Raises `JournalFailed`, also where another process has it open."""
        with failing(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            lock = filelock.FileLock(folder / "lock", timeout=0, mode=0o600, thread_local=False)
            try:
                lock.acquire()
            except filelock.Timeout as error:
                raise JournalFailed(
                    f"another process keeps its streams in {folder}; stop it, or give this one "
                    "another folder"
                ) from error
            try:
                return cls(
                    folder, lock, durability=durability, segment_bytes=segment_bytes, clock=clock
                )
            except BaseException:
                lock.release()
                raise

    def opened(self, stream_id: str, header: Mapping[str, Any], num_choices: int = 1) -> None:
        """A stream begins; `header` is a JSON object of finite numbers. Written at once. Raises
        `JournalFailed`, and then keeps nothing."""
        with self._lock:
            if stream_id in self._streams:
                raise ValueError(f"the stream {stream_id} is here already")
            stream = Traced(int.from_bytes(os.urandom(8)), num_choices)
            self._append(stream, Opened(stream_id, num_choices, header, self._clock()))
            _close(self._write())
            if stream.failure is not None:
                raise stream.failure
            stream.first_segment = self._segments.last
            self._streams[stream_id] = stream

    def attach(self, stream_id: str, reader: Reader, first_choice: int = 0) -> None:
        """What `reader` is to hear is kept for that stream; its choice 0 is the stream's
        `first_choice`. Before it is submitted."""
        with self._lock:
            self._streams[stream_id].readers.append(reader)
            self._attached[reader] = stream_id, first_choice

    def before_publish(
        self, heard: Mapping[Reader, Sequence[Event]]
    ) -> Mapping[Reader, HeadraceError]:
        """Engine thread, before anybody has a step's events: keep those of attached readers, with
        one write for all. Returns the readers whose events could not be kept, and why."""
        if not self._attached:
            return _NOBODY
        with self._lock:
            kept = {
                reader: self._keep(*self._attached[reader], events)
                for reader, events in heard.items()
                if reader in self._attached
            }
            file = self._write() if kept else None
        if file is not None:
            self._sync(file, kept.values())
        failures = {
            reader: stream.failure
            for reader, stream in kept.items()
            if stream.failure is not None and not stream.is_over
        }
        for reader, stream in kept.items():
            if stream.is_over or stream.failure is not None:
                self._attached.pop(reader, None)
        return failures

    def said(
        self,
        stream_id: str,
        choice: int,
        start: int,
        token_ids: Sequence[int],
        logprobs: Sequence[TokenLogprob] = (),
    ) -> None:
        """A choice said these tokens, of which the first is its number `start`; without any it has
        only started. Kept with the next `commit`. What is on record already is left out."""
        with self._lock:
            self._say(self._streams[stream_id], choice, start, token_ids, logprobs)

    def ended(self, stream_id: str, choice: int, how: FinishReason | HeadraceError) -> None:
        """A choice ended, once. Kept with the next `commit`."""
        with self._lock:
            self._end(self._streams[stream_id], choice, how)

    def commit(self) -> None:
        """Write what was noted since the last time, if anything: one write for all. Returns when it
        is as safe as `durability` says. Raises `JournalFailed`; those streams are then not kept."""
        with self._lock:
            noted = list(self._buffered)
            file = self._write()
        if file is not None:
            self._sync(file, noted)
        for stream in noted:
            if stream.failure is not None:
                raise stream.failure

    def gone(self, stream_id: str) -> None:
        """Nobody may read the stream any more; its disk space is free when those before it are
        gone as well. Any number of times."""
        with self._lock:
            stream = self._streams.pop(stream_id, None)
            if stream is None:
                return
            for reader in stream.readers:
                self._attached.pop(reader, None)
            stream.failure = None  # whatever was lost of it does not matter any more
            self._append(stream, Gone())
            _close(self._write())
            if not self._streams:
                self._segments.leave()
            self._drop_segments()

    def close(self) -> None:
        """Write what is left and let go of the folder. Streams that are not gone stay in it."""
        with self._lock:
            _close(self._write())
            self._attached.clear()
            self._segments.leave()
            self._drop_segments()
        self._folder_lock.release()

    def _keep(self, stream_id: str, first_choice: int, events: Sequence[Event]) -> Traced:
        """Note events of a stream, the choices of which are counted from `first_choice`."""
        stream = self._streams[stream_id]
        try:
            self._note(stream, first_choice, events)
        except Exception as error:
            # One stream's fault must not end the engine for all.
            _log.exception("a stream cannot be kept")
            stream.failure = JournalFailed(f"this stream cannot be kept: internal error: {error!r}")
        return stream

    def _note(self, stream: Traced, first_choice: int, events: Sequence[Event]) -> None:
        for event in events:
            choice = event.choice + first_choice
            match event:
                case Delta():
                    self._say(stream, choice, event.start, event.token_ids, event.logprobs)
                case Started():
                    self._say(stream, choice, 0, ())
                case Finished():
                    self._end(stream, choice, event.reason)
                case Failed() if not isinstance(event.error, EngineClosed):
                    # An engine that goes is no end: the stream goes on in the next one.
                    self._end(stream, choice, event.error)

    def _say(
        self,
        stream: Traced,
        choice: int,
        start: int,
        token_ids: Sequence[int],
        logprobs: Sequence[TokenLogprob] = (),
    ) -> None:
        num_known = stream.num_said.get(choice)
        if choice in stream.ended or (
            num_known is not None and start + len(token_ids) <= num_known
        ):
            return  # said again
        num_again = (num_known or 0) - start
        if num_again < 0:
            raise ValueError(f"token {start} of a choice after {num_known or 0} tokens")
        self._append(stream, Said(choice, token_ids[num_again:], logprobs[num_again:]))
        stream.num_said[choice] = start + len(token_ids)

    def _end(self, stream: Traced, choice: int, how: FinishReason | HeadraceError) -> None:
        if choice not in stream.ended:
            stream.ended.add(choice)
            self._append(stream, Over(Ended(choice, how), self._clock()))

    def _append(self, stream: Traced, record: records.Record) -> None:
        if stream.failure is None:
            self._buffer += records.encode(record, stream.number, stream.num_records)
            self._buffered.append(stream)
            stream.num_records += 1

    def _write(self) -> int | None:
        """Write the buffer, all or nothing: where it cannot be, its streams fail. Returns the file
        to be synchronized and closed, where that is wanted."""
        if not self._buffer:
            return None
        data, streams = bytes(self._buffer), self._buffered
        self._buffer.clear()
        self._buffered = []
        try:
            return self._segments.append(data)
        except OSError as error:
            self._fail(streams, error)
            return None

    def _sync(self, file: int, streams: Iterable[Traced]) -> None:
        """Without the lock: meanwhile others may write, and share the next synchronization."""
        try:
            segments.synchronize(file)
        except OSError as error:
            self._fail(streams, error)
        finally:
            os.close(file)

    def _fail(self, streams: Iterable[Traced], error: OSError) -> None:
        _log.warning("streams cannot be kept in %s: %s", self._folder, error)
        for stream in streams:
            stream.failure = failure(self._folder, error)

    def _drop_segments(self) -> None:
        """Delete the eldest segments, as far as no stream that is not gone has begun in them.
        A segment also says which streams of earlier ones are gone, so it never goes before them."""
        first_segments = [stream.first_segment for stream in self._streams.values()]
        self._segments.drop(min(first_segments, default=None))


def _close(file: int | None) -> None:
    if file is not None:
        os.close(file)
