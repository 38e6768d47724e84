"""The application: all URLs in one list, all middleware in another.

In: ASGI scopes. Out: responses. Thread: the event loop. Next: the handler that a route names.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.errors import EndpointNotOffered, HeadraceError, UnknownURL
from headrace.server import conversations, documents, kept_responses
from headrace.server.api_chat import ApiChat
from headrace.server.chat import ChatForm
from headrace.server.completions import CompletionForm
from headrace.server.cors import CORS
from headrace.server.embeddings import embed
from headrace.server.exchange import Exchanges, exchange_of
from headrace.server.guard import ANY, Guard, refuse
from headrace.server.paths import PREFIXES, NormalPaths
from headrace.server.respond import ReadForm, respond
from headrace.server.responses import ResponsesForm
from headrace.server.serving import Serving
from headrace.server.socket.chat import ChatTalk
from headrace.server.socket.connection import Sockets
from headrace.server.status import Status
from headrace.server.streams import StreamHandlers
from headrace.wire.model_cards import model_card, model_list
from headrace.wire.openapi import openapi

_log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[ASGIApp]]

NOT_OFFERED = (
    "/audio/{rest:path}",
    "/files",
    "/files/{rest:path}",
    "/batches",
    "/batches/{rest:path}",
    "/fine_tunings",
    "/fine_tunings/{rest:path}",
)
"""Groq has these; a client should learn that headrace does not, rather than doubt its URL."""
_ANY = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_MAX_SHOWN = 200
"""Characters of a path."""


def create_app(serving: Serving) -> ASGIApp:
    """The whole server as an ASGI application."""
    app: ASGIApp = Routes(_routes(serving), _sockets(serving))
    for wrap in _middleware(serving):
        app = wrap(app)
    return app


def _routes(serving: Serving) -> list[Route]:
    streams = StreamHandlers(serving)
    status = Status(serving, lambda: openapi(serving.body_limits))
    api: list[tuple[str, str, Handler]] = [
        ("POST", "/chat/completions", _asking(serving, ChatForm)),
        ("POST", "/completions", _asking(serving, CompletionForm)),
        ("POST", "/responses", _asking(serving, ResponsesForm)),
        ("POST", "/embeddings", _embedding(serving)),
        ("GET", "/streams/{id}", streams.attach),
        ("DELETE", "/streams/{id}", streams.stop),
        ("POST", "/streams/{id}/cancel", streams.stop),
        ("GET", "/streams/{id}/events", streams.poll),
        ("POST", "/streams/{id}/token", streams.token),
        *kept_responses.routes(serving),
        *documents.routes(serving),
        *conversations.routes(serving),
        ("GET", "/models", _models(serving)),
        ("GET", "/models/{id:path}", _model(serving)),
    ]
    root: list[tuple[str, str, Handler]] = [
        ("POST", "/api/chat", ApiChat(serving).answer),
        ("GET", "/health", status.health),
        ("GET", "/ready", status.ready),
        ("GET", "/metrics", status.metrics),
        ("GET", "/", status.docs),
        ("GET", "/docs", status.docs),
        ("GET", "/openapi.json", status.openapi),
    ]
    return [
        *(_route([m], p + path, handler) for p in PREFIXES for m, path, handler in api),
        *(_route(_ANY, p + path, _not_offered) for p in PREFIXES for path in NOT_OFFERED),
        *(_route([method], path, handler) for method, path, handler in root),
    ]


def _route(methods: list[str], path: str, handler: Handler) -> Route:
    return Route(path, _Handling(handler), methods=methods)


class _Handling:
    """A handler as an application, without the layers in which Starlette looks for exceptions of
    its own: `Refusals` is ours."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._handler(Request(scope, receive, send))
        await response(scope, receive, send)


def _sockets(serving: Serving) -> dict[str, ASGIApp]:
    """By path: what answers an upgrade to WebSocket."""
    chats = Sockets(serving, ChatTalk)
    return {prefix + "/chat/completions": chats for prefix in PREFIXES}


