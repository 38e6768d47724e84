"""The Python side of sampling: which rows, under which mask; the arithmetic is the model's.

In: a choice's settings, grammar and tokens so far. Out: `SampleRow`s for `Model.sample`.
Thread: engine. Next: `voice.py`.
"""

from __future__ import annotations

from array import array

from headrace.engine.grammar import GrammarState
from headrace.model.interface import Model, SampleRow, SamplingSettings, TokenIds


class ChoiceSampler:
    """How one choice's tokens are drawn. The random numbers are a function of (seed, choice,
    position) alone, so nothing here has to survive a preemption but the counts and the grammar."""

    __slots__ = ("_counts", "_grammar", "_state")

    def __init__(
        self,
        model: Model,
        settings: SamplingSettings,
        grammar: GrammarState | None,
        prompt: TokenIds,
    ) -> None:
        self._state = model.make_sampler(settings)
        self._grammar = grammar
        self._counts = (
            settings.repetition_penalty != 1.0
            or settings.frequency_penalty != 0.0
            or settings.presence_penalty != 0.0
        )
        if settings.repetition_penalty != 1.0:
            self._state.observe(prompt, is_prompt=True)

    def row(self, row: int, position: int) -> SampleRow:
        """What to ask for the token at `position` from logits row `row` of the last step."""
        mask = None if self._grammar is None else self._grammar.mask()
        return SampleRow(row, self._state, position, mask)

    def accept(self, token: int) -> None:
        """`token` was drawn. Raises `HeadraceError` where the grammar cannot go on with it."""
        if self._counts:
            self._state.observe(array("i", (token,)))
        if self._grammar is not None:
            self._grammar.accept(token)

    @property
    def is_complete(self) -> bool:
        """The grammar allows nothing more."""
        return self._grammar is not None and self._grammar.is_complete
