"""The rows by which a request names its conversation: `conversation`, `queue`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from headrace.errors import ConversationNotFound, DocumentNotFound, InvalidRequest
from headrace.wire.ask import Place
from headrace.wire.fields import Given, Table, field, ours
from headrace.wire.kinds import Boolean, ByType, Text, Then
from headrace.wire.messages import Message, is_unfinished
from headrace.wire.reading import Path, Reading

MAX_ID: Final = 128
ID: Final = Text(rf"[^\x00-\x1f\x7f]{{1,{MAX_ID}}}", f"1 to {MAX_ID} characters, none of control")
REFERENCE: Final = Text(r"[^\x00]*", "an id, which has no NUL character")
"""Names what is kept already. PostgreSQL takes no NUL, not even to look for it."""


def check_path(names: Mapping[str, str]) -> None:
    """Raise `ConversationNotFound` or `DocumentNotFound` for a path's ids that nothing has."""
    for name, value in names.items():
        if "\0" in value:
            missing = DocumentNotFound if name == "document" else ConversationNotFound
            raise missing(f"`{name}`: no id has a NUL character")


def _named(value: str | Given, path: Path, reading: Reading) -> Given:
    return {"id": value} if isinstance(value, str) else value


CONVERSATION: Final = ours(
    "conversation",
    Then(
        ByType(
            {
                str: ID,
                dict: Table(
                    field("id", ID, required=True),
                    ours("create", Boolean(), note="Make it, where there is none yet."),
                    ours(
                        "after", REFERENCE, note="The message that the new ones follow, or `root`."
                    ),
                ),
            },
            "a conversation's id, or an object with one",
        ),
        _named,
    ),
    note="The kept conversation that this is a turn of: it is told before the new messages, which "
    "are kept with the answer.",
)
QUEUE: Final = ours(
    "queue", Boolean(), note="Wait for the conversation's turn that is going on; else it is 409."
)


def place_of(given: Given, *, num_passing: int = 0) -> Place | None:
    """Where the turn goes on; None where no conversation is named."""
    named: dict[str, Any] | None = given.get("conversation")
    if named is None:
        return None
    return Place(
        conversation_id=named["id"],
        creates=bool(named.get("create")),
        after=named.get("after"),
        queue=bool(given.get("queue")),
        num_passing=num_passing,
    )


def check_place(last: Message, name: str, n: int = 1) -> None:
    """Raise `InvalidRequest` for what is no turn: an answer that was begun by somebody else, or
    several of them."""
    if is_unfinished(last):
        raise InvalidRequest(
            f"`{name}` must not end with the assistant's message in a kept conversation: its "
            "answers are the model's own",
            param=name,
        )
    if n != 1:
        raise InvalidRequest("`n` must be 1 in a kept conversation", param="n")
