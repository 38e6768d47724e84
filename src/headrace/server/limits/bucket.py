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


@dataclass(frozen=True, slots=True)
class Mark:
    """How full a bucket was when something had just been put in."""

    shares: int
    at: int


class Bucket:
    """Moments are ticks of one clock; where it steps back, nothing leaks meanwhile."""

    __slots__ = ("_at", "_shares", "_window", "limit")

    def __init__(self, limit: Limit, now: int) -> None:
        self.limit = limit
        self._window = limit.window_ticks
        self._shares = 0
        self._at = now

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

    def put(self, amount: int, now: int) -> Mark:
        """Put `amount` in, fitting or not: what was really used counts, whatever was allowed."""
        self._shares = self._leak(now) + amount * self._window
        return Mark(self._shares, now)

    def take_back(self, amount: int, mark: Mark, now: int) -> None:
        """Take out up to `amount` of what was put in at `mark`, where it has not leaked since.

        The first in leaks first. Without this bound, a long request would free by its refund what
        later ones had put in, and a tenant could use a limit twice in a moment.
        """
        is_left = max(0, mark.shares - (now - mark.at) * self.limit.amount)
        level = self._leak(now)
        self._shares = level - min(amount * self._window, is_left, level)

    def _leak(self, now: int) -> int:
        """The shares that are left now."""
        if now > self._at:
            self._shares = max(0, self._shares - (now - self._at) * self.limit.amount)
            self._at = now
        return self._shares
