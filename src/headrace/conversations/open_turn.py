"""One turn that is going on in this server, and what another must know to go on with it.

In: what the turn stands on. Out: its answer so far. Thread: an event loop. Next: `turns.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.conversations.values import Answer, Turn
from headrace.errors import HeadraceError
from headrace.wire.ids import message_id


@dataclass(slots=True, eq=False)
class OpenTurn:
    """A turn that is going on in this server. Its end is `done` when it is kept."""

    turn: Turn
    done: asyncio.Future[None]
    answer_id: str = field(default_factory=message_id)
    response_id: str | None = None
    """By which a later turn may name the answer."""
    shown: Mapping[str, Any] | None = None
    """The response object before its first word; None where it is not known yet."""
    number: int | None = None
    """The conversation's row, once it is known."""
    read: Callable[[], Answer] | None = None
    """The answer so far."""
    stop: Callable[[], None] = lambda: None
    """The conversation is gone: end the answer."""
    num_saved: int = 0
    """Tokens that are kept."""
    renewed_at: float = 0.0
    is_resumed: bool = False
    """Another process began it."""
    is_over: bool = False
    """Its answer had ended there."""
    is_ending: bool = False
    jobs: set[asyncio.Task[None]] = field(default_factory=set)

    def name(self, response_id: str) -> None:
        """The answer is this response, and its items have the ids that the response gives them."""
        self.response_id = response_id
        self.answer_id = message_id(response_id)

    def mark(self) -> dict[str, Any]:
        """What another process must know to go on with it."""
        turn = self.turn
        return {
            "id": turn.id,
            "tenant": turn.tenant,
            "conversation_id": turn.conversation_id,
            "number": turn.number,
            "parent_id": turn.parent_id,
            "answer_id": self.answer_id,
            "response_id": self.response_id,
        }

    def answer(self) -> Answer | None:
        """The answer so far; None where it has not begun, or cannot be read."""
        try:
            return self.read() if self.read is not None else None
        except HeadraceError:
            return None
