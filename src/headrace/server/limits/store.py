"""Where buckets are kept: one seam, so that several servers can share them one day.

In: what to reserve, all of it or nothing. Out: a reservation, or how long to wait.
Thread: the event loop. Next: `bucket.py`.

Only `reserve` has to be decided where the buckets are, so only it is awaited. A shared store makes
it one script over all buckets of a request, by the store's own clock; it sends settlements in the
background, and tells levels as it last heard of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from headrace.server.limits.bucket import TICKS_PER_S, Bucket, Dimension, Limit, Portion

Key: TypeAlias = tuple[str, str, Dimension]
"""(tenant, model as asked for, dimension): each has a bucket."""

_SPARE = 64


@dataclass(frozen=True, slots=True)
class Want:
    """An amount of one bucket that a request asks for."""

    key: Key
    limit: Limit
    amount: int


@dataclass(frozen=True, slots=True)
class Shortage:
    """The want that has to wait longest."""

    want: Want
    used: int
    wait_ticks: int


@dataclass(frozen=True, slots=True)
class Level:
    """How full a bucket is."""

    used: int
    reset_ticks: int
    """Until it is empty."""


class Reservation(Protocol):
    """All wants of one request, granted."""

    def settle(self, amounts: Sequence[int]) -> None:
        """What was really used, for each want in order. Called once; never refused, so a bucket
        can overflow. What has leaked since stays gone."""
        ...


class Store(Protocol):
    """Buckets by key; one that was never used, or has leaked away, is empty."""

    async def reserve(self, wants: Sequence[Want]) -> Reservation | Shortage:
        """Grant all wants or none. Cancelled, it leaves nothing reserved."""
        ...

    def take(self, wants: Sequence[Want]) -> Reservation:
        """Grant all wants, full or not: for what was admitted before."""
        ...

    def level(self, key: Key, limit: Limit) -> Level: ...


class MemoryStore:
    """Buckets in this process. `clock` gives seconds that do not step back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[Key, Bucket] = {}
        self._sweep_above = _SPARE

    def __len__(self) -> int:
        """Buckets kept: at most twice those in use, and a few."""
        return len(self._buckets)

    async def reserve(self, wants: Sequence[Want]) -> Reservation | Shortage:
        now = self._now()
        shortage: Shortage | None = None
        for want in wants:
            bucket = self._buckets.get(want.key) or Bucket(want.limit, now)
            wait = bucket.wait_ticks(want.amount, now)
            if wait and (shortage is None or wait > shortage.wait_ticks):
                shortage = Shortage(want, bucket.used(now), wait)
        return self.take(wants) if shortage is None else shortage

    def take(self, wants: Sequence[Want]) -> Reservation:
        now = self._now()
        return _MemoryReservation(
            self, [(want, self._bucket(want, now).put(want.amount, now)) for want in wants]
        )

    def settle(self, want: Want, portion: Portion, amount: int) -> None:
        now = self._now()
        self._bucket(want, now).settle(portion, amount, now)

    def level(self, key: Key, limit: Limit) -> Level:
        now = self._now()
        bucket = self._buckets.get(key)
        return Level(bucket.used(now), bucket.reset_ticks(now)) if bucket else Level(0, 0)

    def _now(self) -> int:
        return round(self._clock() * TICKS_PER_S)

    def _bucket(self, want: Want, now: int) -> Bucket:
        bucket = self._buckets.get(want.key)
        if bucket is None:
            if len(self._buckets) >= self._sweep_above:
                self._sweep(now)
            bucket = self._buckets[want.key] = Bucket(want.limit, now)
        return bucket

    def _sweep(self, now: int) -> None:
        """Forget empty buckets: they are as good as new. Each costs a few look-ups in its life."""
        self._buckets = {key: b for key, b in self._buckets.items() if b.reset_ticks(now)}
        self._sweep_above = 2 * len(self._buckets) + _SPARE


class _MemoryReservation:
    def __init__(self, store: MemoryStore, portions: Sequence[tuple[Want, Portion]]) -> None:
        self._store = store
        self._portions = portions

    def settle(self, amounts: Sequence[int]) -> None:
        for (want, portion), amount in zip(self._portions, amounts, strict=True):
            self._store.settle(want, portion, amount)
