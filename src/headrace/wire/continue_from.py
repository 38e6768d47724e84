"""`continue_from`: go on with the text of a stream that is kept, without sending it again.

In: a body, and what the stream was asked and said. Out: the body that says the same in full.
Next: `chat_request.py`, `completion_request.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from headrace.errors import InvalidRequest
from headrace.wire.ask import JSON, Ask
from headrace.wire.body import BodyLimits
from headrace.wire.fields import Table, field, ours
from headrace.wire.kinds import Text, Whole
from headrace.wire.reading import Reading

NAME: Final = "continue_from"
_MOST_CHOICES = 128
_TABLE: Final = Table(
    field("stream_id", Text(r"[\s\S]+", "the id of a stream"), required=True),
    field("choice", Whole(0, _MOST_CHOICES - 1), note="Which of its answers, from 0."),
)
CONTINUE_FROM: Final = ours(
    NAME,
    _TABLE,
    note="Go on with what a kept stream has said, as if its text had been sent. What it was asked "
    "may be left out, too. The stream must have ended; 409 where it still runs.",
)


@dataclass(frozen=True, slots=True)
class ContinueFrom:
    """Which answer is gone on with."""

    stream_id: str
    choice: int = 0


def continue_from(
    body: Mapping[str, JSON], limits: BodyLimits, *, strict: bool
) -> ContinueFrom | None:
    """What `body` goes on with, if anything. Raises `InvalidRequest`."""
    value = body.get(NAME)
    if value is None:
        return None
    return ContinueFrom(**_TABLE.read(value, (NAME,), Reading(limits, strict=strict)))


def in_full(body: Mapping[str, JSON], ask: Ask, text: str) -> dict[str, JSON]:
    """`body` with what the stream was asked and has said, where `ask` was its question. Raises
    `InvalidRequest` where that cannot be said in full."""
    full = {name: value for name, value in body.items() if name != NAME}
    if ask.messages is not None:
        return _chat_in_full(full, ask, text)
    prompt = full.get("prompt") or ask.prompt
    if not isinstance(prompt, str):
        raise InvalidRequest(
            f"`{NAME}` goes on with a prompt of text; send the tokens of this one, and of its "
            "answer, as `prompt`",
            param=NAME,
        )
    return full | {"prompt": prompt + text}


def _chat_in_full(full: dict[str, JSON], ask: Ask, text: str) -> dict[str, JSON]:
    if full.get("prompt"):
        raise InvalidRequest(
            f"`prompt` and `{NAME}` both say how the answer begins; send one of them",
            param="prompt",
        )
    messages = full.get("messages") or [dict(message) for message in ask.messages or ()]
    return full | {"messages": messages, "prompt": text}
