"""A model without weights whose next token depends on what its KV banks really hold.

It keeps, for every position of every bank, the token that was computed there, and for every bank a
checksum of all that came before it. To answer, it reads the whole sequence back through the bank
table. So a wrong table, a bank that was given away too early or one that was reused behind another
prefix does not go unnoticed: the checksums disagree and the step fails, or the tokens differ.
"""

from __future__ import annotations

import math
import random
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from headrace.errors import ModelError
from headrace.model.interface import (
    BankTable,
    Batch,
    ModelSpec,
    Move,
    Sampled,
    SampleRow,
    SamplingSettings,
    Span,
    TokenIds,
)

Rule: TypeAlias = Callable[[Sequence[int]], int]
"""The likeliest next token, as a function of the sequence's tokens read back from the banks."""


def saying(answer: Sequence[int], then: int) -> Rule:
    """A rule that says `answer`, then `then` (an end-of-generation token) for ever.

    How much has been said is what the sequence's end and the answer's beginning have in common.
    """
    script = list(answer)

    def rule(history: Sequence[int]) -> int:
        heard = list(history)
        before_end = list(history)
        while before_end and before_end[-1] == then:
            before_end.pop()
        if _ends(before_end, script):
            return then
        num_said = max(n for n in range(len(script)) if _ends(heard, script[:n]))
        return script[num_said]

    return rule


def _ends(tokens: list[int], end: list[int]) -> bool:
    return tokens[len(tokens) - len(end) :] == end if len(end) <= len(tokens) else False


@dataclass(slots=True)
class FakeSampler:
    """One sequence's settings and counts."""

    settings: SamplingSettings
    prompt: set[int] = field(default_factory=set)
    counts: Counter[int] = field(default_factory=Counter)
    """How often each token was generated."""

    def observe(self, tokens: TokenIds, is_prompt: bool = False) -> None:
        if is_prompt:
            self.prompt.update(tokens)
        else:
            self.counts.update(tokens)


