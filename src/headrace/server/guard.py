"""Keeps web pages away from an open server: only pages of this machine may drive it.

In: a request's `Host` and `Origin`. Out: the same request, or 403. Thread: the event loop.
Next: `access.py`.

A server without keys answers whoever can connect, and a browser connects for any page that it
shows. A page that posts to us by itself betrays itself by its `Origin`; one whose own name was made
to mean this machine (DNS rebinding), by its `Host`. Programs send no `Origin`, and our name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.errors import Forbidden, HeadraceError
from headrace.server.access import is_loopback
from headrace.server.exchange import exchange_of
from headrace.wire.error_body import error_body, error_headers

ANY = "*"

_MAX_SHOWN = 100
_POLICY_VIOLATION = 1008
_DENIAL = "websocket.http.response"
"""ASGI's extension by which an upgrade is answered like any request."""


class Guard:
    """Middleware: 403 for a foreign host or page, while `is_open()`.

    `hosts` are further names of this server, with any port; `origins` those of pages that may call
    it, as browsers write them (`https://app.example.com`). `*` allows all, hosts as well as pages;
    where any host will do, pages of the very host that is asked are welcome.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        is_open: Callable[[], bool],
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
    ) -> None:
        self._app = app
        self._is_open = is_open
        self._hosts = frozenset(_without_port(host).lower() for host in hosts)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not self._is_open():
            await self._app(scope, receive, send)
            return
        error = self._problem(scope)
        if error is None:
            await self._app(scope, receive, send)
        else:
            await refuse(scope, send, error)

    def _problem(self, scope: Scope) -> Forbidden | None:
        hosts = _values(scope, b"host")
        for host in hosts:
            if not self._is_ours(host):
                return Forbidden(
                    f"the host `{host[:_MAX_SHOWN]}` is not this server; use its address, or name "
                    "the host with --allowed-host."
                )
        for origin in _values(scope, b"origin"):
            if not self._is_welcome(origin, hosts):
                return Forbidden(
                    f"the web page `{origin[:_MAX_SHOWN]}` may not use this server; allow it with "
                    "--cors-origin."
                )
        return None

    def _is_ours(self, host: str) -> bool:
        return ANY in self._hosts or self._is_named(host)

    def _is_named(self, host: str) -> bool:
        name = _without_port(host).lower()
        return name in self._hosts or is_loopback(name)

    def _is_welcome(self, origin: str, hosts: Sequence[str]) -> bool:
        """`hosts` are those that the request names."""
        if ANY in self._origins or origin.lower() in self._origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        host = parts.hostname
        if host is None:
            return False
        is_same = parts.netloc.lower() in map(str.lower, hosts)
        return is_same or self._is_named(f"[{host}]" if ":" in host else host)


async def refuse(scope: Scope, send: Send, error: HeadraceError) -> None:
    """Answer with an error before anything else was sent."""
    with suppress(KeyError):
        exchange_of(scope).error = error
    prefix = ""
    if scope["type"] == "websocket":
        prefix = "websocket."
        if _DENIAL not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
    body = error_body(error)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((name.encode(), value.encode()) for name, value in error_headers(error).items()),
    ]
    await send({"type": f"{prefix}http.response.start", "status": error.status, "headers": headers})
    await send({"type": f"{prefix}http.response.body", "body": body})


def _without_port(host: str) -> str:
    """`[::1]:8000` → `[::1]`; `localhost:8000` → `localhost`; a bare `::1` stays whole."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0] if host.count(":") == 1 else host


def _values(scope: Scope, wanted: bytes) -> list[str]:
    """Of all headers of this name."""
    return [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
