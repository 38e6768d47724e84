"""Documents of conversations over HTTP: given, listed, deleted; embedded in the background.

In: a request. Out: an object or a list. Thread: the event loop. Next: `conversations/memory/`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from headrace.conversations.memory.values import Scope
from headrace.server.body import read_body
from headrace.server.exchange import exchange_of
from headrace.server.serving import Serving
from headrace.wire.ask import JSON
from headrace.wire.body import parse_body
from headrace.wire.documents import parse_document
from headrace.wire.json_bytes import body
from headrace.wire.place_fields import check_path

if TYPE_CHECKING:
    from headrace.conversations.memory.memory import Memory
    from headrace.conversations.memory.rows import StoredDocument

Handler: TypeAlias = Callable[[Request], Awaitable[ASGIApp]]
Route: TypeAlias = tuple[str, str, Handler]


def routes(serving: Serving) -> list[Route]:
    """They go before those of conversations, whose ids may have slashes."""
    at = _Handlers(serving)
    many = "/conversations/{id:path}/documents"
    one = many + "/{document}"
    return [
        ("POST", many, at.add),
        ("GET", many, at.page),
        ("GET", one, at.get),
        ("DELETE", one, at.delete),
    ]


class _Handlers:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def add(self, request: Request) -> ASGIApp:
        """Answers when it is kept, and its words can be found; it is embedded afterwards."""
        scope, serving = self._scope(request), self._serving
        raw = await read_body(request.scope, request.receive, serving.settings.max_body_bytes)
        given = parse_document(parse_body(raw, serving.body_limits), serving.body_limits)
        # Only now: the body may take long, and a memory is replaced once there is an embedder.
        memory = await serving.memories.kept()
        kept = await memory.add_document(scope, given.text, name=given.id, title=given.title)
        return _json(document_object(kept, memory.has_vectors))

    async def page(self, request: Request) -> ASGIApp:
        scope, memory = await self._asked(request)
        shown = [
            document_object(kept, memory.has_vectors) for kept in await memory.documents(scope)
        ]
        return _json({"object": "list", "data": shown, "has_more": False})

    async def get(self, request: Request) -> ASGIApp:
        scope, memory = await self._asked(request)
        kept = await memory.document(scope, request.path_params["document"])
        return _json(document_object(kept, memory.has_vectors))

    async def delete(self, request: Request) -> ASGIApp:
        scope, memory = await self._asked(request)
        name = request.path_params["document"]
        await memory.delete_document(scope, name)
        return _json({"id": name, "object": "conversation.document.deleted", "deleted": True})

    async def _asked(self, request: Request) -> tuple[Scope, Memory]:
        """By whom and where, and the memory. Raises what refuses them."""
        return self._scope(request), await self._serving.memories.kept()

    def _scope(self, request: Request) -> Scope:
        tenant = self._serving.access.authenticate(request.scope["headers"]).id
        exchange_of(request.scope).tenant = tenant
        check_path(request.path_params)
        return Scope(tenant, request.path_params["id"])


def document_object(stored: StoredDocument, has_vectors: bool) -> dict[str, Any]:
    """How a kept document is shown. Without vectors it is found by its words, and that is all."""
    shown: dict[str, Any] = {
        "id": stored.id,
        "object": "conversation.document",
        "created_at": int(stored.created_at),
        "title": stored.title,
        "status": stored.status if has_vectors else "completed",
        "chars": stored.num_chars,
        "chunks": {
            "total": stored.num_chunks,
            "embedded": stored.num_embedded,
            "failed": stored.num_failed,
        },
    }
    if stored.problem is not None:
        shown["error"] = {"message": stored.problem}
    return shown


def _json(value: JSON) -> Response:
    return Response(body(value), media_type="application/json")
