"""One question answered over HTTP, as a stream or whole; the same for every endpoint that asks.

In: a request. Out: a response, whose body is a view of the log. Thread: the event loop.
Next: `asking.py`, then `sse.py`.

Each endpoint is a `Form`: how its body is read and how its answers are written. Everything else,
from the key to the last byte, is here once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from headrace.events import Choice, Failed, fold
from headrace.server import sse
from headrace.server.asking import start
from headrace.server.body import read_body
from headrace.server.exchange import Exchange, exchange_of
from headrace.server.express import Encoder
from headrace.server.negotiation import wants_stream
from headrace.server.serving import Serving
from headrace.streams.pump import Pump
from headrace.wire.answer_parts import Spelling
from headrace.wire.ask import JSON, Ask, Stamp
from headrace.wire.body import BodyLimits, parse_body

_LONGEST_HEADER = 2048
"""Clients choke on longer ones."""


class Form(Protocol):
    """One endpoint's way to be asked and to answer: made from a body."""

    @property
    def asks(self) -> Sequence[Ask]: ...

    def new_id(self) -> str: ...

    def stream(self, stamp: Stamp, seed: int, spelling: Spelling | None) -> Encoder: ...

    def whole(
        self, stamp: Stamp, seed: int, choices: Sequence[Choice], spelling: Spelling | None
    ) -> bytes: ...


ReadForm = Callable[[Mapping[str, JSON], BodyLimits, bool], Form]
"""Body, limits, strict: raises `InvalidRequest`."""


async def respond(request: Request, serving: Serving, read_form: ReadForm) -> Answer:
    """Read and check a question. Raises what refuses it."""
    exchange = exchange_of(request.scope)
    exchange.tenant = serving.access.authenticate(request.scope["headers"]).id
    settings = serving.settings
    raw = await read_body(request.scope, request.receive, settings.max_body_bytes)
    body = parse_body(raw, serving.body_limits)
    form = read_form(body, serving.body_limits, settings.strict)
    ask = form.asks[0]
    exchange.is_streamed = wants_stream(
        ask, request.headers.get("accept", ""), by_default=settings.stream_by_default
    )
    if ask.ignored:
        ignored = _header(", ".join(ask.ignored))[:_LONGEST_HEADER]
        exchange.headers.append((b"x-headrace-ignored", ignored))
    return Answer(serving, exchange, form)


class Answer:
    """A response: asks the engine when it is called."""

    def __init__(self, serving: Serving, exchange: Exchange, form: Form) -> None:
        self._serving = serving
        self._exchange = exchange
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._serving.open():
            pump = await start(self._serving, self._exchange, self._form.asks)
            leaving = asyncio.create_task(self._watch(receive, pump))
            try:
                await self._write(pump, scope, send)
            finally:
                leaving.cancel()
                # Whatever went wrong here, nothing is generated for nobody.
                pump.cancel()

    async def _watch(self, receive: Receive, pump: Pump) -> None:
        await sse.left(receive)
        self._exchange.has_left = True
        pump.cancel()

    async def _write(self, pump: Pump, scope: Scope, send: Send) -> None:
        first = await pump.log.view().take()
        if isinstance(first[0], Failed):
            # Nothing was sent yet, so the error still has a status.
            raise first[0].error
        served_by = self._exchange.served_by or ""
        headers = [(b"x-headrace-model", _header(served_by))]
        stamp, spelling = self._stamp(), self._spelling()
        if self._exchange.is_streamed:
            encoder = self._form.stream(stamp, pump.seed, spelling)
            await sse.EventWriter(pump, encoder, scope, send).write(headers)
            return
        await pump.log.ended()
        choices = fold(pump.log)
        body = self._form.whole(stamp, pump.seed, choices, spelling)
        headers += [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _stamp(self) -> Stamp:
        ask = self._form.asks[0]
        return Stamp(
            id=self._form.new_id(),
            request_id=self._exchange.id,
            created=int(time.time()),
            model=ask.model,
            fingerprint=self._serving.registry.resolve(ask.model).fingerprint,
            # `auto` is what a client asks for, never what it gets.
            service_tier="on_demand" if ask.service_tier == "auto" else ask.service_tier,
        )

    def _spelling(self) -> Spelling | None:
        ask = self._form.asks[0]
        if not ask.logprobs:
            return None
        return self._serving.registry.resolve(ask.model).engine.tokenizer


def _header(text: str) -> bytes:
    """Printable ASCII, whatever the text."""
    return text.encode("ascii", "backslashreplace").replace(b"\n", b" ").replace(b"\r", b" ")
