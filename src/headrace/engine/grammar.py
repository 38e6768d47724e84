"""The seam for constrained decoding: who says which tokens may come next.

In: the tokens chosen so far. Out: a bit mask for the sampler. Thread: engine. Next: `sampler.py`.

The engine knows no grammar language. A request carries a `Grammar`; each choice starts its own
`GrammarState` from it, asks it for a mask before every token and tells it what was chosen.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable


class GrammarState(Protocol):
    """Where one choice stands in its grammar. Used by the engine thread alone."""

    def mask(self) -> memoryview | None:
        """The tokens allowed next: one bit a token, low bit first, in 32-bit words (format `I`).

        None allows all. A mask without a set bit fails the choice, alone.
        """

    def accept(self, token: int) -> None:
        """`token` was chosen. Raises `HeadraceError` where that cannot be: the choice fails."""

    @property
    def is_complete(self) -> bool:
        """Nothing may follow: the choice ends with reason `stop`."""


class Grammar(Protocol):
    """A compiled grammar, shared by the choices of a request."""

    def start(self, vocab_size: int) -> GrammarState:
        """A state at the grammar's beginning, for masks of `vocab_size` bits."""


@runtime_checkable
class ContinuedGrammar(Grammar, Protocol):
    """One at whose beginning a part of what it describes has been said."""

    def unsaid(self, end: bytes) -> Grammar | None:
        """The same where `end`, with which that part ends, is not said yet; None where it does not
        end so, or not at a whole character."""
