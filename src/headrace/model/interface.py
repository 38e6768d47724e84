"""The narrow header between the engine and whatever computes: the native core, or a fake.

In: a `Batch` of spans. Out: logits that stay with the model, and tokens sampled from them.
Thread: the engine thread only. Next: `engine/sampler.py`.

A model owns weights, a pool of KV banks and the logits of the last step. It decides nothing: which
sequences run, which banks they use and what a token means is the engine's business.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

TokenIds: TypeAlias = "array[int]"
"""`array('i')`: token ids, 32-bit, contiguous, handed to the core without a copy."""

BankTable: TypeAlias = "array[int]"
"""`array('i')`: bank numbers; entry `i` holds positions `[i * bank_size, (i + 1) * bank_size)`."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What the engine may know of a model. Sizes in tokens, positions or bytes as named."""

    name: str
    architecture: str
    quantization: str
    vocab_size: int
    context_length: int
    bank_size: int
    bank_bytes: int
    num_layers: int
    num_parameters: int
    weight_bytes: int
    """Bytes of packed weights that one decode step reads."""
    isa: str
    num_threads: int
    identity: str
    """Names everything a result depends on: model hash, KV type, RoPE settings, numerics version.
    Two models of equal identity give equal bits for equal inputs."""
    path: Path | None = None
    """The file of its weights, if there is one: for whoever must be surer than `identity` is."""


class Span(NamedTuple):
    """One sequence's part of a step: `tokens[i]` is computed at `position + i`."""

    tokens: TokenIds
    position: int
    banks: BankTable
    """Covers at least positions `[0, position + len(tokens))`."""
    num_logits: int
    """Logits are left for the last `num_logits` tokens; 0 while a prompt is incomplete."""


Batch: TypeAlias = Sequence[Span]
"""One step's work, ragged. Logits rows are numbered from 0 in span order, then token order."""


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How logits become a token. Defaults change nothing; temperature 0 is argmax."""

    temperature: float = 0.0
    top_k: int = 0
    """Keep the k best tokens; 0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    """Drop tokens less likely than `min_p` times the best one."""
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0
    """64 bits. Random numbers are a function of (seed, choice, position) alone."""
    choice: int = 0
    num_logprobs: int = 0
    """How many alternatives to report beside the chosen token; see `want_logprob`."""
    want_logprob: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()


class SamplerState(Protocol):
    """One sequence's sampler: settings plus the counts that penalties need."""

    def observe(self, tokens: TokenIds, is_prompt: bool = False) -> None:
        """Count `tokens` for the penalties; a prompt weighs in the repetition penalty only."""


class SampleRow(NamedTuple):
    """One row to sample: logits row, the sequence's sampler, and the new token's position."""

    row: int
    sampler: SamplerState
    position: int
    mask: memoryview | None
    """Grammar bit mask, one bit a token, in 32-bit words (format "I"); None allows all."""


class Sampled(NamedTuple):
    """The outcome of one row. `token` is None when the row failed; then `error` says why."""

    token: int | None
    logprob: float
    top: list[tuple[int, float]]
    """(token, natural-log probability), best first, ties to the lower id."""
    error: str | None


class Move(NamedTuple):
    """A run of positions on its way from one bank to another. Slots count from a bank's begin."""

    source: int
    first: int
    """Slot in the source."""
    target: int
    at: int
    """Slot in the target."""
    num_positions: int
    delta: int
    """Positions by which the keys are turned; with 0 the copy is exact."""


class Model(Protocol):
    """What the engine asks of a model. Methods raise `ModelError` and leave the pool usable."""

    @property
    def spec(self) -> ModelSpec: ...

    def allocate(self, num_banks: int) -> None:
        """Make the pool; called once, before the first step. Raises `ModelError` when it does not
        fit into memory."""

    def touch(self, first: int, count: int) -> None:
        """Have memory in place for the banks `[first, first + count)`, contents unchanged, so that
        no step waits for the system."""

    def step(self, batch: Batch) -> None:
        """Compute keys, values and the asked logits of all spans in one pass. No two spans may
        write the same bank."""

    def make_sampler(self, settings: SamplingSettings) -> SamplerState: ...

    def sample(self, rows: Sequence[SampleRow]) -> list[Sampled]:
        """Sample rows of the last step's logits, in the order given."""

    def copy_bank(self, source: int, target: int) -> None: ...

    def shift_bank(self, bank: int, delta: int) -> None:
        """Re-rotate the keys of `bank` by `delta` positions, in place (approximate)."""

    def move(self, moves: Sequence[Move]) -> None:
        """Copy runs of positions, in this order, and re-rotate the keys of each by its `delta`
        (approximate). What was in the targets' other slots stays."""

    def export_bank(self, bank: int) -> bytes: ...

    def import_bank(self, bank: int, data: bytes) -> None: ...

    def logits(self, row: int) -> memoryview[float]:
        """A copy of one row of the last step's logits, float32, shape (vocab_size,)."""

    def close(self) -> None: ...