def _middleware(serving: Serving) -> list[Callable[[ASGIApp], ASGIApp]]:
    """Innermost first."""
    settings = serving.settings
    layers: list[Callable[[ASGIApp], ASGIApp]] = [
        Refusals,
        lambda app: Guard(
            app,
            # Anybody who reaches the server may use it, so web pages must be kept away.
            is_open=lambda: serving.access.is_open,
            hosts=(ANY,) if serving.has_many_names else settings.allowed_hosts,
            origins=settings.cors_origins,
        ),
    ]
    if settings.cors_origins:
        layers.append(lambda app: CORS(app, settings.cors_origins))
    return [*layers, lambda app: Exchanges(app, serving.observer), NormalPaths]


class Routes:
    """The first route that fits both path and method; a wrong method is an unknown URL, too."""

    def __init__(self, routes: list[Route], sockets: dict[str, ASGIApp]) -> None:
        self._routes = routes
        self._sockets = sockets
        # Most paths have no parameters: one look finds them.
        self._exact = {
            (method, route.path): route
            for route in reversed(routes)
            if not route.param_convertors
            for method in route.methods or ()
        }
        self._endpoints = {route.path: endpoint_of(route.path) for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._upgrade(scope, receive, send)
            return
        route = self._exact.get((scope["method"], scope["path"])) or self._matching(scope)
        exchange_of(scope).endpoint = self._endpoints[route.path]
        await route.app(scope, receive, send)

    def _matching(self, scope: Scope) -> Route:
        for route in self._routes:
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope.update(found)
                return route
        asked = f"{scope['method']} {scope['path'][:_MAX_SHOWN]}"
        raise UnknownURL(
            f"Unknown request URL: {asked}. Please check the URL for typos, or see the docs at "
            f"/docs{self._hint(scope)}"
        )

    def _hint(self, scope: Scope) -> str:
        """What was likely meant, where only the base URL was not whole."""
        for prefix in PREFIXES:
            meant = {**scope, "path": prefix + scope["path"]}
            if any(route.matches(meant)[0] is Match.FULL for route in self._routes):
                return f" (did you mean {meant['path']}? A client's base URL ends in {prefix})"
        return ""

    async def _upgrade(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if (socket := self._sockets.get(path)) is None:
            raise UnknownURL(f"there is no WebSocket at {path[:_MAX_SHOWN]}; see /docs")
        exchange_of(scope).endpoint = endpoint_of(path)
        await socket(scope, receive, send)


def endpoint_of(path: str) -> str:
    """A route's path without its prefix, for logs and metrics."""
    for prefix in PREFIXES:
        if path.startswith(prefix + "/"):
            return path.removeprefix(prefix).replace(":path}", "}")
    return path


class Refusals:
    """Middleware: errors become the envelope, or end the connection once a body has begun."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            return
        except HeadraceError as error:
            if has_begun:
                raise
            await refuse(scope, send, error)
        except Exception:
            _log.exception("a request failed")
            if has_begun:
                raise
            await refuse(scope, send, HeadraceError("Internal Server Error"))


def _asking(serving: Serving, form: ReadForm) -> Handler:
    async def handle(request: Request) -> ASGIApp:
        return await respond(request, serving, form)

    return handle


def _embedding(serving: Serving) -> Handler:
    async def handle(request: Request) -> ASGIApp:
        return await embed(request, serving)

    return handle


def _models(serving: Serving) -> Handler:
    async def handle(request: Request) -> ASGIApp:
        _authenticate(serving, request)
        return _json(model_list((*serving.registry.cards(), *serving.embedders.cards())))

    return handle


def _model(serving: Serving) -> Handler:
    async def handle(request: Request) -> ASGIApp:
        _authenticate(serving, request)
        asked = request.path_params["id"]
        models = serving.embedders if asked in serving.embedders.names else serving.registry
        return _json(model_card(models.card(asked)))

    return handle


async def _not_offered(request: Request) -> ASGIApp:
    asked = endpoint_of(request.scope["path"])[:_MAX_SHOWN]
    raise EndpointNotOffered(f"headrace does not offer {asked}; see /docs for what it does")


def _authenticate(serving: Serving, request: Request) -> None:
    tenant = serving.access.authenticate(request.scope["headers"])
    exchange_of(request.scope).tenant = tenant.id


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
