"""Conversations as the API shows them: objects, lists of items, exports.

The shapes of conversations and items are OpenAI's; `title`, `context` and `head_id` are ours, as
are exports: the whole tree, to be imported again, or one branch as Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from headrace.wire.ask import JSON
from headrace.wire.items import items_of


class Conversation(Protocol):
    """What is shown of one."""

    @property
    def id(self) -> str: ...
    @property
    def title(self) -> str | None: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def context(self) -> Mapping[str, Any] | None: ...
    @property
    def head_id(self) -> str | None: ...
    @property
    def created_at(self) -> float: ...
    @property
    def updated_at(self) -> float: ...


class StoredMessage(Protocol):
    """What is shown of one."""

    @property
    def id(self) -> str: ...
    @property
    def parent_id(self) -> str | None: ...
    @property
    def message(self) -> Mapping[str, Any]: ...
    @property
    def status(self) -> str: ...
    @property
    def created_at(self) -> float: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def token_ids(self) -> tuple[int, ...] | None: ...


def conversation_object(conversation: Conversation) -> dict[str, JSON]:
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": int(conversation.created_at),
        "metadata": conversation.metadata,
        "title": conversation.title,
        "context": conversation.context,
        "head_id": conversation.head_id,
        "updated_at": int(conversation.updated_at),
    }


def deleted_object(conversation_id: str) -> dict[str, JSON]:
    return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}


def list_object(data: Sequence[Mapping[str, JSON]], has_more: bool) -> dict[str, JSON]:
    """A page of things that have ids."""
    return {
        "object": "list",
        "data": list(data),
        "first_id": data[0]["id"] if data else "",
        "last_id": data[-1]["id"] if data else "",
        "has_more": has_more,
    }


def items(messages: Sequence[StoredMessage]) -> list[dict[str, JSON]]:
    """All items of a branch, in order."""
    return [item for each in messages for item in items_of(each.message, each.id, each.status)]


def hit_object(conversation: Conversation, message: StoredMessage) -> dict[str, JSON]:
    """What a search found."""
    return {
        "id": message.id,
        "object": "conversation.hit",
        "conversation": conversation_object(conversation),
        "items": items_of(message.message, message.id, message.status),
    }


def export_object(conversation: Conversation, messages: Sequence[StoredMessage]) -> dict[str, JSON]:
    """The whole tree, eldest first."""
    return {
        **conversation_object(conversation),
        "object": "conversation.export",
        "messages": [
            {
                "id": each.id,
                "parent_id": each.parent_id,
                "message": each.message,
                "status": each.status,
                "created_at": each.created_at,
                "metadata": each.metadata,
                "token_ids": each.token_ids,
            }
            for each in messages
        ],
    }


def markdown(conversation: Conversation, messages: Sequence[StoredMessage]) -> str:
    """One branch, for people."""
    title = " ".join((conversation.title or conversation.id).split())
    parts = [f"# {title}"]
    for each in messages:
        parts.append(f"## {str(each.message['role']).capitalize()}")
        parts += _said(each.message)
        if each.metadata.get("finish_reason") == "length":
            parts.append("*(cut at its limit of tokens)*")
        elif each.status in ("incomplete", "failed"):
            parts.append("*(broke off)*")
    return "\n\n".join(parts) + "\n"


def _said(message: Mapping[str, Any]) -> list[str]:
    said = [str(message["content"])] if message.get("content") else []
    for call in message.get("tool_calls") or ():
        said.append(f"Calls `{call['function']['name']}` with `{call['function']['arguments']}`.")
    return said
