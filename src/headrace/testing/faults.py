"""Wrong on purpose, at a known step: what the rest of the house must survive."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from headrace.model.interface import (
    Batch,
    Model,
    ModelSpec,
    Move,
    Sampled,
    SampleRow,
    SamplerState,
    SamplingSettings,
)


class FaultyModel:
    """Any model, with faults. Steps count from 0; a step that raises counts.

    `raise_at` maps a step to the exception it raises; `nan_at` names (step, row) pairs whose row of
    samples fails, rows counted in the order in which they are sampled; `slow_at` maps a step to
    the seconds it takes longer.
    """

    def __init__(
        self,
        model: Model,
        *,
        raise_at: Mapping[int, BaseException] | None = None,
        nan_at: Iterable[tuple[int, int]] = (),
        slow_at: Mapping[int, float] | None = None,
    ) -> None:
        self._model = model
        self._raise_at = dict(raise_at or {})
        self._nan_at = frozenset(nan_at)
        self._slow_at = dict(slow_at or {})
        self.num_steps = 0

    @property
    def spec(self) -> ModelSpec:
        return self._model.spec

    def allocate(self, num_banks: int) -> None:
        self._model.allocate(num_banks)

    def touch(self, first: int, count: int) -> None:
        self._model.touch(first, count)

    def step(self, batch: Batch) -> None:
        number = self.num_steps
        self.num_steps += 1
        if number in self._slow_at:
            time.sleep(self._slow_at[number])
        if number in self._raise_at:
            raise self._raise_at[number]
        self._model.step(batch)

    def make_sampler(self, settings: SamplingSettings) -> SamplerState:
        return self._model.make_sampler(settings)

    def sample(self, rows: Sequence[SampleRow]) -> list[Sampled]:
        failed = Sampled(None, 0.0, [], "the model's logits are not numbers")
        return [
            failed if (self.num_steps - 1, index) in self._nan_at else sampled
            for index, sampled in enumerate(self._model.sample(rows))
        ]

    def copy_bank(self, source: int, target: int) -> None:
        self._model.copy_bank(source, target)

    def shift_bank(self, bank: int, delta: int) -> None:
        self._model.shift_bank(bank, delta)

    def move(self, moves: Sequence[Move]) -> None:
        self._model.move(moves)

    def export_bank(self, bank: int) -> bytes:
        return self._model.export_bank(bank)

    def import_bank(self, bank: int, data: bytes) -> None:
        self._model.import_bank(bank, data)

    def logits(self, row: int) -> memoryview[float]:
        return self._model.logits(row)

    def close(self) -> None:
        self._model.close()
