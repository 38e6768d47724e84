"""One question answered over HTTP, as a stream or whole; the same for every endpoint that asks.

In: a request. Out: a response, whose body is a view of the log. Thread: the event loop.
Next: `asking.py`, then `sse.py`.

Each endpoint is a `Form`: how its body is read and how its answers are written. Everything else,
from the key to the last byte, is here once. A plain answer ends when its client leaves; one that
was asked for as resumable, or under an `Idempotency-Key`, is kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TypeAlias

import orjson
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from headrace.events import Failed, fold
from headrace.server import idempotency, sse
from headrace.server.asking import Question
from headrace.server.body import read_body
from headrace.server.continuing import said_in_full
from headrace.server.conversing import mark_of, show, start
from headrace.server.durable import Header
from headrace.server.exchange import Exchange, exchange_of, header_value
from headrace.server.negotiation import wants_stream
from headrace.server.serving import Serving
from headrace.server.streams import KeptWriter, stream_headers
from headrace.server.telling import Form, Telling
from headrace.streams.identity import identity_of
from headrace.streams.kept import Kept
from headrace.streams.pump import Pump, Record
from headrace.wire.ask import JSON, Stamp
from headrace.wire.body import BodyLimits, parse_body
from headrace.wire.continue_from import NAME as CONTINUES
from headrace.wire.ids import stream_id

ReadForm: TypeAlias = Callable[[Mapping[str, JSON], BodyLimits, bool], Form]
"""Body, limits, strict: raises `InvalidRequest`."""


async def respond(request: Request, serving: Serving, read_form: ReadForm) -> Answer:
    """Read and check a question. Raises what refuses it."""
    exchange = exchange_of(request.scope)
    exchange.tenant = serving.access.authenticate(request.scope["headers"]).id
    settings = serving.settings
    raw = await read_body(request.scope, request.receive, settings.max_body_bytes)
    key = request.headers.get(idempotency.HEADER)
    digest = sha256(exchange.endpoint.encode() + b"\n" + raw).digest() if key is not None else b""
    asked = Asked(raw.decode(errors="replace"), key, digest)
    form, asked = await _understood(serving, exchange, raw, asked, read_form)
    ask = form.asks[0]
    exchange.answer_id = form.new_id()
    exchange.is_streamed = wants_stream(
        ask, ",".join(request.headers.getlist("accept")), by_default=settings.stream_by_default
    )
    exchange.ignored += ask.ignored
    if serving.is_draining:  # which is said before anything is reserved
        exchange.headers += serving.limit_headers(exchange.tenant, ask.model)
    exchange.tells_times = "inference-metrics" in request.headers.get("groq-beta", "")
    is_resumable = ask.resumable or request.headers.get("x-headrace-resumable") in ("1", "true")
    if key is None and not (is_resumable and exchange.is_streamed):
        if ask.resumable:
            exchange.ignored.append("stream_options.resumable")
        return Answer(serving, exchange, form)
    return KeptAnswer(serving, exchange, form, asked, is_numbered=is_resumable)


async def _understood(
    serving: Serving, exchange: Exchange, raw: bytes, asked: Asked, read_form: ReadForm
) -> tuple[Form, Asked]:
    """The form of a question, and its words in full. Raises what refuses it."""
    body = parse_body(raw, serving.body_limits)
    if asked.key is not None and CONTINUES in body:
        # Of what it went on with, nothing need be there any more where it is answered already.
        await serving.durable.wait_for_key(exchange.tenant, asked.key)
        found = await serving.idempotency.find(exchange.tenant, asked.key, asked.digest)
        if found is not None:
            return found.form.form, asked
    full = await said_in_full(serving, exchange.tenant, body, exchange.endpoint)
    if full is not body:
        asked = replace(asked, body=orjson.dumps(full).decode())
    return read_form(full, serving.body_limits, serving.settings.strict), asked


@dataclass(frozen=True, slots=True)
class Asked:
    """A question in the words of who asked."""

    body: str
    """With the text of a stream in full, where it goes on with one."""
    key: str | None = None
    """The `Idempotency-Key`, and the digest of what it stands for."""
    digest: bytes = b""


class Answer:
    """A response: asks the engine when it is called, for as long as its client stays."""

    def __init__(self, serving: Serving, exchange: Exchange, form: Form) -> None:
        self._serving = serving
        self._exchange = exchange
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._serving.open():
            pump = await self._started(receive)
            if pump is None:
                return
            leaving = asyncio.create_task(self._watch(receive, pump.cancel))
            try:
                await self._write(pump, self._telling(pump), scope, send, may_bypass=True)
            finally:
                leaving.cancel()
                # Whatever went wrong here, nothing is generated for nobody.
                pump.cancel()

    async def _started(self, receive: Receive) -> Pump | None:
        """None where the client left while its turn waited for another's end: nothing is asked."""
        asks = self._form.asks
        if asks[0].place is None or not asks[0].place.queue:
            return await start(self._serving, self._exchange, asks)
        starting = asyncio.ensure_future(start(self._serving, self._exchange, asks))
        leaving = asyncio.ensure_future(sse.left(receive))
        try:
            await asyncio.wait({starting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                return starting.result()
            self._exchange.has_left = True
            return None
        finally:
            leaving.cancel()
            starting.cancel()

    async def _watch(self, receive: Receive, on_leave: Callable[[], None]) -> None:
        await sse.left(receive)
        self._exchange.has_left = True
        on_leave()

    async def _write(
        self, pump: Pump, telling: Telling, scope: Scope, send: Send, *, may_bypass: bool
    ) -> None:
        tells_progress = self._form.asks[0].progress and telling.is_streamed
        if not tells_progress:
            first = await pump.log.view().take()
            if isinstance(first[0], Failed):
                # Nothing was sent yet, so the error still has a status.
                raise first[0].error
        headers = [self._served_by(), *conversation_headers(telling)]
        if telling.is_streamed:
            writer = sse.EventWriter(
                pump,
                telling.encoder(),
                scope,
                send,
                may_bypass=may_bypass,
                tells_progress=tells_progress,
            )
            await writer.write(headers)
            return
        await (pump.ended() if may_bypass else pump.log.ended())
        body = telling.whole(fold(pump.log))
        headers += [
            (b"content-type", b"application/json"),
            (b"cache-control", b"private, max-age=0, no-store, no-cache, must-revalidate"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _served_by(self) -> tuple[bytes, bytes]:
        return b"x-headrace-model", header_value(self._exchange.served_by or "")

    def _telling(self, pump: Pump) -> Telling:
        return telling(self._serving, self._exchange, self._form, pump.seed)


class KeptAnswer(Answer):
    """A response whose answer goes on when the client leaves, for those who come back."""

    def __init__(
        self,
        serving: Serving,
        exchange: Exchange,
        form: Form,
        asked: Asked,
        *,
        is_numbered: bool,
    ) -> None:
        """`is_numbered`: frames carry numbers to come back by."""
        super().__init__(serving, exchange, form)
        self._asked = asked
        self._is_numbered = is_numbered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._serving.open():
            gone = asyncio.ensure_future(sse.left(receive))
            try:
                kept = await self._kept()
                self._exchange.has_left = gone.done()
            finally:
                gone.cancel()
            if self._exchange.has_left and self._asked.key is None:
                # The stream's id was never told: nobody can come back to it.
                kept.stop()
                return
            await self._read(kept, scope, receive, send)

    async def _read(self, kept: Kept[Telling], scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_numbered and self._exchange.is_streamed:
            writer = KeptWriter(
                kept,
                after=0,
                heartbeat_s=self._serving.settings.heartbeat_s,
                tells_progress=self._form.asks[0].progress,
            )
            headers = [
                self._served_by(),
                *stream_headers(self._serving, kept),
                *conversation_headers(kept.form),
            ]
            await writer.write(receive, send, headers)
            return
        self._exchange.headers += stream_headers(self._serving, kept)
        with kept.reading():
            await self._write_while_there(kept, scope, receive, send)

    async def _write_while_there(
        self, kept: Kept[Telling], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Leaving ends the reading, not the stream."""
        # Of one answer there may be two views: whole for who asks so, streamed for another.
        told = replace(kept.form, is_streamed=self._exchange.is_streamed)
        writing = asyncio.ensure_future(self._write(kept.pump, told, scope, send, may_bypass=False))

        def stop_writing() -> None:
            writing.cancel()

        leaving = asyncio.create_task(self._watch(receive, stop_writing))
        try:
            await writing
        except asyncio.CancelledError:
            if not self._exchange.has_left:
                raise
        finally:
            leaving.cancel()
            writing.cancel()

    async def _kept(self) -> Kept[Telling]:
        """The stream that answers: a new one, or the one that answers this key already."""
        tenant, key = self._exchange.tenant, self._asked.key
        if key is None:
            return await self._begin()
        claims = self._serving.idempotency
        await self._serving.durable.wait_for_key(tenant, key)
        found = await claims.attach(tenant, key, self._asked.digest)
        if found is not None:
            self._exchange.model = self._form.asks[0].model
            self._exchange.served_by = found.served_by
            self._exchange.headers.append((b"idempotent-replayed", b"true"))
            return found
        try:
            kept = await self._begin()
        except BaseException:
            claims.give_up(tenant, key)
            raise
        claims.settle(tenant, key, kept)
        return kept

    async def _begin(self) -> Kept[Telling]:
        return await begin_kept(self._serving, self._exchange, self._form, self._asked)


async def begin_kept(
    serving: Serving, exchange: Exchange, form: Form, asked: Asked
) -> Kept[Telling]:
    """Begin an answer that goes on when its client leaves, and, where streams are kept on disk,
    when the server dies. Several prompts in one are kept in memory alone. Raises as `start` does,
    and `JournalFailed`."""
    name = stream_id()
    told: list[Telling] = []

    def record(question: Question) -> Record | None:
        told.append(telling(serving, exchange, form, question.prepared[0].seed))
        durable = serving.durable
        if not durable.is_open or len(question.prepared) > 1:
            return None
        header = _header(serving, exchange, asked, question, told[0])
        return durable.begin(name, header, question.num_choices)

    pump = await start(serving, exchange, form.asks, record)
    served_by = exchange.served_by or ""
    return serving.keep(name, exchange.tenant, pump, told[0], served_by=served_by)


def _header(
    serving: Serving, exchange: Exchange, asked: Asked, question: Question, told: Telling
) -> Header:
    """All that another process needs, to go on as this one would have."""
    prepared = question.prepared[0]
    has_grammar = prepared.request.grammar is not None
    return Header(
        endpoint=exchange.endpoint,
        body=asked.body,
        strict=serving.settings.strict,
        is_streamed=told.is_streamed,
        tenant=exchange.tenant,
        client_request_id=exchange.client_request_id,
        key=asked.key,
        digest=asked.digest.hex(),
        served_by=question.served.id,
        identity=identity_of(question.served.engine, has_grammar=has_grammar),
        stamp=told.stamp,
        seed=prepared.seed,
        prompt=list(prepared.prompt),
        begun=prepared.request.begun.hex(),
        max_num_tokens=prepared.max_num_tokens,
        turn=mark_of(exchange),
    )


def telling(serving: Serving, exchange: Exchange, form: Form, seed: int) -> Telling:
    """How an answer is told that begins now."""
    ask = form.asks[0]
    served = serving.registry.resolve(ask.model)
    stamp = Stamp(
        id=exchange.answer_id or form.new_id(),
        request_id=exchange.id,
        created=int(time.time()),
        model=ask.model,
        fingerprint=served.fingerprint,
        # `auto` is what a client asks for, never what it gets.
        service_tier="on_demand" if ask.service_tier == "auto" else ask.service_tier,
        context=exchange.context,
        tells_times=exchange.tells_times,
    )
    show(exchange.turn, form, stamp)
    spelling = served.engine.tokenizer if ask.logprobs else None
    named = exchange.turn.turn.conversation_id if exchange.turn else None
    return Telling(form, stamp, seed, spelling, exchange.is_streamed, named)


def conversation_headers(told: Telling) -> list[tuple[bytes, bytes]]:
    """Where the conversation goes on."""
    if told.conversation_id is None:
        return []
    return [(b"x-headrace-conversation-id", header_value(told.conversation_id))]
