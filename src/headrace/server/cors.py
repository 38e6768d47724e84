"""Lets the web pages of known origins call the server from a browser, and read its headers.

In: requests with an `Origin`. Out: the same, with what the browser wants to see on the response.
Thread: the event loop. Next: `guard.py`.

Keys travel in `Authorization`, never in cookies, so no credentials are allowed. A request without
an `Origin` passes untouched; one with it pays for its response's start, not for each chunk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.errors import Forbidden
from headrace.server.guard import ANY, refuse

_EXPOSED = [
    "x-request-id",
    "x-client-request-id",
    "retry-after",
    "x-should-retry",
    *(
        f"x-ratelimit-{n}-{k}"
        for n in ("limit", "remaining", "reset")
        for k in ("requests", "tokens")
    ),
    "x-headrace-model",
    "x-headrace-ignored",
    "x-headrace-stream",
    "x-headrace-stream-token",
    "x-headrace-conversation-id",
    "idempotent-replayed",
]
"""By name: `*` would do, but older browsers take it for a name."""
_EXPOSING = (b"access-control-expose-headers", ", ".join(_EXPOSED).encode())
_METHODS = b"GET, POST, DELETE, OPTIONS"
_HEADERS = b"authorization, content-type"
_MAX_AGE_S = b"600"


class CORS:
    """Middleware: answers preflights, and marks what pages of `origins` may read. `*`: all."""

    def __init__(self, app: ASGIApp, origins: Iterable[str]) -> None:
        self._app = app
        self._origins = frozenset(origin.lower().rstrip("/").encode() for origin in origins)
        self._allows_any = ANY.encode() in self._origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = _header(scope, b"origin") if scope["type"] == "http" else None
        if origin is None:
            await self._app(scope, receive, send)
            return
        is_allowed = self._allows_any or origin.lower() in self._origins
        if scope["method"] == "OPTIONS" and _header(scope, b"access-control-request-method"):
            await self._preflight(scope, send, origin if is_allowed else None)
        else:
            readable = [*self._allowed(origin), _EXPOSING] if is_allowed else _VARY
            await self._app(scope, receive, _marking(send, readable))

    async def _preflight(self, scope: Scope, send: Send, origin: bytes | None) -> None:
        """`origin` is None for one that may not call."""
        if origin is None:
            problem = "this web page may not use this server; allow it with --cors-origin."
            await refuse(scope, send, Forbidden(problem))
            return
        asked = _header(scope, b"access-control-request-headers")
        headers = [
            *self._allowed(origin),
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", asked or _HEADERS),
            (b"access-control-max-age", _MAX_AGE_S),
        ]
        # A page from outside asks this, too, before it may call a server in a private network.
        if _header(scope, b"access-control-request-private-network") == b"true":
            headers.append((b"access-control-allow-private-network", b"true"))
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def _allowed(self, origin: bytes) -> list[tuple[bytes, bytes]]:
        if self._allows_any:
            return [(b"access-control-allow-origin", ANY.encode())]
        return [(b"access-control-allow-origin", origin), *_VARY]


_VARY = [(b"vary", b"origin")]


def _marking(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    """`send`, with `headers` on the response's start."""

    # Not a coroutine of its own: chunks of the body go straight through.
    def send_marked(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        return send(message)

    return send_marked


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == wanted), None)
