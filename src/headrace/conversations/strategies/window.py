"""Which turns a window has let go of: found anew from the history, the same at every replay.

Turns go in blocks: none until the window is full, then so many that half of it is free. So the
prompt's prefix stays the same for many turns, and each token that is dropped costs about one that
is computed anew.

    full     |system|turn 1|turn 2|turn 3|turn 4|turn 5|new|
    dropped  |system|                    |turn 4|turn 5|new|            |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from headrace.conversations.strategies.history import History

LEFT_RATIO = 0.5
"""How much of the window is still in use after a block of turns is dropped."""


@dataclass(frozen=True, slots=True)
class Window:
    """How much of a conversation is shown."""

    max_tokens: int
    """Of the prompt without what always stays and without the template's own."""
    low_tokens: int
    """At most so many are left of it when turns are dropped."""
    keep_turns: int | None = None
    """So many turns before the new one stay, as far as `max_tokens` allows, and at most half as
    many again."""
    num_first: int = 0
    """So many turns at the beginning stay for ever."""

    def starts(self, history: History, first: int = 0) -> Iterator[int]:
        """The first turn that stayed, each time the model was asked; the last one holds for the
        new turn. Begins where the turns before `first` are gone already."""
        start = max(first, self.num_first)
        for turn, asked_at in history.asked:
            start = self._moved(history, start, turn, asked_at)
            yield start

    def start(self, history: History, first: int = 0) -> int:
        """The first turn that stays now. Never more than the new turn's index."""
        start = min(max(first, self.num_first), max(0, len(history.turns) - 1))
        for start in self.starts(history, first):  # noqa: B007 - the last one counts
            pass
        return min(start, max(0, len(history.turns) - 1))

    def _moved(self, history: History, start: int, turn: int, asked_at: int) -> int:
        if start < turn and self._is_too_long(history, start, turn):
            start = turn - (self.keep_turns or 0)
        if self._num_tokens(history, start, asked_at) > self.max_tokens:
            while start < turn and self._num_tokens(history, start, asked_at) > self.low_tokens:
                start += 1
        return start

    def _is_too_long(self, history: History, start: int, turn: int) -> bool:
        if self.keep_turns is None:
            return False
        return turn - start > self.keep_turns + (self.keep_turns + 1) // 2

    def _num_tokens(self, history: History, start: int, asked_at: int) -> int:
        sums, turns = history.sums, history.turns
        begin = turns[start][0] if start < len(turns) else asked_at
        num_tokens = sums[asked_at] - sums[min(begin, asked_at)]
        if num_first := min(self.num_first, start):
            num_tokens += sums[turns[num_first - 1][1]]
        return num_tokens
