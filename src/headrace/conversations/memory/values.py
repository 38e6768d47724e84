"""What a memory holds and gives back: chunks of texts, where they are from, and what was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["document", "message"]


@dataclass(frozen=True, slots=True)
class Scope:
    """What a memory is divided into: nothing of one scope is ever found from another."""

    tenant: str
    conversation: str
    """Its id, which is unique for the tenant."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a text is from."""

    kind: Kind
    id: str
    title: str = ""
    """A document's; for messages, their role."""
    order: int = 0
    """Sources stand in this order: documents as they came, then messages as they were said."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a text that is embedded and found as a whole."""

    source: Source
    position: int
    """Where it begins in the source's text, in characters."""
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    """A chunk that may answer a question."""

    chunk: Chunk
    score: float
    """Of the fused ranks: the greater, the better. Comparable within one search alone."""


@dataclass(frozen=True, slots=True)
class Recall:
    """What a search gave, the best first, and what it had to do without."""

    found: tuple[Found, ...] = ()
    missing: tuple[str, ...] = ()
    """`vectors` or `words`: that way of searching did not answer in time, or failed."""
    num_waiting: int = 0
    """Chunks that have no vector yet: only their words can be found."""
