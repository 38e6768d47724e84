"""What a generation had said when the process that computed it died.

In: what was kept of its events. Out: the same, for its voices to say again. Thread: any.
Next: `voice.py`.

Tokens are enough: texts, cuts and most ends follow from them, by the code that made them first. The
order is that of the events, whichever choice each belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from headrace.errors import HeadraceError
from headrace.events import FinishReason, TokenLogprob
from headrace.model.interface import TokenIds


@dataclass(frozen=True, slots=True)
class Said:
    """A choice had started, and said these tokens next; maybe none."""

    choice: int
    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprob] = ()
    """One for each token where they were asked for, else none."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice had ended, after all that it said before."""

    choice: int
    how: FinishReason | HeadraceError


Past: TypeAlias = Sequence[Said | Ended]
"""In the order in which it was said."""


def past_of(said: Iterable[TokenIds]) -> Past:
    """The past of choices that said these tokens, one sequence of them for each choice, from 0 on,
    and nothing where it is empty. For when nobody asks how the choices took turns."""
    return [Said(choice, tokens) for choice, tokens in enumerate(said) if len(tokens)]
