"""One request and its response: what is known of it, from its arrival to the last byte.

In: an ASGI scope. Out: a `RequestEnded` fact. Thread: the event loop. Next: `app.py`.

The middleware is the outermost layer that knows requests: it gives the id, puts it on whatever
response comes, and says the fact when all is over, however it ended.
"""

from __future__ import annotations

import re
import time
from array import array
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.errors import Forbidden, HeadraceError
from headrace.events import Delta, Usage
from headrace.observe.observer import Observer, RequestEnded
from headrace.server.express import transport_of
from headrace.wire.ask import JSON
from headrace.wire.ids import request_id

if TYPE_CHECKING:
    from headrace.conversations.open_turn import OpenTurn
    from headrace.streams.log import StreamLog
    from headrace.streams.pump import Pump

LEFT = 499
"""The status of a request whose client went away before the response was whole."""

_SWITCHED = 101
_KEY = "headrace.exchange"
_MAX_CLIENT_ID = 128
_LONGEST_HEADER = 2048
"""Clients choke on longer ones."""
_UNPRINTABLE = re.compile(rb"[^ -~]")
_PRINTABLE = re.compile(rb"[!-~]{1,%d}" % _MAX_CLIENT_ID)


@dataclass(slots=True)
class Exchange:
    """Filled in along the way by whoever learns something."""

    client_request_id: str | None = None
    endpoint: str = "other"
    """The route's path without its prefix; never one that a client made up."""
    id: str = field(default_factory=request_id)
    arrived_at: float = field(default_factory=time.perf_counter)
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    """To be on the response, whatever it is."""
    ignored: list[str] = field(default_factory=list)
    """Fields that were sent and had no effect, by their paths: for `x-headrace-ignored`."""
    tenant: str = ""
    model: str | None = None
    served_by: str | None = None
    is_streamed: bool = False
    status: int = LEFT
    error: HeadraceError | None = None
    has_left: bool = False
    """The client went away first."""
    tells_times: bool = False
    """The client asked for times, by `Groq-Beta: inference-metrics`."""
    answer_id: str = ""
    """The answer's own name, once it is known."""
    turn: OpenTurn | None = None
    """Where the conversation is kept."""
    context: Mapping[str, JSON] | None = None
    """What the answer will tell of how its prompt was made, where that was asked for."""
    pump: Pump | None = None
    prompts: tuple[str, ...] = ()
    """What was asked, where that is to be logged; so is then what was answered."""
    usage: Usage | None = None
    """What a request cost that no pump counts."""
    ended_at: float | None = None
    """When the last byte was sent, or the client had gone."""

    def when_counted(self, tell: Callable[[], None]) -> None:
        """Call `tell` when it is known what the answer cost: a generation may go on after its last
        reader, by a step where it was cut, to its end where it is kept."""
        if self.pump is None:
            tell()
        else:
            self.pump.when_over(tell)

    def fact(self) -> RequestEnded:
        """What there is to say when that is known."""
        tally = self.pump.tally if self.pump else None
        usage = self.pump.usage if self.pump else self.usage or Usage(0, 0, 0)
        timings = tally.timings if tally else []
        first_at = tally.first_token_at if tally else None
        # What failed in mid-stream has the status 200, and is an error all the same.
        error = self.error or (tally.error if tally else None)
        return RequestEnded(
            request_id=self.id,
            endpoint=self.endpoint,
            status=self.status,
            total_s=(self.ended_at or time.perf_counter()) - self.arrived_at,
            client_request_id=self.client_request_id,
            tenant=self.tenant,
            model=self.model,
            served_by=self.served_by,
            is_streamed=self.is_streamed,
            error_code=None if error is None else error.code,
            error_message=None if error is None else error.message,
            finish_reasons=tuple(tally.reasons) if tally else (),
            num_prompt_tokens=usage.num_prompt_tokens,
            num_cached_tokens=usage.num_cached_tokens,
            num_loaded_tokens=usage.num_loaded_tokens,
            num_completion_tokens=usage.num_completion_tokens,
            queued_s=max((t.queued_s for t in timings), default=0.0),
            prefill_s=max((t.prefill_s for t in timings), default=0.0),
            decode_s=max((t.decode_s for t in timings), default=0.0),
            ttft_s=None if first_at is None else first_at - self.arrived_at,
            gaps_s=tally.gaps_s if tally else array("d"),
            prompts=self.prompts,
            answers=_texts(self.pump.log) if self.prompts and self.pump else (),
        )


