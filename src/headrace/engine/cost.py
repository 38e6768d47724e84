"""How long a step will take, learnt from how long steps took.

In: planned work, and seconds measured by the engine loop. Out: seconds for work not yet done.
Thread: the engine thread only. Next: `engine/scheduler.py`.

A step is priced as a sum of four shares, each proportional to one amount of work:

    base      one pass over the weights, whatever the batch
    tokens    matrix rows
    reads     positions of keys and values fetched, once a span
    pairs     (token, earlier position) pairs of attention

The first steps scale all rates to the machine. After that the measured ratio to the estimate
corrects each rate by its share of that estimate: decode steps teach the base and the reads, prompt
chunks the tokens and the pairs, and a rate that had no part in a step learns nothing from it. Rates
stay positive and one slow step changes little.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Final, Protocol


class Work(Protocol):
    """One span, as far as its cost goes."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def position(self) -> int: ...


@dataclass(frozen=True, slots=True)
class StepRates:
    """Seconds per unit of work, before anything was measured."""

    base_s: float
    token_s: float
    read_s: float
    pair_s: float

    @classmethod
    def guess(cls, *, num_parameters: int, weight_bytes: int) -> StepRates:
        """A starting point from the model's size, for two cores with wide vector units: 40 GB/s of
        weights, 2 ps a parameter and token. An hour of tuning is worth less than ten steps of
        learning, so nothing finer is tried."""
        token_s = 2e-12 * num_parameters
        return cls(
            base_s=weight_bytes / 40e9,
            token_s=token_s,
            read_s=token_s / 400,
            pair_s=token_s / 1600,
        )


_NUM_QUICK: Final = 8
_QUICK: Final = 0.5
_MAX_QUICK_SURPRISE: Final = log(16.0)
"""The first observations say how fast the machine is: they scale all rates alike."""

_STEADY: Final = 0.1
_MAX_SURPRISE: Final = log(2.0)
"""Later ones correct the shares: a tenth of the surprise is believed, and a step that took ten
times its estimate teaches no more than one that took twice."""


class CostModel:
    """Estimates and learns. A value in the engine thread's hands: it reads no clock."""

    __slots__ = ("_base_s", "_num_observed", "_pair_s", "_read_s", "_token_s")

    def __init__(self, rates: StepRates) -> None:
        self._base_s = rates.base_s
        self._token_s = rates.token_s
        self._read_s = rates.read_s
        self._pair_s = rates.pair_s
        self._num_observed = 0

    @property
    def rates(self) -> StepRates:
        """What is believed now."""
        return StepRates(self._base_s, self._token_s, self._read_s, self._pair_s)

    @property
    def token_s(self) -> float:
        """Seconds a prompt token, attention left out."""
        return self._token_s

    def estimate(self, spans: Iterable[Work]) -> float:
        """Seconds for one step that computes `spans`."""
        return self._base_s + sum(self.price(span.num_tokens, span.position) for span in spans)

    def price(self, num_tokens: int, position: int) -> float:
        """Seconds that a span adds to a step."""
        return (
            self._token_s * num_tokens
            + self._read_s * (position + num_tokens)
            + self._pair_s * num_tokens * (position + num_tokens / 2)
        )

    def num_tokens_within(self, seconds: float, position: int) -> int:
        """How many tokens from `position` on can join a step for `seconds` more, rounded down."""
        # seconds = token_s n + read_s (position + n) + pair_s n (position + n / 2)
        left_s = seconds - self._read_s * position
        if left_s <= 0:
            return 0
        linear = self._token_s + self._read_s + self._pair_s * position
        return int(2 * left_s / (linear + sqrt(linear * linear + 2 * self._pair_s * left_s)))

    def observe(self, spans: Iterable[Work], seconds: float) -> None:
        """Learn that a step of `spans` took `seconds`. Times that cannot be are ignored."""
        if not seconds > 0:
            return
        num_tokens, num_reads, num_pairs = _measure(spans)
        token_s = self._token_s * num_tokens
        read_s = self._read_s * num_reads
        pair_s = self._pair_s * num_pairs
        estimate = self._base_s + token_s + read_s + pair_s
        surprise = log(seconds / estimate)
        self._num_observed += 1
        if self._num_observed <= _NUM_QUICK:
            self._scale(_QUICK * _clip(surprise, _MAX_QUICK_SURPRISE))
            return
        lesson = _STEADY * _clip(surprise, _MAX_SURPRISE) / estimate
        self._base_s *= exp(lesson * self._base_s)
        self._token_s *= exp(lesson * token_s)
        self._read_s *= exp(lesson * read_s)
        self._pair_s *= exp(lesson * pair_s)

    def _scale(self, log_factor: float) -> None:
        """Believe in another machine: all of it slower or faster."""
        factor = exp(log_factor)
        self._base_s *= factor
        self._token_s *= factor
        self._read_s *= factor
        self._pair_s *= factor


def _clip(value: float, largest: float) -> float:
    return max(-largest, min(largest, value))


def _measure(spans: Iterable[Work]) -> tuple[int, int, float]:
    """Tokens, positions read, and attention pairs."""
    num_tokens = num_reads = 0
    num_pairs = 0.0
    for span in spans:
        n, position = span.num_tokens, span.position
        num_tokens += n
        num_reads += position + n
        num_pairs += n * (position + n / 2)
    return num_tokens, num_reads, num_pairs
