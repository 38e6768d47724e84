"""Stored responses as the API shows them, in OpenAI's shapes.

In: what is kept of one. Out: JSON values. Next: `server/kept_responses.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from headrace.wire.ask import JSON
from headrace.wire.items import items_of

_STATES: Final = frozenset({"in_progress", "completed", "failed"})
"""A response knows one more, `incomplete`."""


class KeptAnswer(Protocol):
    """What is shown of the answer."""

    @property
    def id(self) -> str: ...
    @property
    def message(self) -> Mapping[str, Any]: ...
    @property
    def status(self) -> str: ...
    @property
    def created_at(self) -> float: ...


def response_object(
    response_id: str, answer: KeptAnswer, shown: Mapping[str, JSON]
) -> dict[str, JSON]:
    """As it was answered, with the items that its answer has now. `shown`: what else is kept."""
    status = answer.status if answer.status in _STATES else "incomplete"
    if shown.get("status", "in_progress") != "in_progress":
        status = shown["status"]
    has_said = any(answer.message.get(name) for name in ("content", "reasoning", "tool_calls"))
    is_begun = has_said or answer.status != "in_progress"
    items = items_of(answer.message, answer.id, answer.status) if is_begun else []
    least = {"id": response_id, "object": "response", "created_at": int(answer.created_at)}
    return {**(shown or least), "status": status, "output": items}


def deleted_object(response_id: str) -> dict[str, JSON]:
    return {"id": response_id, "object": "response", "deleted": True}
