"""`POST /chat/completions`: how a chat is asked for and answered.

In: a JSON object. Out: a `Form`. Next: `respond.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.events import Choice
from headrace.wire.answer_parts import Spelling
from headrace.wire.ask import JSON, Ask, Stamp
from headrace.wire.body import BodyLimits
from headrace.wire.chat_answer import ChatStream, chat_answer
from headrace.wire.chat_request import parse_chat
from headrace.wire.ids import chat_id
from headrace.wire.numbered import Encoder


class ChatForm:
    """Messages in, messages out."""

    def __init__(self, body: Mapping[str, JSON], limits: BodyLimits, strict: bool) -> None:
        self._ask = parse_chat(body, limits, strict=strict)

    @property
    def asks(self) -> Sequence[Ask]:
        return (self._ask,)

    def new_id(self) -> str:
        return chat_id()

    def stream(self, stamp: Stamp, seed: int, spelling: Spelling | None) -> Encoder:
        ask = self._ask
        return ChatStream(
            stamp,
            seed=seed,
            n=ask.n,
            include_usage=ask.include_usage,
            spelling=spelling,
            must_call=ask.tool_choice not in ("auto", "none"),
        )

    def whole(
        self, stamp: Stamp, seed: int, choices: Sequence[Choice], spelling: Spelling | None
    ) -> bytes:
        return chat_answer(stamp, choices, seed=seed, spelling=spelling)
