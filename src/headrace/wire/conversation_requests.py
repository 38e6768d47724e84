"""Bodies and queries of the conversations endpoints, as plain values.

In: JSON objects, query strings. Out: values, or `InvalidRequest`, naming the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from headrace.errors import InvalidRequest
from headrace.wire.ask import JSON
from headrace.wire.body import BodyLimits
from headrace.wire.context_field import KEPT_CONTEXT
from headrace.wire.fields import Table, ours
from headrace.wire.fields import field as row
from headrace.wire.items import ITEM, messages_of
from headrace.wire.kinds import Anything, Many, MapOf, Number, Object, OneOf, Text, Whole
from headrace.wire.messages import Message, plain, stored_message
from headrace.wire.place_fields import ID, REFERENCE
from headrace.wire.reading import Reading

MAX_ITEMS: Final = 20
"""Items of one request, as OpenAI has it."""
MAX_LIMIT: Final = 100
"""Of one page."""
_MAX_TITLE = 512

_METADATA = row(
    "metadata",
    MapOf(
        Text(r"[\s\S]{1,64}", "a key of 1 to 64 characters"),
        Text(r"[\s\S]{0,512}", "a text of at most 512 characters"),
        "entries",
        "max_metadata",
    ),
    note="Up to 16 texts of your own.",
)
_TITLE = ours(
    "title", Text(rf"[^\x00]{{0,{_MAX_TITLE}}}", f"at most {_MAX_TITLE} characters, none a NUL")
)
_ITEMS = Many(ITEM, "items", limit="max_messages")

CREATE: Final = Table(
    row("items", _ITEMS, note=f"What it begins with; at most {MAX_ITEMS} items."),
    _METADATA,
    ours("id", ID, note="A name of your own; else it gets one."),
    _TITLE,
    KEPT_CONTEXT,
)
UPDATE: Final = Table(_METADATA, _TITLE, KEPT_CONTEXT)
_CLEARED: Final[Mapping[str, JSON]] = {"metadata": {}, "title": None, "context": None}
ADD_ITEMS: Final = Table(row("items", _ITEMS, note="What to add.", required=True))
FORK: Final = Table(
    ours("at", REFERENCE, note="The last message that goes along; by default the last one."),
    ours("id", ID, note="The new conversation's name; else it gets one."),
    _METADATA,
)
ROLLBACK: Final = Table(
    row("to", REFERENCE, note="The message to go back to, or `root`.", required=True)
)
_EXPORTED = Table(
    row("id", REFERENCE, required=True),
    row("parent_id", REFERENCE),
    row("message", Object(), required=True),
    row("status", OneOf("in_progress", "completed", "incomplete", "failed")),
    row("created_at", Number(0, 2**53)),
    row("metadata", Object()),
    row("token_ids", Many(Whole(0), "token ids")),
)
IMPORT: Final = Table(
    row("messages", Many(_EXPORTED, "messages"), note="The tree, as exported.", required=True),
    row("head_id", REFERENCE),
    _METADATA,
    _TITLE,
    KEPT_CONTEXT,
    ours("new_id", ID, note="The conversation's name here; else it gets a new one."),
    row("object", Anything()),
    row("id", Anything()),
    row("created_at", Anything()),
    row("updated_at", Anything()),
)


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list."""

    after: str | None = None
    limit: int = 20
    newest_first: bool = True


@dataclass(frozen=True, slots=True)
class Exported:
    """One message of an export."""

    id: str
    parent_id: str | None
    message: Message
    status: Literal["completed", "incomplete", "failed"] = "completed"
    created_at: float = 0.0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    token_ids: tuple[int, ...] | None = None


def read(table: Table, body: Mapping[str, JSON], limits: BodyLimits) -> dict[str, Any]:
    """What `table` reads of a body; `items` as messages."""
    given = table.read(body, (), Reading(limits))
    if "items" in given:
        if len(given["items"]) > MAX_ITEMS:
            raise InvalidRequest(
                f"`items` has {len(given['items'])} items; at most {MAX_ITEMS} are allowed at once",
                param="items",
            )
        given["items"] = plain(messages_of(given["items"]), limits.max_depth)
    return given


def changes(body: Mapping[str, JSON], limits: BodyLimits) -> dict[str, Any]:
    """What `UPDATE` reads of a body. What is null there is cleared, not left as it was."""
    nulls = {name for name, value in body.items() if value is None}
    return {name: none for name, none in _CLEARED.items() if name in nulls} | read(
        UPDATE, body, limits
    )


def exported(given: Mapping[str, Any], limits: BodyLimits) -> list[Exported]:
    """The messages of what `IMPORT` read."""
    told = []
    for index, each in enumerate(given["messages"]):
        status = each.get("status", "completed")
        ids = each.get("token_ids")
        told.append(
            Exported(
                id=each["id"],
                parent_id=each.get("parent_id"),
                message=stored_message(each["message"], ("messages", index, "message"), limits),
                status="incomplete" if status == "in_progress" else status,
                created_at=each.get("created_at", 0.0),
                metadata=each.get("metadata", {}),
                token_ids=None if ids is None else tuple(ids),
            )
        )
    return told


def page_of(query: Mapping[str, str]) -> Page:
    """`after`, `limit`, `order`."""
    limit = query.get("limit", "20")
    # What is longer, zeros in front or not, is more digits than any page needs.
    is_short = len(limit) <= 9 and limit.isascii() and limit.isdigit()
    if not is_short or not 1 <= int(limit) <= MAX_LIMIT:
        raise InvalidRequest(
            f"`limit` must be a whole number from 1 to {MAX_LIMIT}, not {limit[:40]!r}",
            param="limit",
        )
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"`order` must be asc or desc, not {order[:40]!r}", param="order")
    after = query.get("after")
    if after is not None and "\0" in after:
        raise InvalidRequest("`after` must be an id, which has no NUL character", param="after")
    return Page(after, int(limit), order == "desc")
