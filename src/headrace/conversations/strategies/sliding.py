"""The system prompt and the newest turns; older ones are dropped whole, in blocks."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.conversations.strategies.history import History
from headrace.conversations.strategies.values import Budget, Plan
from headrace.conversations.strategies.window import LEFT_RATIO, Window


@dataclass(frozen=True, slots=True)
class SlidingWindow:
    """As many turns as the budget holds, or `keep_turns` of them."""

    keep_turns: int | None = None
    """So many turns before the new one, and at most half as many again."""
    keep_first: int = 0
    """So many turns at the beginning stay for ever: models lean on a text's first tokens."""

    def plan(self, whole: History, budget: Budget) -> Plan:
        num_first = min(self.keep_first, max(0, len(whole.turns) - 1))
        room = budget.max_tokens - budget.num_fixed - whole.num_system
        window = Window(
            max_tokens=room,
            low_tokens=int(LEFT_RATIO * room),
            keep_turns=self.keep_turns,
            num_first=num_first,
        )
        start = window.start(whole)
        return Plan(
            kept=whole.kept(start, num_first),
            dropped=whole.between(num_first, start),
            turn=whole.turn,
            num_fixed=budget.num_fixed,
        )
