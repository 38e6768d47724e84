"""Everything: each turn's prompt begins with the one before, so only new tokens are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.conversations.strategies.history import History
from headrace.conversations.strategies.values import Budget, Item, Plan


@dataclass(frozen=True, slots=True)
class Full:
    """Keeps all. What does not fit is refused by whoever asks, or planned by another strategy."""

    def plan(self, history: Sequence[Item], budget: Budget) -> Plan:
        whole = History.of(history)
        num_before = len(history) - len(whole.turn)
        return Plan(kept=tuple(history[:num_before]), turn=whole.turn, num_fixed=budget.num_fixed)
