"""What is kept, as values: conversations, their messages, and a turn that is going on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from headrace.conversations.strategies.values import Message

Status: TypeAlias = Literal["in_progress", "completed", "incomplete", "failed"]
"""`incomplete`: the answer broke off, and what was said of it is kept; `failed`: by an error."""
Data: TypeAlias = Mapping[str, Any]
"""JSON."""


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """How much, and how long."""

    max_messages: int = 10_000
    """Of one conversation, all branches together."""
    ttl_s: float | None = None
    """How long a conversation is kept after its last use; None: until it is deleted."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One tenant's, under the tenant's own id."""

    number: int
    """The row's."""
    tenant: str
    id: str
    title: str | None
    metadata: Data
    context: Data | None
    """How it becomes a prompt, where a request does not say."""
    head_id: str | None
    """The last message of the branch that is told; None while there is none."""
    created_at: float
    """Unix seconds, as all moments here."""
    updated_at: float


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One message of a conversation's tree. What was said does not change; only the answer of a
    turn that is going on grows."""

    id: str
    parent_id: str | None
    role: str
    message: Message
    """As the wire has it, and chat templates read it."""
    token_ids: tuple[int, ...] | None = None
    """Those that an answer was generated as; None for what was only ever text."""
    status: Status = "completed"
    created_at: float = 0.0
    num_tokens: int | None = None
    """Of an answer: all that were generated. None where nobody has counted."""
    turn_id: str | None = None
    """Which turn it came with; None for what was put here otherwise."""
    metadata: Data = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange that has been let in."""

    id: str
    tenant: str
    conversation_id: str | None
    """None: nobody can name it."""
    number: int | None
    """The conversation's row; None: it is made when the turn is kept."""
    parent_id: str | None
    """What the new messages follow."""
    history: Sequence[StoredMessage]
    """From the conversation's beginning to the parent."""
    context: Data | None = None
    """The conversation's own settings of how it becomes a prompt."""
    is_new: bool = False
    """The conversation was made for this turn."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer so far."""

    message: Message
    token_ids: tuple[int, ...]
    status: Status
    metadata: Data = field(default_factory=dict)
    shown: Data = field(default_factory=dict)
    """What a response object says of its end."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One message that a search found."""

    conversation: Conversation
    message: StoredMessage
