"""Finds the spellings of control tokens in a text: the longest one at the leftmost place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_Trie = dict[str, "_Trie"]
_END = ""
_NEVER = r"(?!)"


class Markers:
    """A set of spellings, searched in one pass whatever their number."""

    def __init__(self, spellings: Iterable[str]) -> None:
        trie: _Trie = {}
        for spelling in spellings:
            if spelling:
                _insert(trie, spelling)
        self._pattern = re.compile(_expression(trie) if trie else _NEVER)

    def find(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        """(start, end) of each spelling that lies in `text[start:end]`, none overlapping."""
        return (match.span() for match in self._pattern.finditer(text, start, end))


def _insert(trie: _Trie, spelling: str) -> None:
    for character in spelling:
        trie = trie.setdefault(character, {})
    trie[_END] = {}


def _expression(trie: _Trie) -> str:
    """A tree of alternatives that differ in their first character: nothing is tried twice."""
    prefix = ""
    while len(trie) == 1 and _END not in trie:
        (character, trie) = next(iter(trie.items()))
        prefix += re.escape(character)
    branches = [
        re.escape(character) + _expression(rest) for character, rest in trie.items() if character
    ]
    if not branches:
        return prefix
    return f"{prefix}(?:{'|'.join(branches)})" + ("?" if _END in trie else "")
