"""`POST /responses`: items in, items out.

In: a JSON object. Out: a `Form`. Next: `respond.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.events import Choice
from headrace.wire.answer_parts import Spelling
from headrace.wire.ask import JSON, Ask, Stamp
from headrace.wire.body import BodyLimits
from headrace.wire.ids import response_id
from headrace.wire.numbered import Encoder
from headrace.wire.responses_answer import ResponsesStream, begun_response, responses_answer
from headrace.wire.responses_request import parse_responses


class ResponsesForm:
    """The newer way to ask the same."""

    def __init__(self, body: Mapping[str, JSON], limits: BodyLimits, strict: bool) -> None:
        self._asked = parse_responses(body, limits, strict=strict)

    @property
    def asks(self) -> Sequence[Ask]:
        return (self._asked.ask,)

    def new_id(self) -> str:
        return response_id()

    def begun(self, stamp: Stamp) -> Mapping[str, JSON]:
        """The response object before its first word."""
        return begun_response(stamp, self._asked.echo())

    def stream(self, stamp: Stamp, seed: int, spelling: Spelling | None) -> Encoder:
        return ResponsesStream(stamp, echo=self._asked.echo(), spelling=spelling)

    def whole(
        self, stamp: Stamp, seed: int, choices: Sequence[Choice], spelling: Spelling | None
    ) -> bytes:
        return responses_answer(stamp, choices[0], echo=self._asked.echo(), spelling=spelling)
