"""Kept streams on disk: what a server must know to go on with them after its death.

In: questions that are about to be asked. Out: a place on disk for each; after a restart, what was
there. Thread: the event loop; `open`, `record` and what takes streams up again also others.
Next: `streams/journal.py`; `reviving.py` after a restart.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from headrace.engine.engine import Engine
from headrace.engine.mailbox import Reader
from headrace.errors import HeadraceError, JournalFailed, ModelLoading, StreamGone
from headrace.events import Failed
from headrace.streams.attempts import Attempts
from headrace.streams.identity import identity_of
from headrace.streams.journal import Durability, Journal
from headrace.streams.pump import Pump, Record
from headrace.streams.recovery import Recovered
from headrace.wire.ask import Stamp

FOLDER = "streams"
"""In the data folder."""
SPILLED = "spilled"
"""In that folder: what does not fit into memory."""
MAX_ATTEMPTS = 3
"""How often a stream is taken up again that gets no further."""
WAIT_S = 30.0
"""How long who comes back waits for the models to be loaded, before being told to come again."""
_MAX_LOST = 20_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a stream is beside what it says; written before it is asked for."""

    endpoint: str
    body: str
    """The request's, as it came."""
    strict: bool
    is_streamed: bool
    tenant: str
    client_request_id: str | None = None
    """The client's own name for its request."""
    key: str | None
    """Its `Idempotency-Key`, with the `digest` of its question in hex."""
    digest: str
    served_by: str
    """The id of the model."""
    identity: Mapping[str, Any]
    """See `streams/identity.py`."""
    stamp: Stamp
    seed: int
    prompt: Sequence[int]
    """Token ids. A prompt is not rendered again: it may tell the date."""
    begun: str
    """What is said first and not told, in hex; see `engine/healing.py`."""
    max_num_tokens: int
    turn: Mapping[str, Any] | None = None
    """Where the conversation is kept: see `OpenTurn.mark`."""

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Self:
        """From JSON. Raises `StreamGone` for one of another form."""
        try:
            return cls(**{**kept, "stamp": Stamp(**kept["stamp"])})
        except (TypeError, KeyError):
            raise StreamGone(
                "the stream was begun by another version of the server and cannot go on; ask anew"
            ) from None


