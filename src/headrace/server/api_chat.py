"""`POST /api/chat`: a chat's route as guides write it; always a stream, also where it refuses.

In: a JSON object. Out: `data: {"token": …}` lines. Thread: the event loop. Next: `respond.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.errors import HeadraceError
from headrace.events import Choice
from headrace.server.exchange import exchange_of
from headrace.server.respond import respond
from headrace.server.serving import Serving
from headrace.server.sse import HEADERS
from headrace.wire.answer_parts import Spelling
from headrace.wire.api_chat import ApiChatStream, error_frame, parse_api_chat
from headrace.wire.ask import JSON, Ask, Stamp
from headrace.wire.body import BodyLimits
from headrace.wire.error_body import error_headers
from headrace.wire.ids import chat_id
from headrace.wire.numbered import Encoder


class ApiChatForm:
    """A prompt in, tokens out."""

    def __init__(self, body: Mapping[str, JSON], limits: BodyLimits, strict: bool) -> None:
        self._ask = parse_api_chat(body, limits)

    @property
    def asks(self) -> Sequence[Ask]:
        return (self._ask,)

    def new_id(self) -> str:
        return chat_id()

    def stream(self, stamp: Stamp, seed: int, spelling: Spelling | None) -> Encoder:
        return ApiChatStream()

    def whole(
        self, stamp: Stamp, seed: int, choices: Sequence[Choice], spelling: Spelling | None
    ) -> bytes:
        raise NotImplementedError("this endpoint streams always")


class ApiChat:
    """The handler, whose refusals have the form of its answers."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def answer(self, request: Request) -> ASGIApp:
        try:
            return _Refusing(await respond(request, self._serving, ApiChatForm))
        except HeadraceError as error:
            return _refusal(request.scope, error)


class _Refusing:
    """An answer that says as a line what refuses it before its first byte."""

    def __init__(self, answer: ASGIApp) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._answer(scope, receive, watched)
        except HeadraceError as error:
            if has_begun:
                raise
            await _refusal(scope, error)(scope, receive, send)


def _refusal(scope: Scope, error: HeadraceError) -> ASGIApp:
    """The error's status, and one line."""
    exchange_of(scope).error = error
    response = Response(error_frame(error), status_code=error.status)
    response.raw_headers = [
        *((name, value) for name, value in response.raw_headers if name != b"content-type"),
        *HEADERS,
        *((name.encode(), value.encode()) for name, value in error_headers(error).items()),
    ]
    return response
