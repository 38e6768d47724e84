"""The newest turns, and the passages that answer the question: of older turns and of documents.

The turns that stay get at most half of the room, by the same window that `sliding` has, so the
prompt's prefix stays the same for many turns whatever is found. The passages stand in front of the
new question, where they change nothing before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headrace.conversations.strategies.history import History
from headrace.conversations.strategies.values import Budget, Item, Message, Plan
from headrace.conversations.strategies.window import LEFT_RATIO, Window

DEFAULT_K = 5
TURNS_RATIO = 0.5
"""The part of the room that turns may take; the rest is for passages."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A text that was found for a question."""

    message: Message
    """As the prompt shows it."""
    place: str
    """Of a message, its item's id in the history; else empty."""
    count: Callable[[], int]
    """The tokens that it adds; not counted before it is wanted, as most are not shown."""
    kind: str
    """`document` or `message`."""
    source_id: str
    title: str
    order: tuple[int, int]
    """Passages are told in this order: of their sources, then of their places in them."""
    score: float = 0.0

    def source(self, num_tokens: int) -> dict[str, Any]:
        """For whoever wants to know where it is from."""
        return {
            "type": self.kind,
            "id": self.source_id,
            "title": self.title,
            "position": self.order[1],
            "score": round(self.score, 6),
            "tokens": num_tokens,
        }


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What was found for this question, the best first; at most `k` of it is told."""

    passages: tuple[Passage, ...] = ()
    k: int = DEFAULT_K
    keep_turns: int | None = None
    """So many turns before the new one, and at most half as many again, as in `SlidingWindow`."""

    def plan(self, whole: History, budget: Budget) -> Plan:
        room = budget.max_tokens - budget.num_fixed - whole.num_system
        window = Window(
            max_tokens=int(TURNS_RATIO * room),
            low_tokens=int(LEFT_RATIO * TURNS_RATIO * room),
            keep_turns=self.keep_turns,
        )
        start = window.start(whole)
        kept, turn = whole.kept(start), whole.turn
        shown = [item for item in (*kept, *turn) if item.role != "system"]
        chosen = self._chosen(
            hidden=frozenset(item.id for item in whole.between(0, start) if item.id),
            num_free=room - sum(item.num_tokens for item in shown),
        )
        return Plan(
            kept=kept,
            dropped=whole.between(0, start),
            retrieved=tuple(item for _, item in chosen),
            turn=turn,
            num_fixed=budget.num_fixed,
            sources=tuple(passage.source(item.num_tokens) for passage, item in chosen),
        )

    def _chosen(self, hidden: frozenset[str], num_free: int) -> list[tuple[Passage, Item]]:
        """The best that fit, in order. Of messages only those that the prompt does not show: not
        what it shows anyway, nor what is on no branch of this history."""
        chosen: list[tuple[Passage, Item]] = []
        for passage in self.passages:
            if len(chosen) == self.k:
                break
            if passage.kind == "message" and passage.place not in hidden:
                continue
            item = Item(passage.message, passage.count(), passage.place)
            if item.num_tokens <= num_free:
                chosen.append((passage, item))
                num_free -= item.num_tokens
        return sorted(chosen, key=lambda one: (one[0].kind == "message", one[0].order))
