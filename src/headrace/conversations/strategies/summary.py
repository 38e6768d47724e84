"""Old turns give way to a summary of them, before they must.

Beyond `trigger_at_ratio` of the budget the oldest turns are to be condensed, in blocks as a window
drops them. A summary takes a while: until it is there, all stays as it was if it fits, and else the
block is left out, as a sliding window does. Either way, what follows the block stays the same.

    full    |system          |turn 1|turn 2|turn 3|turn 4|turn 5|new|
    ready   |system + summary of 1-3              |turn 4|turn 5|new|
    late    |system                               |turn 4|turn 5|new|
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from headrace.conversations.strategies.history import History
from headrace.conversations.strategies.values import Budget, Condense, Item, Plan
from headrace.conversations.strategies.window import LEFT_RATIO, Window

_SHARE = 8
"""A summary may take the budget's eighth, within these bounds."""
_LEAST_TOKENS, _MOST_TOKENS = 32, 512

Find: TypeAlias = Callable[[Condense], Item | None]


def _nothing(wanted: Condense) -> Item | None:
    return None


@dataclass(frozen=True, slots=True)
class Summary:
    """The newest turns, and a summary of all before them."""

    trigger_at_ratio: float = 0.75
    find: Find = _nothing
    """Tells a summary that is there."""

    def wanted(self, whole: History, budget: Budget) -> tuple[Condense, ...]:
        """The summaries that this conversation has come to want until now, oldest first. It can do
        with the newest one."""
        return tuple(
            self._condense(whole, budget, first, end) for first, end in self._blocks(whole, budget)
        )

    def plan(self, whole: History, budget: Budget) -> Plan:
        blocks = self._blocks(whole, budget)
        wanted = blocks[-1][1] if blocks else 0
        ready, summary = self._newest(whole, budget, blocks)
        everything = Plan(
            kept=whole.kept(ready),
            summarised=whole.between(0, ready),
            summary=summary,
            turn=whole.turn,
            num_fixed=budget.num_fixed,
            pending=tuple(
                self._condense(whole, budget, first, end) for first, end in blocks if end > ready
            ),
        )
        if ready == wanted or everything.num_tokens <= budget.max_tokens:
            return everything
        return Plan(
            kept=whole.kept(wanted),
            dropped=whole.between(ready, wanted),
            summarised=everything.summarised,
            summary=summary,
            turn=whole.turn,
            num_fixed=budget.num_fixed,
            pending=everything.pending,
        )

    def _newest(
        self, whole: History, budget: Budget, blocks: Sequence[tuple[int, int]]
    ) -> tuple[int, Item | None]:
        """Up to which turn there is a summary, and that summary."""
        for first, end in reversed(blocks):
            if (summary := self.find(self._condense(whole, budget, first, end))) is not None:
                return end, summary
        return 0, None

    def _blocks(self, whole: History, budget: Budget) -> list[tuple[int, int]]:
        """[first, end) turns of each block that was to be condensed, in order."""
        room = int(self.trigger_at_ratio * budget.max_tokens) - budget.num_fixed - whole.num_system
        room -= _num_summary_tokens(budget)
        window = Window(max_tokens=room, low_tokens=int(LEFT_RATIO * room))
        ends = sorted({start for start in window.starts(whole) if start})
        return list(zip([0, *ends], ends, strict=False))

    def _condense(self, whole: History, budget: Budget, first: int, end: int) -> Condense:
        return Condense(
            whole.between(first, end), whole.between(0, end), _num_summary_tokens(budget)
        )


def _num_summary_tokens(budget: Budget) -> int:
    return max(_LEAST_TOKENS, min(budget.max_tokens // _SHARE, _MOST_TOKENS))
