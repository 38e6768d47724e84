"""A part of a list of items, as `after`, `limit` and `order` ask for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.errors import InvalidRequest
from headrace.wire.ask import JSON
from headrace.wire.conversation_objects import list_object
from headrace.wire.conversation_requests import Page


def page(items: Sequence[dict[str, JSON]], wanted: Page) -> dict[str, JSON]:
    """`items`: all of them, eldest first. Raises `InvalidRequest` where `after` names none."""
    shown = list(reversed(items)) if wanted.newest_first else list(items)
    if wanted.after is not None:
        shown = shown[_place(shown, wanted.after) + 1 :]
    return part(shown, wanted.limit)


def part(items: Sequence[dict[str, JSON]], limit: int) -> dict[str, JSON]:
    """The first of these."""
    return list_object(items[:limit], has_more=len(items) > limit)


def _place(items: Sequence[Mapping[str, JSON]], after: str) -> int:
    for index, item in enumerate(items):
        if item["id"] == after:
            return index
    raise InvalidRequest(f"`after`: there is no item `{after[:100]}` here", param="after")
