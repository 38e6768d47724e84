"""One stream that outlives its readers: it goes on without them for a while, and can be read again.

In: a pump and whose it is. Out: numbered frames, to whoever comes back. Thread: the event loop.
Next: `server/streams.py`.

Leaving and stopping are different things here: a kept stream goes on without readers for a while,
and is stopped by who says so, or fails when nobody has come back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from headrace.errors import StreamAbandoned
from headrace.events import Delta, Event, ToolCall
from headrace.streams.frames import Frames
from headrace.streams.pump import Pump
from headrace.streams.rounds import Rounds
from headrace.streams.shelf import ShelfFile
from headrace.wire.numbered import Encoder


class Told(Protocol):
    """How a stream's events are written."""

    def encoder(self) -> Encoder: ...


Form = TypeVar("Form", bound=Told)


class Kept(Generic[Form]):
    """One stream, and those who read it."""

    def __init__(
        self,
        stream_id: str,
        tenant: str,
        pump: Pump,
        form: Form,
        *,
        served_by: str,
        orphan_s: float,
        age_s: float = 0.0,
    ) -> None:
        """`form` is how its events are written; `served_by` the model that says them. `age_s`: how
        long ago it ended, where that was in another process."""
        self.id = stream_id
        self.tenant = tenant
        self.pump = pump
        self.form = form
        self.served_by = served_by
        self.age_s = age_s
        self.frames = Frames(form.encoder(), pump.log)
        self._rounds = Rounds(pump.log)
        self._orphan_s = orphan_s
        self._num_readers = 0
        self._orphaned: asyncio.TimerHandle | None = None
        self._num_measured = 0
        self._num_event_bytes = 0
        self._file: ShelfFile | None = None
        self._is_gone = False
        self.when_left: Callable[[], None] = lambda: None
        """A reader has left, and may have made it larger."""
        pump.when_over(self._end)
        self._watch()

    @property
    def is_over(self) -> bool:
        """Nothing will be appended any more."""
        return self.pump.log.is_over

    @property
    def num_readers(self) -> int:
        return self._num_readers

    @property
    def num_disk_bytes(self) -> int:
        """What it takes on disk beside the journal."""
        return 0 if self._file is None else self._file.num_bytes

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Somebody reads; while that is so, the stream goes on."""
        self._num_readers += 1
        self._stop_watching()
        try:
            yield
        finally:
            self._num_readers -= 1
            self._watch()
            self._delete_file()
            self.when_left()

    def arrival(self) -> asyncio.Future[None]:
        """Done when there is more to read; for a crowd of readers a little later. Whoever waits no
        more may cancel it. Only while the stream is not over."""
        return self._rounds.wait()

    def stop(self) -> None:
        """Somebody said so: each choice says its end within a step."""
        self.pump.cancel()

    def measure(self) -> int:
        """Bytes that it takes in memory, about."""
        log = self.pump.log
        events = log.since(self._num_measured)
        self._num_measured += len(events)
        self._num_event_bytes += sum(map(_num_bytes, events))
        return self._num_event_bytes + self.frames.num_bytes

    def spill(self, path: Path) -> None:
        """Put all of it that is in memory on disk, at `path` where nothing of it is there yet.
        Readers read on. Raises `OSError`, and then some of it is still in memory."""
        if self._file is None:
            self._file = ShelfFile(path)
        try:
            self.frames.spill(self._file)
            self.pump.log.spill(self._file)
        finally:
            self._weigh()

    def pack_some(self) -> bool:
        """Keep some of it in few bytes: it is over, and mostly nobody comes back. Whether there is
        more to pack."""
        has_more = self.frames.pack_some() or self.pump.log.pack_some()
        if not has_more:
            self._weigh()
        return has_more

    def _weigh(self) -> None:
        log = self.pump.log
        self._num_measured = len(log)
        self._num_event_bytes = log.num_packed_bytes + sum(map(_num_bytes, log.recent))

    def forget(self) -> None:
        """Nobody will find it any more. Who reads it now may read to its end."""
        self._is_gone = True
        self._delete_file()

    def _delete_file(self) -> None:
        if self._is_gone and self._file is not None and self._num_readers == 0:
            self._file.delete()

    def _watch(self) -> None:
        if self._num_readers == 0 and not self.is_over:
            loop = asyncio.get_running_loop()
            self._orphaned = loop.call_later(self._orphan_s, self._abandon)

    def _stop_watching(self) -> None:
        if self._orphaned is not None:
            self._orphaned.cancel()
            self._orphaned = None

    def _abandon(self) -> None:
        # An end by `cancelled` would look like a whole answer to who comes after all.
        self.pump.fail(
            StreamAbandoned(
                f"nobody read the stream for {self._orphan_s:g} s, so it was stopped; ask anew"
            )
        )

    def _end(self) -> None:
        self._stop_watching()
        self._rounds.wake()


def _num_bytes(event: Event) -> int:
    """What an event takes in memory, about."""
    match event:
        case Delta():
            num_tops = sum(len(said.top) for said in event.logprobs)
            num_characters = len(event.text) + len(event.reasoning)
            logprobs = 150 * len(event.logprobs) + 120 * num_tops
            return 250 + 30 * len(event.token_ids) + 2 * num_characters + logprobs
        case ToolCall():
            return 500 + 2 * len(event.arguments)
        case _:
            return 500
