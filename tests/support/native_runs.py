"""Driving a model by hand: sequences, banks and steps as the engine would arrange them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from headrace.model.interface import BankTable, Model, Span


def ids(values: Sequence[int]) -> array[int]:
    return array("i", values)


def num_banks_for(model: Model, num_tokens: int) -> int:
    return -(-num_tokens // model.spec.bank_size)


def bank_tables(model: Model, lengths: Sequence[int]) -> list[BankTable]:
    """Tables of consecutive banks for sequences of these lengths; none is shared."""
    counts = [num_banks_for(model, length) for length in lengths]
    starts = np.cumsum([0, *counts]).tolist()
    return [ids(range(*bounds)) for bounds in pairwise(starts)]


def rows(model: Model, num_rows: int, first: int = 0) -> np.ndarray:
    """Logits of the last step: (num_rows, vocab_size) float32."""
    return np.stack([np.array(model.logits(first + row)) for row in range(num_rows)])


def compute(
    model: Model,
    tokens: Sequence[int],
    banks: Sequence[int] | None = None,
    *,
    start: int = 0,
    chunks: Sequence[int] = (),
) -> np.ndarray:
    """Logits of `tokens[start:]`, (tokens, vocab_size) float32: one step a chunk, the last one
    taking what `chunks` leaves. Positions before `start` are in the banks already."""
    table = ids(range(num_banks_for(model, len(tokens))) if banks is None else banks)
    bounds = [start, *(start + int(end) for end in np.cumsum(chunks)), len(tokens)]
    parts = []
    for first, end in pairwise(bounds):
        if first < end:
            model.step([Span(ids(tokens[first:end]), first, table, end - first)])
            parts.append(rows(model, end - first))
    return np.concatenate(parts)
