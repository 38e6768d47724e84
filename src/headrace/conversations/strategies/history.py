"""A conversation in whole turns: what always stays, and what may go, oldest first.

A turn begins with a user's message and ends before the next one, so calls and their results are
never parted. System messages belong to no turn; they stay wherever they stand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from headrace.conversations.strategies.values import Item

Span = tuple[int, int]
"""[start, end) of the history."""


@dataclass(frozen=True, slots=True)
class History:
    """The items of a conversation, and where its turns begin and end."""

    items: tuple[Item, ...]
    turns: tuple[Span, ...]
    """The last one is the new turn. Without any message but the system's there is none."""
    sums: tuple[int, ...]
    """Tokens before each item, those of system messages left out; one more for the end."""
    num_system: int
    """Tokens of all system messages."""
    has_system_in_turns: bool
    asked: tuple[tuple[int, int], ...]
    """Where the model was asked, or is: the turn, and the end of the prompt."""

    @classmethod
    def of(cls, items: Sequence[Item]) -> History:
        """Time in proportion to the number of items."""
        roles = [str(item.message.get("role", "")) for item in items]
        turns = turns_of(roles)
        num_head = turns[0][0] if turns else len(items)
        costs = [
            0 if role == "system" else item.num_tokens
            for item, role in zip(items, roles, strict=True)
        ]
        return cls(
            items=tuple(items),
            turns=turns,
            sums=tuple(accumulate(costs, initial=0)),
            num_system=sum(item.num_tokens for item in items) - sum(costs),
            has_system_in_turns="system" in roles[num_head:],
            asked=tuple(askings(roles, turns)),
        )

    @property
    def turn(self) -> tuple[Item, ...]:
        """The new turn."""
        return self.items[slice(*self.turns[-1])] if self.turns else ()

    def between(self, first_turn: int, turn: int) -> tuple[Item, ...]:
        """The messages of some turns, `turn` not included, without the system's."""
        if first_turn >= turn:
            return ()
        start, end = self.turns[first_turn][0], self.turns[turn - 1][1]
        if not self.has_system_in_turns:
            return self.items[start:end]
        return tuple(item for item in self.items[start:end] if item.role != "system")

    def kept(self, first_turn: int, num_first: int = 0) -> tuple[Item, ...]:
        """What stays before the new turn where the turns from `num_first` to `first_turn` go."""
        if not self.turns:
            return self.items
        start, end = self.turns[num_first][0], self.turns[first_turn][0]
        gone = self.items[start:end] if self.has_system_in_turns else ()
        stays = tuple(item for item in gone if item.role == "system")
        return self.items[:start] + stays + self.items[end : self.turns[-1][0]]


def turns_of(roles: Sequence[str]) -> tuple[Span, ...]:
    """Where the turns of a conversation begin and end, by its messages' roles."""
    num = len(roles)
    first = next((index for index, role in enumerate(roles) if role != "system"), num)
    starts = [index for index in range(first, num) if index == first or roles[index] == "user"]
    return tuple(zip(starts, [*starts[1:], num], strict=True)) if starts else ()


def askings(roles: Sequence[str], turns: Sequence[Span]) -> Iterator[tuple[int, int]]:
    """Each turn in which the model was asked, or is, and the end of the prompt: where an answer
    begins, and at the end of all."""
    for turn, (start, end) in enumerate(turns):
        for index in range(start + 1, end):
            if roles[index] == "assistant" and roles[index - 1] != "assistant":
                yield turn, index
    if turns:
        yield len(turns) - 1, len(roles)