class FakeModel:
    """Implements `headrace.model.interface.Model` in pure Python.

    Without a `rule` the logits are a pseudo-random function of the sequence's tokens. With one, the
    rule's token is the likeliest by far. `step_s` makes each step last that long, in seconds.

    With `FakeTokenizer`, which takes a token a byte, the context of 256 tokens is 256 bytes of
    prompt and answer together, and a token for each marker. The model has 260 token ids and the
    tokenizer 258, so the last two have no text. `shift_bank` raises `ModelError`; `move` works.
    """

    def __init__(
        self,
        *,
        rule: Rule | None = None,
        vocab_size: int = 260,
        context_length: int = 256,
        bank_size: int = 16,
        step_s: float = 0.0,
    ) -> None:
        self._spec = ModelSpec(
            name="fake",
            architecture="fake",
            quantization="none",
            vocab_size=vocab_size,
            context_length=context_length,
            bank_size=bank_size,
            bank_bytes=bank_size * 4,
            num_layers=1,
            num_parameters=1_000_000,
            weight_bytes=1_000_000,
            isa="python",
            num_threads=1,
            identity="fake",
        )
        self._rule = rule
        self._step_s = step_s
        self._tokens = array("i")
        self._before: list[int | None] = []
        self._moved: set[int] = set()
        self._rows: list[tuple[list[int], int]] = []
        self.num_steps = 0
        self.num_touched = 0
        """Banks whose memory is in place."""
        self.num_computed_tokens = 0
        """All tokens that steps were asked to compute: what a cache hit saves."""
        self.num_moved_tokens = 0
        self.is_closed = False

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    def allocate(self, num_banks: int) -> None:
        self._tokens = array("i", bytes(4 * num_banks * self._spec.bank_size))
        self._before = [None] * num_banks
        """Checksum of the tokens before each bank's first; None where nothing was computed."""

    def touch(self, first: int, count: int) -> None:
        self.num_touched = max(self.num_touched, first + count)

    def step(self, batch: Batch) -> None:
        """Raises `ModelError` where the batch breaks the header's rules or a bank is not what its
        table says it is."""
        if self.is_closed:
            raise ModelError("the model is closed")
        if self._step_s:
            time.sleep(self._step_s)
        _check_writes(batch, self._spec.bank_size)
        self._rows = [row for span in batch for row in self._compute(span)]
        self.num_steps += 1

    def _compute(self, span: Span) -> list[tuple[list[int], int]]:
        end = span.position + len(span.tokens)
        if end > len(span.banks) * self._spec.bank_size:
            raise ModelError(f"{len(span.banks)} banks do not hold {end} positions")
        if end > self._spec.context_length:
            raise ModelError(f"position {end} is past the context of {self._spec.context_length}")
        _, checksum = self._read(span.banks, span.position)
        self._write(span, checksum)
        self.num_computed_tokens += len(span.tokens)
        return [self._read(span.banks, end - i) for i in range(span.num_logits - 1, -1, -1)]

    def _write(self, span: Span, checksum: int) -> None:
        size = self._spec.bank_size
        for index, token in enumerate(span.tokens, span.position):
            bank, offset = span.banks[index // size], index % size
            if offset == 0:
                self._before[bank] = checksum
                self._moved.discard(bank)
            self._tokens[bank * size + offset] = token
            checksum = zlib.crc32(token.to_bytes(4, "little"), checksum)

    def _read(self, banks: BankTable, length: int) -> tuple[list[int], int]:
        """The first `length` tokens of a sequence, from its banks, and their checksum."""
        size = self._spec.bank_size
        tokens: list[int] = []
        checksum = 0
        for bank in banks:
            if len(tokens) >= length:
                break
            if bank not in self._moved and self._before[bank] != checksum:
                raise ModelError(
                    f"bank {bank} does not continue positions [0, {len(tokens)}) of its table"
                )
            part = self._tokens[bank * size : bank * size + min(size, length - len(tokens))]
            checksum = zlib.crc32(part, checksum)
            tokens.extend(part)
        return tokens, checksum

    def make_sampler(self, settings: SamplingSettings) -> FakeSampler:
        return FakeSampler(settings)

    def sample(self, rows: Sequence[SampleRow]) -> list[Sampled]:
        return [_sample(self._logits(row.row), row) for row in rows]

    def logits(self, row: int) -> memoryview[float]:
        return memoryview(array("f", self._logits(row)))

    def _logits(self, row: int) -> list[float]:
        history, checksum = self._rows[row]
        rng = random.Random(checksum)
        logits = [8 * rng.random() for _ in range(self._spec.vocab_size)]
        if self._rule is not None:
            logits[self._rule(history)] = 24.0
        return logits

    def copy_bank(self, source: int, target: int) -> None:
        self.import_bank(target, self.export_bank(source))

    def shift_bank(self, bank: int, delta: int) -> None:
        raise ModelError("a fake model cannot shift banks")

    def move(self, moves: Sequence[Move]) -> None:
        size = self._spec.bank_size
        for source, first, target, at, num_positions, _ in moves:
            start, end = source * size + first, target * size + at
            tokens = self._tokens[start : start + num_positions]
            self._tokens[end : end + num_positions] = tokens
            # What came before it there is not what comes before it here.
            self._moved.add(target)
        self.num_moved_tokens += sum(move.num_positions for move in moves)

    def export_bank(self, bank: int) -> bytes:
        size = self._spec.bank_size
        before = self._before[bank]
        stamp = b"" if before is None else before.to_bytes(4, "little")
        return self._tokens[bank * size : (bank + 1) * size].tobytes() + stamp

    def import_bank(self, bank: int, data: bytes) -> None:
        size = self._spec.bank_size
        self._tokens[bank * size : (bank + 1) * size] = array("i", data[: 4 * size])
        stamp = data[4 * size :]
        self._before[bank] = int.from_bytes(stamp, "little") if stamp else None
        self._moved.discard(bank)

    def close(self) -> None:
        self.is_closed = True


def _check_writes(batch: Batch, bank_size: int) -> None:
    written: set[int] = set()
    for span in batch:
        first, last = (
            span.position // bank_size,
            (span.position + len(span.tokens) - 1) // bank_size,
        )
        for bank in span.banks[first : last + 1]:
            if bank in written:
                raise ModelError(f"two spans of one step write bank {bank}")
            written.add(bank)


def _sample(logits: list[float], row: SampleRow) -> Sampled:
    sampler = row.sampler
    assert isinstance(sampler, FakeSampler)
    settings = sampler.settings
    if any(math.isnan(logit) for logit in logits):
        return Sampled(None, 0.0, [], "the model's logits are not numbers")
    scores = _allowed(_penalized(logits, sampler), row.mask)
    if not scores:
        return Sampled(None, 0.0, [], "no token is allowed here")
    ranked = sorted(scores, key=lambda token: (-scores[token], token))
    token = _draw(ranked, scores, settings, row.position)
    if not settings.want_logprob:
        return Sampled(token, 0.0, [], None)
    norm = math.log(sum(math.exp(logit) for logit in logits))
    best = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[: settings.num_logprobs]
    return Sampled(token, logits[token] - norm, [(i, logits[i] - norm) for i in best], None)


def _penalized(logits: list[float], sampler: FakeSampler) -> list[float]:
    settings = sampler.settings
    scores = list(logits)
    for token in sampler.prompt | sampler.counts.keys():
        penalty = settings.repetition_penalty
        scores[token] *= penalty if scores[token] < 0 else 1 / penalty
    for token, count in sampler.counts.items():
        scores[token] -= settings.frequency_penalty * count + settings.presence_penalty
    for token, bias in settings.logit_bias:
        scores[token] += bias
    return scores


def _allowed(scores: list[float], mask: memoryview | None) -> dict[int, float]:
    bits = None if mask is None else mask.cast("B")
    return {
        token: score
        for token, score in enumerate(scores)
        if score > -math.inf and (bits is None or bits[token // 8] >> (token % 8) & 1)
    }


def _draw(
    ranked: list[int], scores: dict[int, float], settings: SamplingSettings, position: int
) -> int:
    if settings.temperature == 0:
        return ranked[0]
    kept = ranked[: settings.top_k or None]
    best = scores[kept[0]]
    weights = [math.exp((scores[token] - best) / settings.temperature) for token in kept]
    total = sum(weights)
    num_kept, mass = 0, 0.0
    while num_kept < len(kept) and (num_kept == 0 or mass < settings.top_p * total):
        if weights[num_kept] < settings.min_p * weights[0]:
            break
        mass += weights[num_kept]
        num_kept += 1
    rng = random.Random(f"{settings.seed}/{settings.choice}/{position}")
    return rng.choices(kept[:num_kept], weights[:num_kept])[0]
