"""Summaries: how they are asked for, under which names they are kept, and where while in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol, TypeAlias

import orjson

from headrace.conversations.strategies.values import Condense, Item, Message

MAX_SUMMARIES = 4096
Owner: TypeAlias = tuple[str, str]
"""A tenant, and the id of a kept conversation."""

_OPENING = "Summary of the earlier conversation:"
_TASK = (
    "Below is the earlier part of a conversation. Write down what must be remembered to go on with "
    "it: names, numbers, dates, places, preferences, decisions and open questions, each as a short "
    "sentence. Keep what is written exactly. Invent nothing."
)


class Summarizer(Protocol):
    """Makes summaries: a model, or a script in tests."""

    async def summarise(
        self, tenant: str, block: Sequence[Message], before: str | None, max_tokens: int
    ) -> str:
        """What must be remembered of some turns, and of the summary of those before them. Raises
        `HeadraceError`."""
        ...


def condense_messages(block: Sequence[Message], before: str | None) -> list[Message]:
    """How a model is asked for a summary."""
    parts = [_TASK]
    if before:
        parts.append(f"{_OPENING}\n{before}")
    lines = [line for message in block if (line := _line(message))]
    parts.append("\n".join(["Conversation:", *lines]))
    return [{"role": "user", "content": "\n\n".join(parts)}]


def summary_text(text: str) -> str:
    """How a prompt tells a summary."""
    return f"{_OPENING}\n{text}"


def digest_of(wanted: Condense, scope: bytes = b"") -> str:
    """The name of a summary: equal for equal messages, made the same way."""
    return digest_of_items(wanted.covered, scope + b"%d" % wanted.max_tokens)


def digest_of_items(items: Sequence[Item], scope: bytes) -> str:
    said = orjson.dumps([dict(item.message) for item in items], option=orjson.OPT_SORT_KEYS)
    return blake2b(said, digest_size=32, key=blake2b(scope).digest()).hexdigest()


class Shelf:
    """Summaries in memory, those that were used last. Any thread."""

    def __init__(self, capacity: int = MAX_SUMMARIES) -> None:
        self._capacity = capacity
        self._texts: OrderedDict[str, tuple[str, Owner | None]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, digest: str) -> str | None:
        with self._lock:
            found = self._texts.get(digest)
            if found is None:
                return None
            self._texts.move_to_end(digest)
            return found[0]

    def put(self, digest: str, text: str, owner: Owner | None = None) -> None:
        """`owner`: the kept conversation with which it goes."""
        with self._lock:
            self._texts[digest] = text, owner
            self._texts.move_to_end(digest)
            if len(self._texts) > self._capacity:
                self._texts.popitem(last=False)

    def forget(self, owner: Owner) -> None:
        """Let go of all that belongs to a conversation."""
        with self._lock:
            for digest in [d for d, (_, whose) in self._texts.items() if whose == owner]:
                del self._texts[digest]


def _line(message: Message) -> str:
    """One message as a summarizer reads it."""
    content = message.get("content")
    said = [content.strip()] if isinstance(content, str) and content.strip() else []
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        said.append(
            f"calls {function.get('name')}({orjson.dumps(function.get('arguments')).decode()})"
        )
    return f"{message.get('role')}: {' '.join(said)}" if said else ""
