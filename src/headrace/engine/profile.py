"""Where the engine thread's time goes, so that a benchmark can show what Python costs.

In: the names of a step's parts, as they end. Out: seconds in each. Thread: engine; read by any.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True, slots=True)
class StepProfile:
    """Seconds since the engine began, by part of the step. Idle time is in none of them."""

    num_steps: int
    num_tokens: int
    """Tokens computed, of prompts and answers."""
    num_sampled: int
    num_preemptions: int
    """Sequences that lost their banks for a while, to be computed again."""
    plan_s: float
    """Commands, and the scheduler's plan."""
    model_s: float
    """The model's step: the native core."""
    rows_s: float
    """Python beside the native sampler: rows, masks, counts."""
    sample_s: float
    """The model's sampling: the native core."""
    text_s: float
    """Tokens to text and events."""
    publish_s: float
    """Events to their readers."""

    @property
    def total_s(self) -> float:
        return self.model_s + self.sample_s + self.python_s

    @property
    def python_s(self) -> float:
        """All that is not the native core."""
        return self.plan_s + self.rows_s + self.text_s + self.publish_s

    @property
    def python_share(self) -> float:
        """Of all time in steps, from 0 to 1."""
        return self.python_s / self.total_s if self.total_s else 0.0

    def since(self, earlier: StepProfile) -> StepProfile:
        """What was added after `earlier` was read."""
        return StepProfile(
            *(getattr(self, name) - getattr(earlier, name) for name in self.__slots__)
        )


class Stopwatch:
    """Gathers a `StepProfile`. One moment ends a part and begins the next."""

    __slots__ = (
        "_moment",
        "_num_preemptions",
        "_num_sampled",
        "_num_steps",
        "_num_tokens",
        "_seconds",
    )

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(("plan", "model", "rows", "sample", "text", "publish"), 0.0)
        self._num_steps = self._num_tokens = self._num_sampled = self._num_preemptions = 0
        self._moment = 0.0

    def begin(self) -> None:
        self._moment = perf_counter()

    def lap(self, part: str) -> float:
        """Count the time since the last lap for `part`; returns it."""
        now = perf_counter()
        spent = now - self._moment
        self._seconds[part] += spent
        self._moment = now
        return spent

    def count(self, num_tokens: int, num_sampled: int) -> None:
        """One more step was computed."""
        self._num_steps += 1
        self._num_tokens += num_tokens
        self._num_sampled += num_sampled

    def count_preemptions(self, number: int) -> None:
        self._num_preemptions += number

    def read(self) -> StepProfile:
        seconds = self._seconds
        return StepProfile(
            self._num_steps,
            self._num_tokens,
            self._num_sampled,
            self._num_preemptions,
            *(seconds[part] for part in ("plan", "model", "rows", "sample", "text", "publish")),
        )
