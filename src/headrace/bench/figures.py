"""What is measured: shapes with names, their prompts, and the arithmetic of repeated measurements.

In: a shape. Out: prompts of random tokens, the same for every engine. Thread: any.
Next: `core.py`, `whole.py` or `remote.py`, which run it.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

Prompts: TypeAlias = list[list[int]]
"""One list of token ids a sequence, all of one length."""

NUM_PROMPT_TOKENS = 128
NUM_GENERATED = 128
LONG_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class Figure:
    """One speed in tokens a second: of generating after prompts, or of computing one prompt."""

    kind: Literal["decode", "prefill"]
    num_sequences: int
    num_prompt_tokens: int
    num_generated: int

    @property
    def name(self) -> str:
        if self.kind == "prefill":
            return f"prefill {self.num_prompt_tokens}"
        if self.num_prompt_tokens == NUM_PROMPT_TOKENS:
            return f"decode {self.num_sequences}"
        return f"decode {self.num_sequences} at {self.num_prompt_tokens}"

    @property
    def num_positions(self) -> int:
        """KV positions that each sequence needs, with some to spare."""
        return self.num_prompt_tokens + self.num_generated + 8

    def prompts(self, vocab_size: int, repeat: int) -> Prompts:
        """Random tokens, the same in every process. Prefill's change with `repeat`, so that no
        prefix cache can serve them; decode's do not, so that a prompt may stay where it is."""
        seed = repeat if self.kind == "prefill" else 0
        source = random.Random(f"{self.name}/{seed}")
        return [
            [source.randrange(vocab_size) for _ in range(self.num_prompt_tokens)]
            for _ in range(self.num_sequences)
        ]


def decode(num_sequences: int, *, at: int = NUM_PROMPT_TOKENS) -> Figure:
    """Greedy generation by `num_sequences` at once, after prompts of `at` tokens."""
    return Figure("decode", num_sequences, at, NUM_GENERATED)


def prefill(num_tokens: int) -> Figure:
    """One prompt from an empty cache to its first token."""
    return Figure("prefill", 1, num_tokens, 0)


STANDARD = (
    *(decode(num_sequences) for num_sequences in (1, 4, 8, 16, 32)),
    *(prefill(num_tokens) for num_tokens in (128, 512, 2048)),
    decode(1, at=LONG_CONTEXT),
)
QUICK = (decode(1), decode(4), decode(16), prefill(128), prefill(512))


class Runner(Protocol):
    """Whatever can be timed. Returns seconds of the timed part alone."""

    @property
    def vocab_size(self) -> int: ...

    def decode(self, prompts: Prompts, num_generated: int) -> float:
        """Seconds for `num_generated` tokens of every sequence, their prompts being computed."""

    def prefill(self, prompts: Prompts) -> float:
        """Seconds from an empty cache to the first token of the one prompt."""


def measure(runner: Runner, figure: Figure, repeat: int) -> float:
    """Tokens a second of one run."""
    prompts = figure.prompts(runner.vocab_size, repeat)
    if figure.kind == "prefill":
        return figure.num_prompt_tokens / runner.prefill(prompts)
    seconds = runner.decode(prompts, figure.num_generated)
    return figure.num_sequences * figure.num_generated / seconds


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the rounds' own ratios: neighbours in time share what the machine did to them."""
    return statistics.median(our / their for our, their in zip(ours, theirs, strict=True))


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest of `values` that at least `percent` % of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
