"""How many tokens each message adds to a prompt, by one model's template.

In: messages. Out: `Item`s. Thread: any. Next: `planning.py`.

A turn is measured alone, as the difference that it makes to a rendered prompt, and remembered; so
a conversation that grows by a turn costs the rendering of that turn. What the template writes
whatever the messages are is counted apart (`fixed`):

    prompt = fixed + system messages + turns

That is exact where a template writes message after message, as nearly all do. In a template that
rewrites history, a turn counts as it is shown once another follows it.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any, TypeAlias

import orjson

from headrace.conversations.strategies.history import askings, turns_of
from headrace.conversations.strategies.values import Item, Message
from headrace.errors import HeadraceError

Prompt: TypeAlias = Callable[[Sequence[Message], Mapping[int, Sequence[int]]], Sequence[int]]
"""Messages, and answers' token ids by index → the prompt that asks for the next answer."""

_USER: Message = {"role": "user", "content": "x"}
_ANSWER: Message = {"role": "assistant", "content": "y"}
_NO_IDS: Mapping[int, Sequence[int]] = {}
MAX_COUNTS = 1 << 20
"""Numbers, of four bytes each."""


class Counts:
    """What was counted, by what it was counted of: the last so many numbers. Any thread."""

    def __init__(self, capacity: int = MAX_COUNTS) -> None:
        self._capacity = capacity
        self._counts: OrderedDict[bytes, array[int]] = OrderedDict()
        self._num = 0
        self._lock = threading.Lock()

    def get(self, key: bytes, count: Callable[[], Sequence[int]]) -> Sequence[int]:
        """The counts under `key`, counted where they are not there."""
        with self._lock:
            if (known := self._counts.get(key)) is not None:
                self._counts.move_to_end(key)
                return known
        # With signs: a template may show less where there is more to show.
        counted = array("i", count())
        with self._lock:
            self._num += len(counted) - len(self._counts.get(key, ()))
            self._counts[key] = counted
            while self._num > self._capacity:
                self._num -= len(self._counts.popitem(last=False)[1])
        return counted


