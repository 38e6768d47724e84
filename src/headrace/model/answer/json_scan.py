"""Finds where a JSON object or array ends, while it is still being written."""

from __future__ import annotations

import re

_SIGNS = re.compile(r'["\\{}\[\]]')
_STRING_SIGNS = re.compile(r'["\\]')


class JSONScan:
    """Reads one value that begins with `{` or `[`. Says where it ends, not whether it is sound."""

    __slots__ = ("_depth", "_in_string", "_position")

    def __init__(self, start: int = 0) -> None:
        self._position = start
        self._depth = 0
        self._in_string = False

    def end(self, text: str) -> int | None:
        """The index after the value's end; None while it is open. `text` is what it was the last
        time, and more."""
        while self._position < len(text):
            signs = _STRING_SIGNS if self._in_string else _SIGNS
            match = signs.search(text, self._position)
            if match is None:
                self._position = len(text)
                return None
            if not self._take(match.group(), match.end(), text):
                return None
            if self._depth == 0:
                return self._position
        return None

    def _take(self, sign: str, end: int, text: str) -> bool:
        """Note a sign that ends at `end`; False where what it escapes is not here yet."""
        if sign == "\\" and self._in_string:
            if end == len(text):
                self._position = end - 1
                return False
            end += 1
        elif sign == '"':
            self._in_string = not self._in_string
        elif sign in "{[":
            self._depth += 1
        elif sign in "}]":
            self._depth -= 1
        self._position = end
        return True
