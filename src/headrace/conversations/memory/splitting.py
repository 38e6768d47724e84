"""A document as chunks that an embedder can read whole, cut where the text itself has joints.

In: a text. Out: its chunks, in order. Thread: any but the event loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from semantic_text_splitter import MarkdownSplitter

CHARS_PER_TOKEN = 3.0
"""Fewer than in plain English, so that most chunks need not be cut again."""
_LONGEST_SECTION = 20_000
"""The splitter's time grows with the square of a text that has no joints."""

Piece = tuple[int, str]
"""Where it begins, in characters, and its text."""


def split(text: str, max_tokens: int) -> list[Piece]:
    """Pieces of about half of `max_tokens` to all of it, at headings, paragraphs, sentences, words.
    Space around them is left out; nothing else is."""
    most = max(1, int(max_tokens * CHARS_PER_TOKEN))
    splitter = MarkdownSplitter((max(1, most // 2), most))
    return [
        (start + at, piece)
        for start, section in _sections(text)
        for at, piece in splitter.chunk_indices(section)
    ]


def halves(piece: Piece) -> Sequence[Piece]:
    """A piece that turned out too long, as two: at the space nearest to its middle, if any."""
    start, text = piece
    middle = len(text) // 2
    before, after = text.rfind(" ", 0, middle), text.find(" ", middle)
    spaces = [at for at in (before, after) if at > 0]
    cut = min(spaces, key=lambda at: abs(at - middle), default=middle)
    first, second = text[:cut], text[cut:]
    both = ((start, first.rstrip()), (start + cut + _num_blank(second), second.lstrip()))
    return [one for one in both if one[1]]


def _sections(text: str) -> Iterator[Piece]:
    start = 0
    while len(text) - start > _LONGEST_SECTION:
        end = start + _LONGEST_SECTION
        for joint in ("\n\n", "\n", " "):
            at = text.rfind(joint, start + _LONGEST_SECTION // 2, end)
            if at >= 0:
                end = at + len(joint)
                break
        yield start, text[start:end]
        start = end
    yield start, text[start:]


def _num_blank(text: str) -> int:
    return len(text) - len(text.lstrip())
