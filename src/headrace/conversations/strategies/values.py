"""What strategies work on and what they say: messages with their tokens, a budget, a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from headrace.conversations.strategies.history import History

Message: TypeAlias = Mapping[str, Any]
"""One chat message as on the wire: `{"role": "user", "content": "…"}`."""


@dataclass(frozen=True, slots=True)
class Item:
    """One message of a conversation."""

    message: Message
    num_tokens: int
    """What it adds to a prompt, its role's markers included."""
    id: str = ""
    """Where it is kept, if it is."""

    @property
    def role(self) -> str:
        return str(self.message.get("role", ""))


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a prompt may be."""

    max_tokens: int
    num_fixed: int = 0
    """Tokens that the template writes whatever the messages are: its frame, descriptions of tools,
    the answer's beginning."""


@dataclass(frozen=True, slots=True)
class Part:
    """How much of a conversation."""

    num_messages: int = 0
    num_tokens: int = 0

    @classmethod
    def of(cls, items: Iterable[Item]) -> Part:
        items = tuple(items)
        return cls(len(items), sum(item.num_tokens for item in items))


@dataclass(frozen=True, slots=True)
class Condense:
    """A summary that is wanted: of a block of turns, and of what the summary before it tells."""

    block: tuple[Item, ...]
    covered: tuple[Item, ...]
    """All that it will stand for: from the conversation's first turn to the block's end."""
    max_tokens: int
    """At most so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What becomes of each message: every one of the history is in exactly one of `kept`,
    `dropped`, `summarised` and `turn`, in order."""

    kept: tuple[Item, ...] = ()
    """Earlier messages that stay as they are, system messages among them."""
    dropped: tuple[Item, ...] = ()
    summarised: tuple[Item, ...] = ()
    """Those that `summary` stands for."""
    summary: Item | None = None
    """A text for the system prompt's end."""
    retrieved: tuple[Item, ...] = ()
    """Texts for the new turn's beginning. They may be of this conversation, too."""
    turn: tuple[Item, ...] = ()
    """The new turn: from its first message to the history's end. It always stays whole."""
    num_fixed: int = 0
    """As in the budget."""
    sources: tuple[Mapping[str, Any], ...] = ()
    """Where what was retrieved comes from, for whoever asks."""
    pending: tuple[Condense, ...] = ()
    """Summaries that are not there yet, in the order in which to make them."""

    @property
    def num_tokens(self) -> int:
        """Of the prompt, as far as counts add up."""
        parts = (*self.kept, *self.retrieved, *self.turn)
        own = sum(item.num_tokens for item in parts) + self.num_fixed
        return own + (self.summary.num_tokens if self.summary else 0)

    def messages(self) -> list[Message]:
        """The prompt's messages."""
        num_head = num_leading(self.kept, "system")
        head = [item.message for item in self.kept[:num_head]]
        if self.summary is not None:
            head = with_summary(head, self.summary.message)
        rest = [item.message for item in self.kept[num_head:]]
        turn = [item.message for item in self.turn]
        if self.retrieved:
            turn = with_passages(turn, [item.message for item in self.retrieved])
        return [*head, *rest, *turn]


class Strategy(Protocol):
    """One way to make a prompt of a conversation."""

    def plan(self, whole: History, budget: Budget) -> Plan:
        """`whole` is all of the conversation, the new turn last. Where even the least prompt is
        longer than the budget, that is the plan all the same; `Plan.num_tokens` tells."""
        ...


def num_leading(items: Sequence[Item], role: str) -> int:
    """How many of the first items are of this role."""
    return next((i for i, item in enumerate(items) if item.role != role), len(items))


def with_summary(head: list[Message], summary: Message) -> list[Message]:
    """Most templates know one system message, at the beginning: the summary joins the last one."""
    if not head:
        return [{"role": "system", "content": summary["content"]}]
    *before, last = head
    text = f"{last.get('content') or ''}\n\n{summary['content']}".lstrip()
    return [*before, {**last, "content": text}]


def with_passages(turn: list[Message], passages: Sequence[Message]) -> list[Message]:
    """In front of the turn's first words, so that what comes before stays the same prefix."""
    place = next((i for i, message in enumerate(turn) if message.get("role") == "user"), None)
    texts = [str(passage["content"]) for passage in passages]
    if place is None:
        return [{"role": "user", "content": "\n\n".join(texts)}, *turn]
    asked = turn[place]
    text = "\n\n".join([*texts, str(asked.get("content") or "")])
    return [*turn[:place], {**asked, "content": text}, *turn[place + 1 :]]
