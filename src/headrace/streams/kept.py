"""Streams that outlive their readers: who may read them, how long they go on, when they are gone.

In: a pump and whose it is. Out: the same, to whoever comes back. Thread: the event loop.
Next: `server/streams.py`.

Leaving and stopping are different things here: a kept stream goes on without readers for a while,
and is stopped by who says so, or when nobody has come back.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from headrace.errors import StreamGone, StreamNotFound
from headrace.streams.pump import Pump

_MAX_REMEMBERED = 100_000
"""Ids of streams that are gone, so that their readers learn that rather than doubt the id."""

Form = TypeVar("Form")


@dataclass(frozen=True, slots=True)
class KeptConfig:
    """Seconds, and how many."""

    ttl_s: float = 600.0
    """How long a stream is kept after its end."""
    orphan_s: float = 60.0
    """How long it goes on while nobody reads it."""
    max_streams: int = 10_000


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
    ) -> None:
        """`form` is how its events are written; `served_by` the model that says them."""
        self.id = stream_id
        self.tenant = tenant
        self.pump = pump
        self.form = form
        self.served_by = served_by
        self._orphan_s = orphan_s
        self._num_readers = 0
        self._orphaned: asyncio.TimerHandle | None = None
        self._watch()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Somebody reads; while that is so, the stream goes on."""
        self._num_readers += 1
        self.forget_timer()
        try:
            yield
        finally:
            self._num_readers -= 1
            self._watch()

    def stop(self) -> None:
        """Somebody said so: each choice says its end within a step."""
        self.pump.cancel()

    def forget_timer(self) -> None:
        if self._orphaned is not None:
            self._orphaned.cancel()
            self._orphaned = None

    def _watch(self) -> None:
        if self._num_readers == 0 and not self.pump.log.is_over:
            loop = asyncio.get_running_loop()
            self._orphaned = loop.call_later(self._orphan_s, self.stop)


class KeptStreams(Generic[Form]):
    """All streams that are kept, by id."""

    def __init__(self, config: KeptConfig) -> None:
        self._config = config
        self._streams: OrderedDict[str, Kept[Form]] = OrderedDict()
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._listeners: list[Callable[[str], None]] = []

    def __len__(self) -> int:
        return len(self._streams)

    def keep(
        self, stream_id: str, tenant: str, pump: Pump, form: Form, *, served_by: str
    ) -> Kept[Form]:
        """Keep a stream until some time after its end."""
        orphan_s = self._config.orphan_s
        kept = Kept(stream_id, tenant, pump, form, served_by=served_by, orphan_s=orphan_s)
        self._streams[stream_id] = kept
        pump.when_over(lambda: self._ended(kept))
        self._make_room()
        return kept

    def find(self, stream_id: str, tenant: str) -> Kept[Form]:
        """Raises `StreamNotFound`, also for somebody else's, and `StreamGone`."""
        kept = self._streams.get(stream_id)
        if kept is not None and kept.tenant == tenant:
            return kept
        if kept is None and stream_id in self._gone:
            raise StreamGone(f"the stream `{stream_id}` is not kept any more; ask anew")
        raise StreamNotFound(f"there is no stream `{stream_id[:100]}`")

    def when_gone(self, listener: Callable[[str], None]) -> None:
        """`listener` hears the id of every stream that is let go."""
        self._listeners.append(listener)

    def close(self) -> None:
        """Let all go, and leave no timers."""
        for stream_id in list(self._streams):
            self._drop(stream_id)

    def _ended(self, kept: Kept[Form]) -> None:
        kept.forget_timer()
        asyncio.get_running_loop().call_later(self._config.ttl_s, self._drop, kept.id)

    def _make_room(self) -> None:
        """Those that ended first go first; one that runs is never dropped."""
        while len(self._streams) > self._config.max_streams:
            over = next((s for s in self._streams.values() if s.pump.log.is_over), None)
            if over is None:
                return
            self._drop(over.id)

    def _drop(self, stream_id: str) -> None:
        kept = self._streams.pop(stream_id, None)
        if kept is None:
            return
        kept.forget_timer()
        self._gone[stream_id] = None
        while len(self._gone) > _MAX_REMEMBERED:
            self._gone.popitem(last=False)
        for listener in self._listeners:
            listener(stream_id)
