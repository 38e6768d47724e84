"""Texts as words, and keys that are a conversation's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.conversations.memory.words import (
    MAX_QUERY_WORDS,
    keys_of,
    query_words,
    words_of,
)


def test_words_are_lower_case_without_accents_and_once_each() -> None:
    assert list(words_of("Ein Mühlrad, ein MUHLRAD; straße_7 — 水車")) == [
        "ein",
        "muhlrad",
        "strasse",
        "7",
        "水車",
    ]


def test_a_question_is_its_most_telling_words() -> None:
    text = "what is the pressure of pump b17 in hall " + " ".join(
        f"filler{c}" for c in "abcdefghij"
    )
    chosen = query_words(text)
    assert len(chosen) == MAX_QUERY_WORDS
    assert chosen[0] == "b17"
    assert "is" not in chosen


@given(st.text(max_size=200), st.integers(1, 2**62), st.integers(1, 2**62))
def test_keys_are_plain_and_never_shared(text: str, one: int, other: int) -> None:
    words = words_of(text)
    keys = keys_of(words, one)
    assert len(set(keys)) == len(words)
    assert all(len(key) == 16 and key.isascii() and key.isalnum() for key in keys)
    if one != other:
        assert not set(keys) & set(keys_of(words, other))
