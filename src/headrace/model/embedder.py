"""What turns texts into vectors: a protocol, so that whoever searches needs no model in its tests.

In: texts. Out: one vector each, and how many tokens that took. Thread: any but the event loop.

Two texts that mean the same point the same way; with vectors of length 1, how much so is their dot
product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """Some texts' vectors, in the order of the texts."""

    vectors: Vectors
    """float32, shape (number of texts, `dim`), each row of length 1."""
    num_tokens: int
    """Of all texts together, the markers around each included."""
    truncated: tuple[int, ...] = ()
    """Which texts were longer than `max_tokens`, so that their ends went unread."""


class Embedder(Protocol):
    """A model of texts. A text's vector depends on the text alone: not on what else is embedded in
    the same call, nor on threads or processor."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int:
        """Numbers of a vector."""

    @property
    def max_tokens(self) -> int:
        """Of one text; what is longer is cut there."""

    @property
    def identity(self) -> str:
        """Names everything a vector depends on. Vectors of equal identity may be compared with one
        another; those of different ones mean nothing to each other."""

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Blocks until all are done; may be called from several threads at once. No texts give an
        array of shape (0, `dim`). Raises `ModelError`."""
