"""The tree of a conversation's messages: branches, and what a new one would need. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from headrace.conversations.values import StoredMessage
from headrace.errors import InvalidRequest


def branch(messages: Iterable[StoredMessage], head_id: str | None) -> list[StoredMessage]:
    """From the beginning to `head_id`, which is one of `messages`; empty for None."""
    by_id = {message.id: message for message in messages}
    found: list[StoredMessage] = []
    at = head_id
    while at is not None:
        found.append(by_id[at])
        at = by_id[at].parent_id
    return found[::-1]


def without(messages: Sequence[StoredMessage], gone_id: str) -> list[StoredMessage]:
    """The tree with one message taken out: what followed it follows what it followed."""
    parent_id = next(message.parent_id for message in messages if message.id == gone_id)
    return [
        replace(message, parent_id=parent_id) if message.parent_id == gone_id else message
        for message in messages
        if message.id != gone_id
    ]


def check(messages: Sequence[StoredMessage], head_id: str | None) -> None:
    """Raise `InvalidRequest` unless each message has an id of its own and follows one that stands
    before it, so that there are no circles, and the head is one of them."""
    seen: set[str] = set()
    for index, message in enumerate(messages):
        if message.id in seen:
            raise _wrong(f"messages[{index}].id", f"{message.id!r} is there twice")
        if message.parent_id is not None and message.parent_id not in seen:
            raise _wrong(f"messages[{index}].parent_id", "must be the id of a message before it")
        seen.add(message.id)
    if head_id is not None and head_id not in seen:
        raise _wrong("head_id", "must be the id of one of `messages`")


def _wrong(path: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"`{path}`: {what}", param=path)


def told(history: Sequence[StoredMessage]) -> list[StoredMessage]:
    """What of a branch a model is told: all but turns that were given no answer at all, which
    would otherwise be asked a second time with the next one. A broken answer is told as far as it
    came."""
    unanswered = {
        message.turn_id
        for message in history
        if message.role == "assistant"
        and message.status in ("incomplete", "failed")
        and not message.message.get("content")
        and not message.message.get("tool_calls")
    }
    unanswered.discard(None)
    return [
        message
        for message in history
        if message.turn_id not in unanswered and message.status != "in_progress"
    ]
