"""All streams that are kept: who may read them, how much room they take, when they are gone.

In: streams. Out: the same, by id, to their owners. Thread: the event loop. Next: `kept.py`.

All of them together take only so much memory. What goes beyond it is put on disk, where that is
allowed: first what has ended, of the tenant who has most. The disk has its bound as well, and what
has ended makes room there in the same order; without a disk it does so in memory. Where all of them
run, the largest fails. Its readers are told; nothing is ever cut silently.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic

from headrace.errors import StreamGone, StreamNotFound, StreamTooLarge
from headrace.streams.kept import Form, Kept
from headrace.streams.pump import Pump

_MAX_REMEMBERED = 20_000
"""Ids of streams that are gone, so that their readers learn that rather than doubt the id."""
_MEASURE_S = 1.0
"""How often the memory of running streams is added up."""
_PACK_S = 1.0
"""How long after its end a stream is packed that nobody reads: readers who are nearly done should
not have to unpack it."""
_PACKING_S = 0.002
"""So long the event loop packs at a time."""
_SHARE = 8
"""One stream may take this part of all memory, or of the disk: an eighth."""
_SPILL_SHARE = 64
"""A running stream that takes this part of all memory goes to disk, so that it never takes long."""
_SUFFIX = ".spilled"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeptConfig:
    """Seconds, how many, and how large."""

    ttl_s: float = 600.0
    """How long a stream is kept after its end."""
    orphan_s: float = 60.0
    """How long it goes on while nobody reads it."""
    max_streams: int = 10_000
    max_bytes: int = 256_000_000
    """In memory, of all streams together, about."""
    max_disk_bytes: int = 2_000_000_000
    """On disk, beside the journal."""


class _Share(dict[str, int]):
    """One tenant's streams that have ended, and their bytes in memory: oldest first."""

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
        self._folder: Path | None = None
        self._num_ended_disk_bytes = 0
        self._expiring: asyncio.TimerHandle | None = None
        self._measuring: asyncio.TimerHandle | None = None
        self._packing: asyncio.TimerHandle | None = None
        self._unpacked: OrderedDict[str, Kept[Form]] = OrderedDict()
        """Those that have ended, or have been read since: the first is packed first."""

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

    @property
    def num_disk_bytes(self) -> int:
        """What all of them take on disk."""
        running = sum(kept.num_disk_bytes for kept in self._live.values())
        return self._num_ended_disk_bytes + running

    def spill_to(self, folder: Path) -> None:
        """What does not fit into memory goes to `folder`, which is this process's alone; what is
        in it is another's, and deleted. Raises `OSError`."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in folder.glob(f"*{_SUFFIX}"):
            path.unlink()
        self._folder = folder

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
        kept.when_left = lambda: self._left(kept)
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
                self._weigh(kept)  # who reads it may have made it larger
            return kept
        if self._gone.get(stream_id) == tenant:
            raise StreamGone(f"the stream `{stream_id}` is not kept any more; ask anew")
        raise StreamNotFound(f"there is no stream `{stream_id[:100]}`; it may be too old")

    def let_go(self, tenant: str, is_meant: Callable[[Form], bool]) -> None:
        """Keep a tenant's streams no longer that are told in such a form. Those that run end
        first."""
        for kept in [*self._live.values(), *(kept for _, kept in self._ended.values())]:
            if kept.tenant == tenant and is_meant(kept.form):
                kept.stop()
                kept.pump.when_over(partial(self._drop_ended, kept.id))

    def _drop_ended(self, stream_id: str) -> None:
        if stream_id in self._ended:
            self._drop(stream_id)

    def when_gone(self, listener: Callable[[str], None]) -> None:
        """`listener` hears the id of every stream that is let go."""
        self._listeners.append(listener)

    def close(self) -> None:
        """Stop and let all go, and leave no timers and no files."""
        for kept in list(self._live.values()):
            kept.pump.fail(StreamGone("the server has stopped"))
        for stream_id in list(self._ended):
            self._drop(stream_id)
        for kept in self._live.values():  # the next server goes on with these
            kept.forget()
        for timer in (self._expiring, self._measuring, self._packing):
            if timer is not None:
                timer.cancel()
        self._expiring = self._measuring = self._packing = None

    def _end(self, kept: Kept[Form]) -> None:
        self._live.pop(kept.id, None)
        due = asyncio.get_running_loop().time() + self._config.ttl_s - kept.age_s
        self._ended[kept.id] = due, kept
        self._shares.setdefault(kept.tenant, _Share())[kept.id] = 0
        self._num_ended_disk_bytes += kept.num_disk_bytes
        self._weigh(kept)
        self._set_timer()
        self._pack_later(kept)
        self._hold_bound()

    def _weigh(self, kept: Kept[Form]) -> None:
        """Note how large a stream is that has ended."""
        share, size = self._shares[kept.tenant], kept.measure()
        self._num_ended_bytes += size - share[kept.id]
        share[kept.id] = size

    def _left(self, kept: Kept[Form]) -> None:
        """By a reader."""
        if kept.id in self._ended:
            self._weigh(kept)
            self._pack_later(kept)
            self._hold_bound()

    def _hold_bound(self) -> None:
        while self._num_ended_bytes > self._config.max_bytes and self._make_room():
            pass

    def _pack_later(self, kept: Kept[Form]) -> None:
        self._unpacked[kept.id] = kept
        if self._packing is None:
            self._packing = asyncio.get_running_loop().call_later(_PACK_S, self._pack)

    def _pack(self) -> None:
        """Those that ended a while ago, and that nobody reads now: for who reads leaves, and then
        they are here again."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _PACKING_S
        self._packing = None
        while self._unpacked:
            if loop.time() > until:
                self._packing = loop.call_later(_PACKING_S, self._pack)
                return
            stream_id, kept = next(iter(self._unpacked.items()))
            is_wanted = stream_id in self._ended and not kept.num_readers
            if not (is_wanted and kept.pack_some()):
                del self._unpacked[stream_id]
                if is_wanted:
                    self._weigh(kept)

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
        """Hold the bounds: of each stream, and of all."""
        self._measuring = None
        most = self._config.max_bytes
        for kept in list(self._live.values()):
            if kept.measure() > most // _SPILL_SHARE:
                self._spill(kept)
            if kept.measure() > most // _SHARE or self._is_too_large_for_the_disk(kept):
                self._fail_as_too_large(kept)
        while self.num_bytes > most and self._make_room():
            pass
        while self._disk_is_full and (self._drop_from_disk() or self._fail_largest_on_disk()):
            pass
        if self._live:
            self._measure_later()

    @property
    def _disk_is_full(self) -> bool:
        return self.num_disk_bytes > self._config.max_disk_bytes

    def _make_room(self) -> bool:
        """Take something out of memory; False where nothing is left."""
        share = max(self._shares.values(), key=_Share.num_bytes, default=_Share())
        oldest = next((name for name, size in share.items() if size), None)
        if oldest is not None:
            if not self._spill(self._ended[oldest][1]):
                self._drop_one(_Share.num_bytes)
            return True
        running = max(self._live.values(), key=lambda kept: kept.measure(), default=None)
        if running is None or not running.measure():
            return False
        if not self._spill(running):
            self._fail_as_too_large(running)
        return True

    def _spill(self, kept: Kept[Form]) -> bool:
        """Put a stream on disk, and let others go there until it fits. False where there is none,
        or it takes no more."""
        if self._folder is None:
            return False
        before = kept.num_disk_bytes
        is_whole = True
        try:
            kept.spill(self._folder / f"{kept.id}{_SUFFIX}")
        except OSError as error:
            _log.warning("a stream cannot be put on disk: %s", error)
            is_whole = False
        if kept.id in self._ended:
            self._num_ended_disk_bytes += kept.num_disk_bytes - before
            self._weigh(kept)
        while self._disk_is_full and self._drop_from_disk():
            pass
        return is_whole

    def _drop_from_disk(self) -> bool:
        """Let the oldest go that has ended, of the tenant who has most on disk."""

        def on_disk(tenant: str) -> int:
            return sum(self._ended[name][1].num_disk_bytes for name in self._shares[tenant])

        greediest = max(self._shares, key=on_disk, default=None)
        if greediest is None:
            return False
        names = self._shares[greediest]
        oldest = next((name for name in names if self._ended[name][1].num_disk_bytes), None)
        if oldest is not None:
            self._drop(oldest)
        return oldest is not None

    def _fail_largest_on_disk(self) -> bool:
        """A running stream ends, and then makes room as others that have ended."""
        largest = max(self._live.values(), key=lambda kept: kept.num_disk_bytes, default=None)
        if largest is None or not largest.num_disk_bytes:
            return False
        self._fail_as_too_large(largest)
        return largest.is_over

    def _is_too_large_for_the_disk(self, kept: Kept[Form]) -> bool:
        return kept.num_disk_bytes > self._config.max_disk_bytes // _SHARE

    def _fail_as_too_large(self, kept: Kept[Form]) -> None:
        kept.pump.fail(
            StreamTooLarge(
                "the stream became larger than the room for streams allows; ask for fewer tokens "
                "or choices, or give the server more with --stream-memory and --stream-disk"
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
        self._num_ended_disk_bytes -= kept.num_disk_bytes
        if not share:
            del self._shares[kept.tenant]
        with suppress(OSError):
            kept.forget()
        self._gone[stream_id] = kept.tenant
        while len(self._gone) > _MAX_REMEMBERED:
            self._gone.popitem(last=False)
        for listener in self._listeners:
            listener(stream_id)
