"""One leaky bucket: what was used of a limit, and leaks away evenly, the whole limit in a window.

In: moments and amounts. Out: levels and waits. Thread: none of its own. Next: `store.py`.

All in integers, so that nothing is ever rounded: time in ticks, levels in shares. A token (or a
request) is as many shares as its window has ticks, and each tick leaks as many shares as the limit
has tokens. A wait is exact to the tick: who comes a tick earlier is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Dimension: TypeAlias = Literal["RPM", "RPD", "TPM", "TPD"]
"""Requests or tokens, a minute or a day."""

DIMENSIONS: tuple[Dimension, ...] = ("RPM", "RPD", "TPM", "TPD")

TICKS_PER_S = 1_000_000

_KINDS: dict[str, Literal["requests", "tokens"]] = {"R": "requests", "T": "tokens"}
_WINDOWS_S = {"M": 60, "D": 86_400}
_PERIODS = {"M": "minute", "D": "day"}


@dataclass(frozen=True, slots=True)
class Limit:
    """`amount` requests or tokens at once, and then as they leak: `amount` in a window."""

    dimension: Dimension
    amount: int

    @property
    def kind(self) -> Literal["requests", "tokens"]:
        return _KINDS[self.dimension[0]]

    @property
    def name(self) -> str:
        """`tokens per minute`."""
        return f"{self.kind} per {_PERIODS[self.dimension[-1]]}"

    @property
    def window_ticks(self) -> int:
        return _WINDOWS_S[self.dimension[-1]] * TICKS_PER_S


class Portion:
    """What one request put into a bucket, until it is known what the request really used."""

    __slots__ = ("amount", "low")

    def __init__(self, amount: int, low: int) -> None:
        self.amount = amount
        self.low = low
        """The lowest that the bucket has been since, in shares: no more can be taken back, because
        the rest would have leaked anyway."""


class Bucket:
    """Moments are ticks of one clock; where it steps back, nothing leaks meanwhile.

    The bucket is always as full as if only what was really used had been put in, each at the moment
    of its reservation (what came out longer: at its end). So a refund never frees what others have
    put in since, and nobody can use a limit twice by reserving much and early.
    """

    __slots__ = ("_at", "_open", "_shares", "_window", "limit")

    def __init__(self, limit: Limit, now: int) -> None:
        self.limit = limit
        self._window = limit.window_ticks
        self._shares = 0
        self._at = now
        # Oldest first, so their lows never fall along the list. All are above 0.
        self._open: list[Portion] = []

    def used(self, now: int) -> int:
        """Whole tokens or requests, rounded up; above the limit where a stream overran it."""
        return -(-self._leak(now) // self._window)

    def reset_ticks(self, now: int) -> int:
        """Until the bucket is empty."""
        return -(-self._leak(now) // self.limit.amount)

    def wait_ticks(self, amount: int, now: int) -> int:
        """Until `amount` fits in beside what is there; 0 where it does."""
        excess = self._leak(now) + (amount - self.limit.amount) * self._window
        return max(0, -(-excess // self.limit.amount))

    def put(self, amount: int, now: int) -> Portion:
        """Put `amount` in, fitting or not."""
        self._shares = self._leak(now) + amount * self._window
        portion = Portion(amount, self._shares)
        if portion.low:
            self._open.append(portion)
        return portion

    def settle(self, portion: Portion, num_used: int, now: int) -> None:
        """`num_used` was really used of what was put in. Once for each portion."""
        self._leak(now)
        unused = (portion.amount - num_used) * self._window
        if unused < 0:
            self._shares -= unused
        if portion in self._open:
            index = self._open.index(portion)
            if unused > 0:
                self._take_back(index, min(unused, portion.low))
            self._open.remove(portion)
            self._forget_gone()

    def _take_back(self, index: int, shares: int) -> None:
        """As if the portion at `index` had been smaller from the start."""
        self._shares -= shares
        for portion in self._open[index:]:
            portion.low -= shares
        self._lower(index, self._open[index].low)

    def _leak(self, now: int) -> int:
        """The shares that are left now."""
        if now > self._at:
            self._shares = max(0, self._shares - (now - self._at) * self.limit.amount)
            self._at = now
            self._lower(len(self._open), self._shares)
            self._forget_gone()
        return self._shares

    def _lower(self, end: int, shares: int) -> None:
        """The bucket has been as low as `shares` since the portions before `end`."""
        for index in range(end - 1, -1, -1):
            if self._open[index].low <= shares:
                return
            self._open[index].low = shares

    def _forget_gone(self) -> None:
        """Nothing can be taken back of these: they are settled late, or never."""
        num_gone = next((i for i, p in enumerate(self._open) if p.low > 0), len(self._open))
        del self._open[:num_gone]
