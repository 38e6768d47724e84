"""Stored responses over HTTP: shown again, what they answered, deleted.

In: a request. Out: an object or a list. Thread: the event loop.
Next: `conversations/kept_responses.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from headrace.server.exchange import exchange_of
from headrace.server.pages import page
from headrace.server.serving import Serving
from headrace.wire import conversation_objects
from headrace.wire.ask import JSON
from headrace.wire.conversation_requests import page_of
from headrace.wire.json_bytes import body
from headrace.wire.place_fields import check_path
from headrace.wire.response_objects import deleted_object, response_object

if TYPE_CHECKING:
    from headrace.conversations.database import Database

Handler: TypeAlias = Callable[[Request], Awaitable[ASGIApp]]
Route: TypeAlias = tuple[str, str, Handler]

_PAGE = frozenset({"after", "limit", "order"})


def routes(serving: Serving) -> list[Route]:
    at = _Handlers(serving)
    one = "/responses/{id}"
    return [
        ("GET", one, at.get),
        ("DELETE", one, at.delete),
        ("GET", one + "/input_items", at.input_items),
    ]


class _Handlers:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def get(self, request: Request) -> ASGIApp:
        """As it was answered; what its conversation has forgotten of it is gone here, too."""
        tenant, named = await self._asked(request)
        from headrace.conversations.kept_responses import (
            find_response,
        )  # which came with the database

        kept = await find_response(self._database, tenant, named)
        return _json(response_object(named, kept.answer, kept.shown))

    async def input_items(self, request: Request) -> ASGIApp:
        """All that was told before the answer."""
        tenant, named = await self._asked(request, _PAGE)
        from headrace.conversations.kept_responses import (
            told_before,
        )  # which came with the database

        told = await told_before(self._database, tenant, named)
        return _json(page(conversation_objects.items(told), page_of(request.query_params)))

    async def delete(self, request: Request) -> ASGIApp:
        """One that is still being said ends with it."""
        tenant, named = await self._asked(request)
        from headrace.conversations.kept_responses import (
            delete_response,
        )  # which came with the database

        await delete_response(self._database, tenant, named)
        self._serving.conversations.turns.stop_response(tenant, named)
        # Nor is it to be read again by a stream, or kept anew by a server that goes on with that.
        self._serving.streams.let_go(tenant, lambda told: told.stamp.id == named)
        return _json(deleted_object(named))

    async def _asked(
        self, request: Request, known: frozenset[str] = frozenset()
    ) -> tuple[str, str]:
        """By whom, and for which. Whoever has read an answer to its end finds it kept."""
        tenant = self._serving.access.authenticate(request.scope["headers"]).id
        exchange = exchange_of(request.scope)
        exchange.tenant = tenant
        exchange.ignored += [name for name in request.query_params if name not in known]
        check_path(request.path_params)
        named: str = request.path_params["id"]
        await self._serving.conversations.opened()
        await self._serving.conversations.turns.response_settled(tenant, named)
        return tenant, named

    @property
    def _database(self) -> Database:
        """Raises `DatabaseFailed` where there is none."""
        return self._serving.conversations.store.database


def _json(value: JSON) -> Response:
    return Response(body(value), media_type="application/json")
