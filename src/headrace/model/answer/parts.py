"""What an answer's text consists of, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Content:
    """Said to the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """Not said: how the model came to it."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """One whole call of a tool."""

    name: str
    arguments: str
    """JSON text, compact."""


@dataclass(frozen=True, slots=True)
class Broken:
    """Begins like a call and is none: it is no JSON, or lacks a name, or was cut."""

    text: str
    is_cut: bool
    """The text ended inside it."""


Part: TypeAlias = Content | Thought | Call | Broken


def joined(parts: list[Part]) -> list[Part]:
    """The same with neighbouring texts of a kind as one: never depends on how text arrived."""
    whole: list[Part] = []
    for part in parts:
        last = whole[-1] if whole else None
        if isinstance(part, Content) and isinstance(last, Content):
            whole[-1] = Content(last.text + part.text)
        elif isinstance(part, Thought) and isinstance(last, Thought):
            whole[-1] = Thought(last.text + part.text)
        else:
            whole.append(part)
    return whole


def held_from(text: str, marker: str) -> int:
    """Where the longest end of `text` begins that may be the beginning of `marker`."""
    start = text.find(marker[0], max(0, len(text) - len(marker) + 1))
    while start >= 0 and not marker.startswith(text[start:]):
        start = text.find(marker[0], start + 1)
    return len(text) if start < 0 else start
