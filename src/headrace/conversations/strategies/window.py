"""Which turns a window has let go of: found anew from the history, the same at every replay.

Turns go in blocks: none until the window is full, then so many that half of it is free. So the
prompt's prefix stays the same for many turns, and each token that is dropped costs about one that
is computed anew.

    full     |system|turn 1|turn 2|turn 3|turn 4|turn 5|new|
    dropped  |system|                    |turn 4|turn 5|new|            |
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
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
        """The first turn that stayed, at the beginning and each time that it was another one; the
        last one holds for the new turn. Begins where the turns before `first` are gone already."""
        start = max(first, self.num_first)
        yield start
        asking = 0
        while (asking := self._too_long(history, start, asking)) < len(history.asked):
            turn, asked_at = history.asked[asking]
            start = self._moved(history, start, turn, asked_at)
            yield start
            asking += 1

    def start(self, history: History, first: int = 0) -> int:
        """The first turn that stays now. Never more than the new turn's index."""
        start = min(max(first, self.num_first), max(0, len(history.turns) - 1))
        for start in self.starts(history, first):  # noqa: B007 - the last one counts
            pass
        return min(start, max(0, len(history.turns) - 1))

    def _too_long(self, history: History, start: int, asking: int) -> int:
        """The first time from `asking` on that the model was asked and too much was there."""
        asked, sums = history.asked, history.sums
        most = self.max_tokens + self._begin(history, start)
        found = bisect_right(asked, most, asking, key=lambda one: sums[one[1]])
        if self.keep_turns is not None:
            last = start + self._most_turns(self.keep_turns)
            found = min(found, bisect_right(asked, last, asking, key=lambda one: one[0]))
        return found

    def _moved(self, history: History, start: int, turn: int, asked_at: int) -> int:
        if self.keep_turns is not None and turn - start > self._most_turns(self.keep_turns):
            start = turn - self.keep_turns
        num_tokens = history.sums[asked_at]
        if start < turn and num_tokens - self._begin(history, start) > self.max_tokens:
            least = num_tokens - self.low_tokens
            turns = range(start, turn)
            start += bisect_left(turns, least, key=lambda one: self._begin(history, one))
        return start

    def _most_turns(self, keep_turns: int) -> int:
        return keep_turns + (keep_turns + 1) // 2

    def _begin(self, history: History, start: int) -> int:
        """Tokens of the history that do not count where `start` is the first turn that stays: those
        before it, but for the turns that stay for ever."""
        sums, turns = history.sums, history.turns
        before = sums[turns[start][0]] if start < len(turns) else sums[-1]
        return before - (sums[turns[self.num_first - 1][1]] if self.num_first else 0)
