"""Which path a client means: doubled prefixes and slashes are what base URLs get wrong.

In: a scope's path. Out: the path as the routes know it. Next: `app.py`.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

PREFIXES = ("/openai/v1", "/v1")
"""Every API path exists under each of these."""

_SLASHES = re.compile("/{2,}")
_DOUBLED = re.compile(r"^(/openai/v1|/v1){2,}(?=/|$)")


def normal(path: str) -> str:
    """`//openai/v1/openai/v1/models/` is `/openai/v1/models`."""
    path = _SLASHES.sub("/", path)
    path = _DOUBLED.sub(r"\1", path)
    return path.rstrip("/") or "/"


class NormalPaths:
    """Middleware: what follows sees normal paths only."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            scope["path"] = normal(scope["path"])
        await self._app(scope, receive, send)