class Measure:
    """Counts for one model, one set of template variables, and one way of asking."""

    def __init__(self, prompt: Prompt, counts: Counts, scope: bytes = b"") -> None:
        """`scope`: what `prompt` depends on beside its arguments; counts of several measures may
        lie in one place."""
        self._prompt = prompt
        self._counts = counts
        self._scope = scope

    def items(
        self, messages: Sequence[Message], answer_ids: Mapping[int, Sequence[int]] = _NO_IDS
    ) -> list[Item]:
        """The conversation with its counts; ids are indices. Raises what the template raises."""
        turns = turns_of(_roles(messages))
        start = turns[-1][0] if turns else len(messages)
        counts = [*self._earlier(messages[:start], turns[:-1], answer_ids)]
        if turns:
            ids = _between(answer_ids, start, len(messages))
            counts += self._known_turn(messages[start:], ids, is_new=True)
        return [
            Item(message, counted, str(index))
            for index, (message, counted) in enumerate(zip(messages, counts, strict=True))
        ]

    def _earlier(
        self,
        messages: Sequence[Message],
        turns: Sequence[tuple[int, int]],
        answer_ids: Mapping[int, Sequence[int]],
    ) -> Sequence[int]:
        """Of all before the new turn. Looked up in one place, where the turn before has put it."""

        def one_by_one() -> list[int]:
            counts = self._head(messages[: turns[0][0] if turns else len(messages)])
            for start, end in turns:
                ids = _between(answer_ids, start, end)
                counts += self._known_turn(messages[start:end], ids, is_new=False)
            return counts

        key = self._key(messages, _between(answer_ids, 0, len(messages)), b"earlier")
        return self._counts.get(key, one_by_one)

    def fixed(self, head: Sequence[Message]) -> int:
        """What a prompt has beside its messages, where these are its first system messages."""
        return self._count([*head, _USER]) - sum(self._head(head)) - self._user

    def added(self, before: Sequence[Message], after: Sequence[Message]) -> int:
        """Tokens by which a prompt that begins with the system messages `after` is longer than one
        that begins with `before`; not less than 0."""
        return max(0, self._count([*after, _USER]) - self._count([*before, _USER]))

    def text(self, text: str) -> int:
        """Tokens that a text adds to a user's message, about."""
        return max(0, self._count([{**_USER, "content": f"x\n\n{text}"}]) - self._empty)

    def _head(self, head: Sequence[Message]) -> list[int]:
        """Of the first system messages: all of what is there because of them."""
        counts: list[int] = []
        before = self._bare if head else 0
        for index in range(len(head)):
            now = self._count([*head[: index + 1], _USER])
            counts.append(now - before)
            before = now
        return counts

    def _known_turn(
        self, turn: Sequence[Message], ids: Mapping[int, Sequence[int]], *, is_new: bool
    ) -> Sequence[int]:
        """Most turns have been there before, if not in the same company."""
        key = self._key(turn, ids, b"new" if is_new else b"turn")
        return self._counts.get(key, lambda: self._turn(turn, ids, is_new=is_new))

    def _turn(
        self, turn: Sequence[Message], ids: Mapping[int, Sequence[int]], *, is_new: bool
    ) -> list[int]:
        """Message by message: from one prompt that was asked in this turn to the next."""
        roles = _roles(turn)
        ends = [end for _, end in askings(roles, turns_of(roles))]
        if is_new and turn[-1].get("role") == "assistant":
            # It is gone on from: its end and the beginning of another answer are not written.
            return [*self._turn(turn[:-1], ids, is_new=True), self._content(turn[-1])]
        sums = [self._count(turn[:end], ids) - self._empty + self._user for end in ends]
        if not is_new:
            whole = self._count([*turn, _USER], ids) - self._empty
            sums[-1:] = [whole] if ends[-1] == len(turn) else [sums[-1], whole]
            ends = [*ends, len(turn)] if ends[-1] != len(turn) else ends
        counts: list[int] = []
        before = 0
        for total, end in zip(sums, ends, strict=True):
            counts += self._shared_out(turn[len(counts) : end], max(0, total - before))
            before = max(before, total)
        return counts

    def _shared_out(self, messages: Sequence[Message], total: int) -> list[int]:
        """Calls and their results are asked about together: the results count their own words."""
        own = [self._content(message) for message in messages[1:]]
        if sum(own) > total:
            own = [0] * len(own)
        return [total - sum(own), *own] if messages else []

    def _content(self, message: Message) -> int:
        content = message.get("content")
        if not isinstance(content, str) or not content:
            return 0
        return max(0, self._count([{**_USER, "content": content}]) - self._empty + 1)

    @cached_property
    def _empty(self) -> int:
        """A prompt of the least question."""
        return self._count([_USER])

    @cached_property
    def _user(self) -> int:
        """The least question's own tokens."""
        try:
            return self._count([_USER, _USER]) - self._empty
        except HeadraceError:
            # Roles must take turns here: what is left of a turn when an answer's words are gone.
            return (self._count([_USER, _ANSWER, _USER]) - self._empty) // 2

    @cached_property
    def _bare(self) -> int:
        """The least prompt with a system message, without that message. Templates may have one of
        their own where there is none, so its end is where the user's message begins."""
        spoken = self._count([{"role": "system", "content": "x"}, _USER])
        # The two messages are one token each, in the same markers.
        return max(self._user, min(self._empty, spoken - self._user))

    def _count(
        self, messages: Sequence[Message], ids: Mapping[int, Sequence[int]] = _NO_IDS
    ) -> int:
        ids = _between(ids, 0, len(messages))
        key = self._key(messages, ids, b"prompt")
        return self._counts.get(key, lambda: [len(self._prompt(messages, ids))])[0]

    def _key(
        self, messages: Sequence[Message], ids: Mapping[int, Sequence[int]], kind: bytes
    ) -> bytes:
        said: Any = [*messages]
        if ids:
            said.append(sorted((index, list(tokens)) for index, tokens in ids.items()))
        return blake2b(orjson.dumps(said) + kind + self._scope, digest_size=16).digest()


def _between(ids: Mapping[int, Sequence[int]], start: int, end: int) -> Mapping[int, Sequence[int]]:
    """Those of some messages, by their places among these."""
    if not ids:
        return ids
    return {index - start: tokens for index, tokens in ids.items() if start <= index < end}


def _roles(messages: Sequence[Message]) -> list[str]:
    return [str(message.get("role", "")) for message in messages]
