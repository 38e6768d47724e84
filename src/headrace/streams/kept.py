"""Streams that outlive their readers: who may read them, how long they go on, when they are gone.

In: a pump and whose it is. Out: the same, to whoever comes back. Thread: the event loop.
Next: `server/streams.py`.

Leaving and stopping are different things here: a kept stream goes on without readers for a while,
and is stopped by who says so, or fails when nobody has come back. All of them together take only so
much memory: those that have ended make room, first the oldest of the tenant who has most; where all
of them run, the largest fails. Its readers are told; nothing is ever cut silently.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from headrace.errors import StreamAbandoned, StreamGone, StreamNotFound, StreamTooLarge
from headrace.events import Delta, Event, ToolCall
from headrace.streams.pump import Pump
from headrace.streams.rounds import Rounds
from headrace.wire.numbered import Encoder, Frames

_MAX_REMEMBERED = 20_000
"""Ids of streams that are gone, so that their readers learn that rather than doubt the id."""
_MEASURE_S = 1.0
"""How often the memory of running streams is added up."""
_SHARE = 8
"""One stream may take this part of all memory: an eighth."""


class Told(Protocol):
    """How a stream's events are written."""

    def encoder(self) -> Encoder: ...


Form = TypeVar("Form", bound=Told)


@dataclass(frozen=True, slots=True)
class KeptConfig:
    """Seconds, how many, and how large."""

    ttl_s: float = 600.0
    """How long a stream is kept after its end."""
    orphan_s: float = 60.0
    """How long it goes on while nobody reads it."""
    max_streams: int = 10_000
    max_bytes: int = 256_000_000
    """Of all streams together, about."""


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
        pump.when_over(self._end)
        self._watch()

    @property
    def is_over(self) -> bool:
        """Nothing will be appended any more."""
        return self.pump.log.is_over

    @property
    def num_readers(self) -> int:
        return self._num_readers

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

    def arrival(self) -> asyncio.Future[None]:
        """Done when there is more to read; for a crowd of readers a little later. Whoever waits no
        more may cancel it. Only while the stream is not over."""
        return self._rounds.wait()

    def stop(self) -> None:
        """Somebody said so: each choice says its end within a step."""
        self.pump.cancel()

    def measure(self) -> int:
        """Bytes that it takes in memory, about."""
        events = self.pump.log.since(self._num_measured)
        self._num_measured += len(events)
        self._num_event_bytes += sum(map(_num_bytes, events))
        return self._num_event_bytes + self.frames.num_bytes

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


class _Share(dict[str, int]):
    """One tenant's streams that have ended, and their bytes: oldest first."""

    def num_bytes(self) -> int:
        return sum(self.values())


