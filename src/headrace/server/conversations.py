"""Conversations over HTTP: OpenAI's endpoints, and our own beside them.

In: a request. Out: an object, a list, or a file. Thread: the event loop.
Next: `conversations/store.py`.

A conversation is named by its tenant's id for it; another tenant's is one that is not there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from headrace.conversations import tree
from headrace.conversations.strategies.values import Message
from headrace.conversations.values import StoredMessage
from headrace.errors import ConversationNotFound, InvalidRequest
from headrace.server.body import read_body
from headrace.server.exchange import exchange_of
from headrace.server.pages import page, part
from headrace.server.serving import Serving
from headrace.wire import conversation_objects as shown
from headrace.wire import conversation_requests as asked
from headrace.wire.ask import JSON
from headrace.wire.body import parse_body
from headrace.wire.fields import Table
from headrace.wire.ids import place_of_item
from headrace.wire.items import items_of, left_of
from headrace.wire.json_bytes import body
from headrace.wire.place_fields import check_path

if TYPE_CHECKING:
    from headrace.conversations.store import ConversationStore

Handler: TypeAlias = Callable[[Request], Awaitable[ASGIApp]]
Route: TypeAlias = tuple[str, str, Handler]

RESERVED = frozenset({"import"})
"""Names that are paths."""


def routes(serving: Serving) -> list[Route]:
    """Ids may have slashes, so the paths that go on after one come first."""
    at = _Handlers(serving)
    one = "/conversations/{id:path}"
    return [
        ("GET", "/conversations", at.listed),
        ("POST", "/conversations", at.create),
        ("POST", "/conversations/import", at.restore),
        ("GET", one + "/items", at.items),
        ("POST", one + "/items", at.add_items),
        ("GET", one + "/items/{item}", at.item),
        ("DELETE", one + "/items/{item}", at.delete_item),
        ("POST", one + "/fork", at.fork),
        ("POST", one + "/rollback", at.rollback),
        ("GET", one + "/export", at.export),
        ("GET", one, at.get),
        ("POST", one, at.update),
        ("DELETE", one, at.delete),
    ]


def _answered(work: Callable[[_Handlers, _Asked], Awaitable[ASGIApp]]) -> Any:
    """A handler of what `work` does, once it is known who asks."""

    @wraps(work)
    async def handle(self: _Handlers, request: Request) -> ASGIApp:
        tenant = self.serving.access.authenticate(request.scope["headers"]).id
        exchange_of(request.scope).tenant = tenant
        check_path(request.path_params)
        await self.serving.conversations.opened()
        if (named := request.path_params.get("id")) is not None:
            await self.serving.conversations.turns.settled(tenant, named)
        return await work(self, _Asked(self.serving, request, tenant))

    return handle


class _Asked:
    """One request, by a tenant."""

    def __init__(self, serving: Serving, request: Request, tenant: str) -> None:
        self._serving = serving
        self._request = request
        self.tenant = tenant
        self.id: str = request.path_params.get("id", "")
        self.item: str = request.path_params.get("item", "")
        self.query: Mapping[str, str] = request.query_params

    @property
    def store(self) -> ConversationStore:
        return self._serving.conversations.store

    async def body(self, table: Table, *, may_be_empty: bool = False) -> dict[str, Any]:
        """What `table` reads of the body."""
        raw = await self._raw()
        if may_be_empty and not raw:
            return {}
        limits = self._serving.body_limits
        return asked.read(table, parse_body(raw, limits), limits)

    async def changes(self) -> dict[str, Any]:
        """What the body wants to be otherwise."""
        limits = self._serving.body_limits
        return asked.changes(parse_body(await self._raw(), limits), limits)

    async def _raw(self) -> bytes:
        most = self._serving.settings.max_body_bytes
        return await read_body(self._request.scope, self._request.receive, most)


class _Handlers:
    def __init__(self, serving: Serving) -> None:
        self.serving = serving

    def _let_go(self, request: _Asked) -> None:
        """What was deleted is not to be read again by a stream."""
        self.serving.streams.let_go(request.tenant, lambda told: told.conversation_id == request.id)

    @_answered
    async def create(self, request: _Asked) -> ASGIApp:
        given = await request.body(asked.CREATE, may_be_empty=True)
        made = await request.store.create(
            request.tenant,
            given.get("items", ()),
            conversation_id=_free(given.get("id"), "id"),
            **{name: given[name] for name in ("metadata", "title", "context") if name in given},
        )
        return _json(shown.conversation_object(made))

    @_answered
    async def get(self, request: _Asked) -> ASGIApp:
        found = await request.store.get(request.tenant, request.id)
        return _json(shown.conversation_object(found))

    @_answered
    async def update(self, request: _Asked) -> ASGIApp:
        given = await request.changes()
        changed = await request.store.update(request.tenant, request.id, **given)
        return _json(shown.conversation_object(changed))

    @_answered
    async def delete(self, request: _Asked) -> ASGIApp:
        await request.store.delete(request.tenant, request.id)
        self._let_go(request)
        return _json(shown.deleted_object(request.id))

    @_answered
    async def listed(self, request: _Asked) -> ASGIApp:
        """All of the tenant's, or, with `query`, messages in which its words stand."""
        wanted = asked.page_of(request.query)
        if (words := request.query.get("query")) is not None:
            hits = await request.store.search(request.tenant, words, limit=wanted.limit)
            found = [shown.hit_object(hit.conversation, hit.message) for hit in hits]
            return _json(shown.list_object(found, has_more=False))
        listed = await request.store.listed(
            request.tenant,
            after=wanted.after,
            limit=wanted.limit + 1,
            newest_first=wanted.newest_first,
        )
        objects = [shown.conversation_object(each) for each in listed]
        return _json(part(objects, wanted.limit))

    @_answered
    async def items(self, request: _Asked) -> ASGIApp:
        items = shown.items(await request.store.branch(request.tenant, request.id))
        return _json(page(items, asked.page_of(request.query)))

    @_answered
    async def add_items(self, request: _Asked) -> ASGIApp:
        given = await request.body(asked.ADD_ITEMS)
        added = await request.store.append(request.tenant, request.id, given["items"])
        return _json(shown.list_object(shown.items(added), has_more=False))

    @_answered
    async def item(self, request: _Asked) -> ASGIApp:
        message_id, index = _place_of(request.item)
        message = await request.store.message(request.tenant, request.id, message_id)
        return _json(_item(message, index, request.item))

    @_answered
    async def delete_item(self, request: _Asked) -> ASGIApp:
        message_id, index = _place_of(request.item)

        def left(message: StoredMessage) -> Message | None:
            _item(message, index, request.item)
            return left_of(message.message, index)

        changed = await request.store.remove(request.tenant, request.id, message_id, left)
        self.serving.contexts.shelf.forget((request.tenant, request.id))
        self._let_go(request)
        return _json(shown.conversation_object(changed))

    @_answered
    async def fork(self, request: _Asked) -> ASGIApp:
        given = await request.body(asked.FORK, may_be_empty=True)
        made = await request.store.fork(
            request.tenant,
            request.id,
            at=given.get("at"),
            new_id=_free(given.get("id"), "id"),
            metadata=given.get("metadata"),
        )
        self.serving.memories.wake()
        return _json(shown.conversation_object(made))

    @_answered
    async def rollback(self, request: _Asked) -> ASGIApp:
        given = await request.body(asked.ROLLBACK)
        changed = await request.store.rollback(request.tenant, request.id, given["to"])
        return _json(shown.conversation_object(changed))

    @_answered
    async def export(self, request: _Asked) -> ASGIApp:
        wanted = request.query.get("format", "json")
        if wanted not in ("json", "markdown"):
            raise InvalidRequest("`format` must be json or markdown", param="format")
        found, messages = await request.store.tree(request.tenant, request.id)
        if wanted == "json":
            return _json(shown.export_object(found, messages))
        text = shown.markdown(found, tree.branch(messages, found.head_id))
        return Response(text, media_type="text/markdown; charset=utf-8")

    @_answered
    async def restore(self, request: _Asked) -> ASGIApp:
        given = await request.body(asked.IMPORT)
        told = [
            StoredMessage(
                id=each.id,
                parent_id=each.parent_id,
                role=str(each.message["role"]),
                message=each.message,
                token_ids=each.token_ids,
                status=each.status,
                created_at=each.created_at,
                num_tokens=None if each.token_ids is None else len(each.token_ids),
                metadata=each.metadata,
            )
            for each in asked.exported(given, self.serving.body_limits)
        ]
        head_id = given.get("head_id", told[-1].id if told else None)
        made = await request.store.restore(
            request.tenant,
            told,
            head_id,
            new_id=_free(given.get("new_id"), "new_id"),
            **{name: given[name] for name in ("metadata", "title", "context") if name in given},
        )
        return _json(shown.conversation_object(made))


def _place_of(item: str) -> tuple[str, int]:
    """The id of the message that an item is part of, and which part."""
    return place_of_item(item) or (item, 0)


def _item(message: StoredMessage, index: int, named: str) -> dict[str, JSON]:
    """Raises `ConversationNotFound` where that part of the message has another name."""
    items = items_of(message.message, message.id, message.status)
    if index >= len(items) or items[index]["id"] != named:
        raise ConversationNotFound(f"there is no item `{named[:100]}` here")
    return items[index]


def _free(named: str | None, field: str) -> str | None:
    if named in RESERVED:
        raise InvalidRequest(f"`{field}`: {named!r} is a path; choose another", param=field)
    return named


def _json(value: JSON) -> Response:
    return Response(body(value), media_type="application/json")
