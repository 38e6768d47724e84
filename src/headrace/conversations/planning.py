"""A question's messages become those that its prompt shows, by the strategy that holds for it.

In: messages, a `Context`, a `Measure`. Out: `Fitted`. Thread: any; no I/O.
Next: the model's chat template.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from headrace.conversations.condensing import Shelf, digest_of, summary_text
from headrace.conversations.measure import Measure
from headrace.conversations.passages import Recalled
from headrace.conversations.strategies import (
    Budget,
    Condense,
    Full,
    Item,
    Message,
    Plan,
    SlidingWindow,
    Strategy,
    Summary,
)
from headrace.conversations.strategies.history import History
from headrace.conversations.strategies.retrieval import DEFAULT_K, Retrieval
from headrace.conversations.strategies.values import num_leading, with_summary
from headrace.errors import ContextLengthExceeded, InvalidRequest
from headrace.wire.ask import Context, StrategyName

DEFAULT_RATIO = 0.75


@dataclass(frozen=True, slots=True)
class Room:
    """How long a prompt may be, by what sets that."""

    context_length: int
    """Tokens that the model's context holds, prompt and answer together."""
    num_answer: int
    """Tokens that are held free for the answer."""

    @property
    def max_tokens(self) -> int:
        return max(1, self.context_length - self.num_answer)

    def budget(self, context: Context, num_fixed: int) -> Budget:
        asked = context.max_tokens or self.context_length
        return Budget(min(asked, self.max_tokens), num_fixed)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What became of a conversation."""

    strategy: StrategyName
    plan: Plan
    budget: Budget
    time_s: float
    """What that took."""
    has_fallen_back: bool = False
    recalled: Recalled | None = None
    """What was looked for, where the strategy wanted that."""

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(self.plan.messages())

    def moved(self, answer_ids: Mapping[int, Sequence[int]]) -> dict[int, Sequence[int]]:
        """`answer_ids`, by indices of the conversation, by those of the prompt's messages."""
        if not answer_ids:
            return {}
        items = (*self.plan.kept, *self.plan.turn)
        by_message = {id(item.message): int(item.id) for item in items}
        places = [by_message.get(id(message), -1) for message in self.messages]
        return {now: answer_ids[old] for now, old in enumerate(places) if old in answer_ids}


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans for one question."""

    measure: Measure
    room: Room
    frame: Callable[[Sequence[Message]], int] = lambda head: 0
    """System messages → further tokens that the template writes: tools, instructions."""
    shelf: Shelf = field(default_factory=Shelf)
    """Summaries that are there."""
    scope: bytes = b""
    """Whose summaries, made how."""
    can_shift: bool = False
    """The turn before has left its banks."""
    recalled: Recalled = field(default_factory=Recalled)
    """What was found for the question, where that was looked for."""

    def fit(
        self,
        messages: Sequence[Message],
        context: Context,
        answer_ids: Mapping[int, Sequence[int]] | None = None,
    ) -> Fitted:
        """Raises `ContextLengthExceeded`, naming the numbers, where `full` does not fit and nothing
        was to take its place; `InvalidRequest` for what cannot be had; and what the template
        raises."""
        start = time.perf_counter()
        items = self.measure.items(messages, answer_ids or {})
        head = [item.message for item in items[: num_leading(items, "system")]]
        num_fixed = self.measure.fixed(head) + self.frame(head)
        budget = self.room.budget(context, num_fixed)
        name = context.strategy or "full"
        whole = History.of(items)
        plan = self._strategy(name, context, head).plan(whole, budget)
        has_fallen_back = False
        if name == "full" and plan.num_tokens > budget.max_tokens:
            if context.fallback is None:
                raise _too_long(plan, budget, self.room, context)
            name, has_fallen_back = context.fallback, True
            plan = self._strategy(name, context, head).plan(whole, budget)
        recalled = self.recalled if name == "retrieval" else None
        return Fitted(name, plan, budget, time.perf_counter() - start, has_fallen_back, recalled)

    def _strategy(self, name: StrategyName, context: Context, head: Sequence[Message]) -> Strategy:
        match name:
            case "full":
                return Full()
            case "sliding_window":
                if context.mode == "shift" and not self.can_shift:
                    raise InvalidRequest(
                        "`context.mode`: `shift` moves the banks that a kept conversation has; "
                        "name a `conversation`, or leave it out",
                        param="context.mode",
                    )
                return SlidingWindow(context.keep_turns, context.keep_first or 0)
            case "summary":
                ratio = context.trigger_at_ratio or DEFAULT_RATIO
                return Summary(ratio, lambda wanted: self._summary(wanted, head))
            case "retrieval":
                found = self.recalled.passages(context.k, self.measure.text)
                return Retrieval(found, context.k or DEFAULT_K, context.keep_turns)

    def _summary(self, wanted: Condense, head: Sequence[Message]) -> Item | None:
        """The one that is wanted, if it is there."""
        text = self.shelf.get(digest_of(wanted, self.scope))
        if text is None:
            return None
        message = {"role": "system", "content": summary_text(text)}
        return Item(message, self.measure.added(head, with_summary([*head], message)))


def _too_long(plan: Plan, budget: Budget, room: Room, context: Context) -> ContextLengthExceeded:
    if context.max_tokens is not None and context.max_tokens < room.max_tokens:
        limit, param = "allowed by `context.max_tokens`", "context.max_tokens"
    else:
        limit = (
            f"left by the context of {room.context_length} beside {room.num_answer} for the answer"
        )
        param = "messages"
    num_earlier = len(History.of(plan.kept).turns)
    return ContextLengthExceeded(
        f"Please reduce the length of the messages. The prompt has {plan.num_tokens} tokens, those "
        f"of {num_earlier} earlier turns among them; {budget.max_tokens} are {limit}. Another "
        "`context.strategy`, or a `context.fallback`, leaves out the oldest turns.",
        param=param,
    )