class KeptStreams(Generic[Form]):
    """All streams that are kept, by id."""

    def __init__(self, config: KeptConfig) -> None:
        self._config = config
        self._live: dict[str, Kept[Form]] = {}
        self._ended: OrderedDict[str, tuple[float, Kept[Form]]] = OrderedDict()
        """With the moments when they will go: oldest first."""
        self._shares: dict[str, _Share] = {}
        """Of each tenant who has some that ended."""
        self._num_ended_bytes = 0
        self._gone: OrderedDict[str, str] = OrderedDict()
        """Whose they were."""
        self._listeners: list[Callable[[str], None]] = []
        self._expiring: asyncio.TimerHandle | None = None
        self._measuring: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._live) + len(self._ended)

    @property
    def num_live(self) -> int:
        """Those that go on."""
        return len(self._live)

    @property
    def num_bytes(self) -> int:
        """What all of them take in memory, about."""
        return self._num_ended_bytes + sum(kept.measure() for kept in self._live.values())

    def keep(
        self,
        stream_id: str,
        tenant: str,
        pump: Pump,
        form: Form,
        *,
        served_by: str,
        age_s: float = 0.0,
    ) -> Kept[Form]:
        """Keep a stream until some time after its end; `age_s` of that time have passed."""
        kept = Kept(
            stream_id,
            tenant,
            pump,
            form,
            served_by=served_by,
            orphan_s=self._config.orphan_s,
            age_s=age_s,
        )
        self._live[stream_id] = kept
        pump.when_over(lambda: self._end(kept))
        while len(self) > self._config.max_streams and self._drop_one(len):
            pass
        if self._live and self._measuring is None:
            self._measure_later()
        return kept

    def find(self, stream_id: str, tenant: str) -> Kept[Form]:
        """Raises `StreamNotFound`, also for somebody else's, and `StreamGone`."""
        ended = self._ended.get(stream_id)
        kept = ended[1] if ended else self._live.get(stream_id)
        if kept is not None and kept.tenant == tenant:
            if ended:
                self._weigh(kept)  # who read it before may have made it larger
            return kept
        if self._gone.get(stream_id) == tenant:
            raise StreamGone(f"the stream `{stream_id}` is not kept any more; ask anew")
        raise StreamNotFound(f"there is no stream `{stream_id[:100]}`; it may be too old")

    def when_gone(self, listener: Callable[[str], None]) -> None:
        """`listener` hears the id of every stream that is let go."""
        self._listeners.append(listener)

    def close(self) -> None:
        """Stop and let all go, and leave no timers."""
        for kept in list(self._live.values()):
            kept.pump.fail(StreamGone("the server has stopped"))
        for stream_id in list(self._ended):
            self._drop(stream_id)
        for timer in (self._expiring, self._measuring):
            if timer is not None:
                timer.cancel()
        self._expiring = self._measuring = None

    def _end(self, kept: Kept[Form]) -> None:
        self._live.pop(kept.id, None)
        due = asyncio.get_running_loop().time() + self._config.ttl_s - kept.age_s
        self._ended[kept.id] = due, kept
        self._shares.setdefault(kept.tenant, _Share())[kept.id] = 0
        self._weigh(kept)
        self._set_timer()
        while self._num_ended_bytes > self._config.max_bytes and self._drop_one(_Share.num_bytes):
            pass

    def _weigh(self, kept: Kept[Form]) -> None:
        """Note how large a stream is that has ended."""
        share, size = self._shares[kept.tenant], kept.measure()
        self._num_ended_bytes += size - share[kept.id]
        share[kept.id] = size

    def _set_timer(self) -> None:
        """For whoever goes first."""
        if self._expiring is None and self._ended:
            due, _ = next(iter(self._ended.values()))
            self._expiring = asyncio.get_running_loop().call_at(due, self._expire)

    def _expire(self) -> None:
        self._expiring = None
        now = asyncio.get_running_loop().time()
        while self._ended:
            stream_id, (due, _) = next(iter(self._ended.items()))
            if due > now:
                break
            self._drop(stream_id)
        self._set_timer()

    def _measure_later(self) -> None:
        self._measuring = asyncio.get_running_loop().call_later(_MEASURE_S, self._measure)

    def _measure(self) -> None:
        """Hold the bounds of memory: of each stream, and of all."""
        self._measuring = None
        most = self._config.max_bytes
        for kept in list(self._live.values()):
            if kept.measure() > most // _SHARE:
                self._fail_as_too_large(kept)
        while self.num_bytes > most and (self._ended or self._live):
            if not self._ended:
                self._fail_as_too_large(max(self._live.values(), key=lambda kept: kept.measure()))
            self._drop_one(_Share.num_bytes)
        if self._live:
            self._measure_later()

    def _fail_as_too_large(self, kept: Kept[Form]) -> None:
        kept.pump.fail(
            StreamTooLarge(
                "the stream became larger than the memory for streams allows; ask for fewer tokens "
                "or choices, or give the server more with --stream-memory"
            )
        )

    def _drop_one(self, weight: Callable[[_Share], int]) -> bool:
        """Let the oldest go that has ended, of the tenant who has most of what is scarce."""
        if not self._ended:
            return False
        greediest = max(self._shares, key=lambda tenant: weight(self._shares[tenant]))
        self._drop(next(iter(self._shares[greediest])))
        return True

    def _drop(self, stream_id: str) -> None:
        _, kept = self._ended.pop(stream_id)
        share = self._shares[kept.tenant]
        self._num_ended_bytes -= share.pop(stream_id)
        if not share:
            del self._shares[kept.tenant]
        self._gone[stream_id] = kept.tenant
        while len(self._gone) > _MAX_REMEMBERED:
            self._gone.popitem(last=False)
        for listener in self._listeners:
            listener(stream_id)


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
