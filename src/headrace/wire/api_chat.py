"""`POST /api/chat`: a prompt and a conversation's id in, tokens out, as guides have it.

In: a JSON object; events. Out: an `Ask`; frames. Next: `server/api_chat.py`.

    {"prompt": "Hi", "conversation_id": "c-1"}  →  data: {"token":"Hello"}   …   data: [DONE]

An error is one line, `data: {"error":…}`, without a `[DONE]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from headrace.errors import HeadraceError, InvalidRequest
from headrace.events import Delta, Event, Failed, Finished
from headrace.wire.ask import JSON, Ask, Context, Place
from headrace.wire.body import BodyLimits
from headrace.wire.common_fields import MAX_TOKENS, MODEL, SAMPLING
from headrace.wire.context_field import CONTEXT
from headrace.wire.error_body import error_body
from headrace.wire.fields import Field, Table, field, ours
from headrace.wire.ids import conversation_id
from headrace.wire.json_bytes import quoted
from headrace.wire.kinds import Text
from headrace.wire.place_fields import ID, QUEUE
from headrace.wire.reading import Reading
from headrace.wire.sse import DONE, frame

DEFAULT_MODEL: Final = "llama-3.1-8b-instant"
"""Where the body names none: the guides' own."""
CUSTOM: Final = Context(strategy="sliding_window")
"""Guides have histories trimmed by hand; here they need not."""
_SAMPLING = [row for row in SAMPLING if row.name in ("temperature", "top_p", "seed", "stop")]

API_CHAT: Final = Table(
    field(
        "prompt",
        Text(r"[\s\S]+", "a text that is not empty"),
        note="What the user says.",
        required=True,
    ),
    ours("conversation_id", ID, note="Any name for the conversation; made on first use."),
    ours("conversationId", ID, note="Another spelling of `conversation_id`."),
    Field(name="model", kind=MODEL.kind, into="model", note=MODEL.note),
    MAX_TOKENS,
    *_SAMPLING,
    QUEUE,
    CONTEXT,
)


def parse_api_chat(body: Mapping[str, JSON], limits: BodyLimits) -> Ask:
    """What `body` asks for. Raises `InvalidRequest`, naming the field."""
    reading = Reading(limits)
    given = API_CHAT.read(body, (), reading)
    snake, camel = given.get("conversation_id"), given.get("conversationId")
    if snake is not None and camel is not None and snake != camel:
        raise InvalidRequest(
            "`conversation_id` and `conversationId` differ; send one of them",
            param="conversationId",
        )
    return Ask(
        messages=({"role": "user", "content": given["prompt"]},),
        stream=True,
        place=Place(
            conversation_id=snake or camel or conversation_id(),
            creates=True,
            queue=bool(given.get("queue")),
            custom=CUSTOM,
        ),
        **{"model": DEFAULT_MODEL, **API_CHAT.settings(given, reading)},
        ignored=reading.ignored,
    )


class ApiChatStream:
    """One answer's frames. Encode every event of its one choice in order."""

    is_ended = False
    """The last frame has been given; what comes now is nothing."""

    def encode(self, event: Event) -> bytes:
        if self.is_ended:
            return b""
        match event:
            case Delta(text=text) if text:
                return b'data: {"token":%b}\n\n' % quoted(text)
            case Finished():
                self.is_ended = True
                return DONE
            case Failed(error=error):
                self.is_ended = True
                return error_frame(error)
        return b""


def error_frame(error: HeadraceError) -> bytes:
    """The one line that an error is."""
    return frame(error_body(error).rstrip())
