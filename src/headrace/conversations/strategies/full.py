"""Everything: each turn's prompt begins with the one before, so only new tokens are computed."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.conversations.strategies.history import History
from headrace.conversations.strategies.values import Budget, Plan


@dataclass(frozen=True, slots=True)
class Full:
    """Keeps all. What does not fit is refused by whoever asks, or planned by another strategy."""

    def plan(self, whole: History, budget: Budget) -> Plan:
        num_before = len(whole.items) - len(whole.turn)
        return Plan(kept=whole.items[:num_before], turn=whole.turn, num_fixed=budget.num_fixed)
