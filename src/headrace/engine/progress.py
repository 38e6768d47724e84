"""How far a request is that has said nothing yet: its place in the queue, or in its own prompt.

In: moments when waiting requests began. Out: an estimate for those who still wait.
Thread: engine; read by any.
"""

from __future__ import annotations

from dataclasses import dataclass

_WEIGHT = 0.3
"""Of the latest pause between two beginnings, beside all earlier ones."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a request is, as far as anybody can tell who looks from outside at some moment."""

    is_queued: bool
    """No step has computed for it yet."""
    num_ahead: int
    """Requests that came before it and wait as well. Fairness may let others go first."""
    wait_s: float
    """How long it may wait still: an estimate from what was measured."""
    num_prompt_tokens: int
    num_computed_tokens: int
    """Prompt tokens that are done, cached ones among them."""


class Departures:
    """The pace at which those who wait begin."""

    def __init__(self) -> None:
        self.pause_s = 0.0
        """Between two beginnings while somebody waits; 0 until that was seen."""
        self._last_at: float | None = None

    def note(self, now: float, num_waiting: int) -> None:
        """One has begun; so many wait still."""
        if self._last_at is not None:
            pause_s = now - self._last_at
            self.pause_s += (_WEIGHT if self.pause_s else 1.0) * (pause_s - self.pause_s)
        # A pause in which nobody waited says nothing of how fast a queue moves.
        self._last_at = now if num_waiting else None
