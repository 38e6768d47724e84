"""The core alone: `model.step` and `model.sample` in the tightest loop that Python allows.

In: prompts. Out: seconds. Thread: the caller's, who must be the model's only user.
Next: `model/native.py`.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator

from headrace.bench.figures import Prompts
from headrace.model.interface import BankTable, Model, SampleRow, SamplingSettings, Span

CHUNK_TOKENS = 512
"""Prompt tokens a step. The engine chooses its own by time; this is near what it chooses."""


class CoreRunner:
    """A `Runner` on a model whose pool holds the largest figure."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._prompts: Prompts = []
        self._first_tokens: list[int] = []

    @property
    def vocab_size(self) -> int:
        return self._model.spec.vocab_size

    def prefill(self, prompts: Prompts) -> float:
        begun = time.perf_counter()
        self._compute(prompts, num_generated=1)
        return time.perf_counter() - begun

    def decode(self, prompts: Prompts, num_generated: int) -> float:
        """Repeats with the same prompts overwrite the generated positions and keep the rest."""
        if prompts != self._prompts:
            self._compute(prompts, num_generated)
        tables = self._tables(prompts, num_generated)
        positions = [len(prompt) for prompt in prompts]
        samplers = [self._model.make_sampler(SamplingSettings()) for _ in prompts]
        tokens = self._first_tokens
        begun = time.perf_counter()
        for step in range(num_generated):
            self._model.step(
                [
                    Span(array("i", (token,)), position + step, table, 1)
                    for token, position, table in zip(tokens, positions, tables, strict=True)
                ]
            )
            rows = [
                SampleRow(row, sampler, position + step + 1, None)
                for row, (sampler, position) in enumerate(zip(samplers, positions, strict=True))
            ]
            tokens = [_token(sampled.token) for sampled in self._model.sample(rows)]
        return time.perf_counter() - begun

    def logits(self, tokens: list[int], chunk: int) -> Iterator[memoryview[float]]:
        """Float32 logits of every position of one sequence, computed `chunk` positions a step."""
        banks = array("i", range(-(-len(tokens) // self._model.spec.bank_size)))
        self._prompts = []
        for start in range(0, len(tokens), chunk):
            part = array("i", tokens[start : start + chunk])
            self._model.step([Span(part, start, banks, len(part))])
            for row in range(len(part)):
                yield self._model.logits(row)

    def _compute(self, prompts: Prompts, num_generated: int) -> None:
        """Compute `prompts` one after the other, with the first token of each."""
        sampler = self._model.make_sampler(SamplingSettings())
        first_tokens = []
        for prompt, table in zip(prompts, self._tables(prompts, num_generated), strict=True):
            for start in range(0, len(prompt), CHUNK_TOKENS):
                tokens = array("i", prompt[start : start + CHUNK_TOKENS])
                is_last = start + len(tokens) == len(prompt)
                self._model.step([Span(tokens, start, table, int(is_last))])
            [sampled] = self._model.sample([SampleRow(0, sampler, len(prompt), None)])
            first_tokens.append(_token(sampled.token))
        self._prompts, self._first_tokens = prompts, first_tokens

    def _tables(self, prompts: Prompts, num_generated: int) -> list[BankTable]:
        """Banks counted from 0, a row of them for each sequence."""
        positions = len(prompts[0]) + num_generated
        num_banks = -(-positions // self._model.spec.bank_size)
        return [array("i", range(i * num_banks, (i + 1) * num_banks)) for i in range(len(prompts))]


def _token(token: int | None) -> int:
    if token is None:
        raise ValueError("the model left no usable logits for a plain greedy row")
    return token
