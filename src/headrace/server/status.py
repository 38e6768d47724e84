"""What anybody may ask of the server itself, without a key: is it up, is it ready, how busy is it.

In: GET requests at the root. Out: small JSON, metrics, the API's description and its page.
Thread: the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import orjson
from starlette.requests import Request
from starlette.responses import Response

from headrace.server.docs_page import CONTENT_SECURITY_POLICY, page

RETRY_AFTER_S = 1
_JSON = "application/json"


class ServerState(Protocol):
    """What the status pages need to know of the running server."""

    @property
    def is_ready(self) -> bool:
        """Every model is loaded."""

    @property
    def is_draining(self) -> bool:
        """Finishes what it has and takes no more."""

    def render_metrics(self, accept: str) -> tuple[bytes, str]:
        """Metrics and their content type, as the `Accept` header wants them."""


class Status:
    """Handlers for `/health`, `/ready`, `/metrics`, `/openapi.json` and `/docs`."""

    def __init__(self, state: ServerState, describe: Callable[[], dict[str, Any]]) -> None:
        """`describe` makes the OpenAPI document; called once, when it is first asked for."""
        self._state = state
        self._describe = describe

    async def health(self, request: Request) -> Response:
        """200 while the process answers at all: for restarting what hangs."""
        return Response(b'{"status":"ok"}\n', media_type=_JSON)

    async def ready(self, request: Request) -> Response:
        """200 while requests are taken, else 503: for sending traffic elsewhere."""
        if self._state.is_draining:
            return _not_ready("draining")
        if not self._state.is_ready:
            return _not_ready("loading")
        return Response(b'{"status":"ready"}\n', media_type=_JSON, headers=_FRESH)

    async def metrics(self, request: Request) -> Response:
        text, content_type = self._state.render_metrics(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    async def openapi(self, request: Request) -> Response:
        return Response(self._openapi_json, media_type=_JSON)

    async def docs(self, request: Request) -> Response:
        headers = {"content-security-policy": CONTENT_SECURITY_POLICY}
        return Response(self._docs_page, media_type="text/html", headers=headers)

    @cached_property
    def _document(self) -> dict[str, Any]:
        return self._describe()

    @cached_property
    def _openapi_json(self) -> bytes:
        return orjson.dumps(self._document)

    @cached_property
    def _docs_page(self) -> bytes:
        return page(self._document).encode()


_FRESH = {"cache-control": "no-store"}


def _not_ready(why: str) -> Response:
    return Response(
        orjson.dumps({"status": why}) + b"\n",
        status_code=503,
        media_type=_JSON,
        headers={**_FRESH, "retry-after": str(RETRY_AFTER_S)},
    )
