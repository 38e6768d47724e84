"""Documents in pieces: nothing lost, nothing too long, and cut where the text has joints."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.conversations.memory.splitting import CHARS_PER_TOKEN, Piece, halves, split

TEXT = st.lists(
    st.sampled_from(
        ["word ", "\n\n", "# Head\n", "- a\n", "水車小屋。", "\n", "x" * 60, "**b** ", " "]
    ),
    max_size=60,
).map("".join)


def _check(text: str, pieces: list[Piece], start_at: int = 0) -> None:
    for start, piece in pieces:
        assert piece
        assert text[start - start_at :].startswith(piece)


@given(TEXT, st.integers(4, 60))
@example("word " * 9000, 60)
@example("x" * 30_000, 60)
@settings(deadline=None)
def test_nothing_but_space_is_left_out(text: str, max_tokens: int) -> None:
    pieces = split(text, max_tokens)
    _check(text, pieces)
    assert "".join("".join(piece.split()) for _, piece in pieces) == "".join(text.split())
    assert all(len(piece) <= max_tokens * CHARS_PER_TOKEN for _, piece in pieces)
    starts = [start for start, _ in pieces]
    assert starts == sorted(set(starts))


@given(TEXT.filter(lambda text: len(text.strip()) > 1).map(str.strip), st.integers(0, 100))
def test_halves_are_the_whole(text: str, start: int) -> None:
    pieces = list(halves((start, text)))
    assert len(pieces) == 2
    _check(text, pieces, start)
    assert "".join("".join(piece.split()) for _, piece in pieces) == "".join(text.split())
    assert all(len(piece) < len(text) for _, piece in pieces)


def test_a_heading_begins_a_piece() -> None:
    section = "Water turns the wheel. " * 6
    text = f"# Wheels\n\n{section}\n\n# Sluices\n\n{section}"
    assert [piece[:9] for _, piece in split(text, 80)] == ["# Wheels\n", "# Sluices"]


def test_nothing_gives_nothing() -> None:
    assert split("", 10) == []
    assert split(" \n\n ", 10) == []
