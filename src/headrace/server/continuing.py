"""Questions that go on with a kept stream: its text takes the place of its id.

In: a body. Out: the same in full. Thread: the event loop. Next: `respond.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from headrace.errors import InvalidRequest, StreamRunning
from headrace.events import Delta, ToolCall
from headrace.server.serving import Serving
from headrace.server.telling import Telling
from headrace.streams.kept import Kept
from headrace.wire.ask import JSON, Ask
from headrace.wire.continue_from import NAME, continue_from, in_full

_WITH_MESSAGES: Final[Mapping[str, bool]] = {"/chat/completions": True, "/completions": False}
"""The endpoints that go on with streams, and whether they are asked with messages."""


async def said_in_full(
    serving: Serving, tenant: str, body: Mapping[str, JSON], endpoint: str
) -> Mapping[str, JSON]:
    """`body` where it goes on with no stream; else with that stream's question and text. Raises
    `InvalidRequest`, `StreamNotFound` (also for another tenant's), `StreamGone`, `StreamRunning`
    and `ModelLoading`."""
    if endpoint not in _WITH_MESSAGES:
        return body
    wanted = continue_from(body, serving.body_limits, strict=serving.settings.strict)
    if wanted is None:
        return body
    kept = await serving.find_stream(wanted.stream_id, tenant)
    if not kept.is_over:
        raise StreamRunning(
            f"the stream `{kept.id}` still runs; read it at /v1/streams/{kept.id}, or stop it "
            "first",
            param=NAME,
        )
    ask = _question(kept, wanted.choice)
    if (ask.messages is not None) != _WITH_MESSAGES[endpoint]:
        raise InvalidRequest(
            f"`{NAME}` must name a stream of this endpoint; `{kept.id}` is of another", param=NAME
        )
    return in_full(body, ask, _text(kept, wanted.choice))


def _question(kept: Kept[Telling], choice: int) -> Ask:
    """What that answer answered."""
    asks = kept.form.form.asks
    prompt = choice // asks[0].n
    if prompt >= len(asks):
        raise InvalidRequest(
            f"`{NAME}.choice` must be below {len(asks) * asks[0].n}: the stream has no more "
            "answers",
            param=f"{NAME}.choice",
        )
    place = asks[prompt].place
    if place is not None and (place.conversation_id or place.previous_response_id):
        raise InvalidRequest(
            f"the stream `{kept.id}` is a turn of a conversation; ask that to go on", param=NAME
        )
    return asks[prompt]


def _text(kept: Kept[Telling], choice: int) -> str:
    parts = []
    for event in kept.pump.log:
        if event.choice != choice:
            continue
        if isinstance(event, ToolCall):
            raise InvalidRequest(
                f"the stream `{kept.id}` calls tools; send its calls and their results as messages",
                param=NAME,
            )
        if isinstance(event, Delta):
            parts.append(event.text)
    return "".join(parts)
