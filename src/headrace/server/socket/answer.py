"""One answer over a socket: from its question, or from where a reader left, to its last message.

In: a wish. Out: a speech for the outlet, and a `RequestEnded` fact. Thread: the event loop.
Next: `asking.py`, `outlet.py`.

Leaving the socket cancels a plain answer; a resumable one goes on for those who come back.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson

from headrace.errors import HeadraceError, InvalidRequest
from headrace.events import Failed
from headrace.server.chat import ChatForm
from headrace.server.continuing import said_in_full
from headrace.server.conversing import start
from headrace.server.exchange import Exchange, header_value, headers_of
from headrace.server.respond import Asked, begin_kept, conversation_headers, telling
from headrace.server.serving import Serving
from headrace.server.socket.outlet import Outlet, Source, Speech
from headrace.server.socket.sources import KeptSource, PlainSource
from headrace.server.streams import stream_headers
from headrace.server.telling import Telling
from headrace.streams.kept import Kept
from headrace.streams.log import StreamLog
from headrace.streams.pump import Pump
from headrace.wire.socket_frames import (
    NumberedMessages,
    PlainMessages,
    Question,
    Resume,
    opening,
)

OK = 200


class Answer:
    """Asked for under an id; run once."""

    def __init__(
        self,
        serving: Serving,
        exchange: Exchange,
        answer_id: str,
        outlet: Outlet,
        on_end: Callable[[], None],
    ) -> None:
        """`on_end` is called when the last message is about to be sent: the id is free again."""
        self.id = answer_id
        self.exchange = exchange
        self._serving = serving
        self._outlet = outlet
        self._on_end = on_end
        self._stops: Callable[[], None] | None = None
        self._is_stopped = False
        self._speech: Speech | None = None

    def stop(self) -> None:
        """Its client wants no more: the last message comes within a step, unless it has been sent.
        Where nothing runs yet, as soon as something does."""
        self._is_stopped = True
        if self._stops is not None:
            self._stops()

    def leave(self) -> None:
        """Its client is gone."""
        if self._speech is None:
            self.exchange.has_left = True
        elif not self._speech.sent.done():
            self.exchange.has_left = True
            self._speech.abandon()

    async def give(self, wanted: Question | Resume) -> None:
        """All of it, to the last message. Raises what refuses it."""
        await (self._ask(wanted) if isinstance(wanted, Question) else self._resume(wanted))

    def failed(self, error: HeadraceError) -> None:
        """It was not answered, and this is why."""
        self.exchange.status, self.exchange.error = error.status, error

    async def _ask(self, question: Question) -> None:
        serving, exchange = self._serving, self.exchange
        body = await said_in_full(serving, exchange.tenant, question.body, exchange.endpoint)
        form = ChatForm(body, serving.body_limits, serving.settings.strict)
        ask = form.asks[0]
        exchange.ignored += ask.ignored
        exchange.answer_id = form.new_id()
        if ask.resumable:
            asked = Asked(orjson.dumps(body).decode())
            kept = await begin_kept(serving, exchange, form, asked)
            await self._tell_kept(kept, after=0)
            if exchange.has_left and not (self._speech and self._speech.has_begun):
                kept.stop()  # its id was never told: nobody can come back to it
        else:
            pump = await start(serving, exchange, form.asks)
            await self._tell_plain(pump, telling(serving, exchange, form, pump.seed))

    async def _resume(self, wish: Resume) -> None:
        kept = await self._serving.find_stream(wish.stream, self.exchange.tenant)
        if not isinstance(kept.form.form, ChatForm):
            raise InvalidRequest(
                "this stream is no chat's; read it over HTTP, at /v1/streams/{id}", param="stream"
            )
        self.exchange.served_by = kept.served_by
        await self._tell_kept(kept, wish.after)

    async def _tell_plain(self, pump: Pump, told: Telling) -> None:
        self._runs(pump.cancel)
        self.exchange.headers += conversation_headers(told)
        source = PlainSource(pump, PlainMessages(self.id, told.encoder()))
        try:
            await self._say(pump.log, source)
        finally:
            source.leave()
            # Whatever went wrong here, nothing is generated for nobody.
            pump.cancel()
            if self.exchange.has_left:
                await pump.log.ended()

    async def _tell_kept(self, kept: Kept[Telling], after: int) -> None:
        self._runs(kept.stop)
        self.exchange.headers += stream_headers(self._serving, kept)
        self.exchange.headers += conversation_headers(kept.form)
        with kept.reading():
            source = KeptSource(kept, NumberedMessages(self.id), after)
            await self._say(kept.pump.log, source)
            if source.is_ended:
                # Choices that still speak where one has failed have no reader any more.
                kept.stop()

    def _runs(self, stop: Callable[[], None]) -> None:
        """There is something to stop from now on."""
        self._stops = stop
        if self._is_stopped:
            stop()

    async def _say(self, log: StreamLog, source: Source) -> None:
        exchange = self.exchange
        if exchange.has_left:
            return
        exchange.headers.append((b"x-headrace-model", header_value(exchange.served_by or "")))
        first = opening(self.id, headers_of(exchange))
        self._speech = Speech(first, source, self._on_end)
        self._outlet.add(self._speech)
        exchange.status = OK
        was_sent = await self._speech.sent
        begins_with = next(iter(log), None)
        if was_sent and isinstance(begins_with, Failed):
            self.failed(begins_with.error)