class Durable:
    """The journal of one server, if it has one."""

    def __init__(self) -> None:
        self._journal: Journal | None = None
        self._attempts: Attempts | None = None
        self._waiting: dict[str, Recovered] = {}
        """Streams that were here, until they go on or are lost."""
        self._lost: dict[str, tuple[str, HeadraceError]] = {}
        """Whose those were that cannot go on, and why."""
        self._are_back = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return self._journal is not None

    @property
    def recovered(self) -> Sequence[Recovered]:
        """What a process before this one left, eldest first."""
        return list(self._waiting.values())

    def open(self, folder: Path, durability: str) -> None:
        """Keep streams in `folder` from now on, as the setting says. Where that cannot be, they are
        kept in memory alone, which is said once."""
        if durability == "off":
            return
        try:
            how: Durability = "fsync" if durability == "fsync" else "none"
            self._journal = Journal.open(folder, durability=how)
        except JournalFailed as error:
            _log.warning("streams will not survive this server: %s", error.message)
            return
        self._attempts = Attempts(folder / "attempts.json")
        self._waiting = {each.id: each for each in self._journal.recovered}
        self._journal.recovered = ()

    def record(self, engine: Engine) -> None:
        """Keep what `engine` says; before its first request, and not on the event loop: a new
        model's file is read whole."""
        if self._journal is not None:
            engine.record_with(self._journal.before_publish)
            identity_of(engine, has_grammar=False)

    def begin(self, stream_id: str, header: Header, num_choices: int) -> Record | None:
        """A new stream's place on disk; None where there is none. Raises `JournalFailed`."""
        if self._journal is None:
            return None
        self._journal.opened(stream_id, asdict(header), num_choices)
        return _Record(self._journal, stream_id)

    def again(self, stream_id: str) -> Record | None:
        """The place of a stream that goes on."""
        return None if self._journal is None else _RecordBefore(self._journal, stream_id)

    def gone(self, stream_id: str) -> None:
        """Nobody may read it any more. Any number of times, also where it was never here."""
        if self._journal is not None:
            self._journal.gone(stream_id)

    def watch(self, stream_id: str, pump: Pump) -> None:
        """A stream that could not be kept to its end is not taken up again: its readers have heard
        that it failed."""
        if self._journal is None:
            return

        def look() -> None:
            if any(isinstance(error, JournalFailed) for error in pump.tally.errors):
                self.gone(stream_id)

        pump.when_over(look)

    def attempts(self, streams: Sequence[Recovered]) -> Mapping[str, int]:
        """Which attempt in a row without a new token each is at."""
        assert self._attempts is not None
        return self._attempts.count({each.id: _num_tokens(each) for each in streams})

    def end(self, stream_id: str, choices: Sequence[int], error: HeadraceError) -> None:
        """These choices end here. Raises `JournalFailed`."""
        assert self._journal is not None
        for choice in choices:
            self._journal.ended(stream_id, choice, error)
        self._journal.commit()

    def lose(self, stream_id: str, tenant: str, error: HeadraceError) -> None:
        """The stream cannot go on; its owner hears `error`."""
        self._waiting.pop(stream_id, None)
        self._lost[stream_id] = tenant, error
        while len(self._lost) > _MAX_LOST:
            del self._lost[next(iter(self._lost))]
        self.gone(stream_id)

    def are_back(self) -> None:
        """On the event loop: whoever can go on does. Those who wait for them look again."""
        self._waiting.clear()
        self._are_back.set()

    async def wait_for(self, stream_id: str, tenant: str) -> None:
        """Returns when the stream is back, or where it need not be waited for. Raises `StreamGone`
        where it cannot go on, and `ModelLoading`."""
        if stream_id in self._waiting:
            await self._wait()
        whose, error = self._lost.get(stream_id, ("", None))
        if error is not None and whose == tenant:
            raise error

    async def wait_for_key(self, tenant: str, key: str) -> None:
        """Returns when a stream under that key is back, if there was one. Raises `ModelLoading`."""
        asked = (tenant, key)
        headers = (each.header for each in self._waiting.values())
        if any((header.get("tenant"), header.get("key")) == asked for header in headers):
            await self._wait()

    def close(self) -> None:
        """Let go of the folder. What is in it is for the next process."""
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()

    async def _wait(self) -> None:
        try:
            await asyncio.wait_for(self._are_back.wait(), WAIT_S)
        except TimeoutError:
            raise ModelLoading(
                "the stream goes on when its model is loaded; come back in a moment",
                retry_after_s=1.0,
            ) from None


class _Record:
    """One stream's place on disk."""

    def __init__(self, journal: Journal, stream_id: str) -> None:
        self._journal = journal
        self._id = stream_id

    def attach(self, reader: Reader) -> None:
        self._journal.attach(self._id, reader)

    def ended(self, failures: Sequence[Failed]) -> None:
        for failed in failures:
            self._journal.ended(self._id, failed.choice, failed.error)
        with suppress(JournalFailed):  # the journal has logged it, and the end is an end
            self._journal.commit()

    def refused(self) -> None:
        self._journal.gone(self._id)


class _RecordBefore(_Record):
    """Of a stream that was here before: an engine that does not take it up leaves it here."""

    def refused(self) -> None:
        pass


def age_s(at: float) -> float:
    """Seconds since then, in Unix seconds; 0 where clocks were set back."""
    return max(0.0, time.time() - at)


def _num_tokens(stream: Recovered) -> int:
    return sum(len(getattr(one, "token_ids", ())) for one in stream.past)