def _texts(log: StreamLog) -> tuple[str, ...]:
    texts = [""] * log.num_choices
    for event in log:
        if isinstance(event, Delta):
            texts[event.choice] += event.text
    return tuple(texts)


def exchange_of(scope: Scope) -> Exchange:
    """The exchange that a scope belongs to."""
    return cast(Exchange, scope[_KEY])


class Exchanges:
    """Middleware: an exchange for each HTTP request, and for each upgrade to WebSocket."""

    def __init__(self, app: ASGIApp, observer: Observer) -> None:
        self._app = app
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._upgrade(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = scope[_KEY] = Exchange(_client_id(scope))
        is_whole = False

        async def send_with_id(message: Message) -> None:
            nonlocal is_whole
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], *_headers(exchange)]
            elif not message.get("more_body", False):
                # Who has gone is mostly known here before whoever watches for it is woken.
                is_whole = not _is_gone(scope)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            # Whatever had a status was answered with it; this came later.
            exchange.status, is_whole = HeadraceError.status, True
            raise
        finally:
            if exchange.has_left or not is_whole:
                exchange.status = LEFT
            exchange.ended_at = time.perf_counter()
            exchange.when_counted(lambda: self._tell(exchange))

    def _tell(self, exchange: Exchange) -> None:
        self._observer.observe(exchange.fact())
        # A connection keeps its last request's scope for as long as it is open.
        exchange.pump = exchange.turn = None

    async def _upgrade(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A fact only where it is refused: what is asked over a socket has exchanges of its own."""
        exchange = scope[_KEY] = Exchange(_client_id(scope))

        # Not a coroutine of its own: what is said over the socket goes straight through.
        def send_with_id(message: Message) -> Awaitable[None]:
            if message["type"] in ("websocket.accept", "websocket.http.response.start"):
                exchange.status = message.get("status", _SWITCHED)
                message["headers"] = [*message.get("headers", ()), *_headers(exchange)]
            elif message["type"] == "websocket.close" and exchange.status == LEFT:
                exchange.status = Forbidden.status  # as servers say it that cannot say more
            return send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if exchange.status != _SWITCHED:
                self._observer.observe(exchange.fact())


def _is_gone(scope: Scope) -> bool:
    """Nobody is at the other end of the connection, where the server shows it."""
    transport = transport_of(scope)
    return transport is not None and transport.is_closing()


def headers_of(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    """What every answer has, over HTTP or not."""
    headers = [(b"x-request-id", exchange.id.encode()), *exchange.headers]
    if exchange.ignored:
        named = header_value(", ".join(dict.fromkeys(exchange.ignored)))
        headers.append((b"x-headrace-ignored", named[:_LONGEST_HEADER]))
    return headers


def header_value(text: str) -> bytes:
    """Printable ASCII, whatever the text."""
    return _UNPRINTABLE.sub(b" ", text.encode("ascii", "backslashreplace"))


def _headers(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    headers = headers_of(exchange)
    if exchange.client_request_id is not None:
        headers.append((b"x-client-request-id", exchange.client_request_id.encode()))
    return headers


def _client_id(scope: Scope) -> str | None:
    """The client's own name for the request, where it is short and printable."""
    given = {name: value for name, value in scope["headers"] if name in _CLIENT_ID_HEADERS}
    for name in _CLIENT_ID_HEADERS:
        if name in given and _PRINTABLE.fullmatch(given[name]):
            return str(given[name], "ascii")
    return None


_CLIENT_ID_HEADERS = (b"x-client-request-id", b"x-request-id")
