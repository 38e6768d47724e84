"""The conversations endpoints in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from headrace.errors import (
    BodyTooLarge,
    ConversationBusy,
    HeadraceError,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from headrace.wire.ask import JSON
from headrace.wire.body import DEFAULT_LIMITS
from headrace.wire.conversation_requests import (
    ADD_ITEMS,
    CREATE,
    FORK,
    IMPORT,
    MAX_LIMIT,
    ROLLBACK,
    UPDATE,
)
from headrace.wire.documents import DOCUMENT
from headrace.wire.fields import Table
from headrace.wire.openapi_parts import (
    COUNT,
    DOORS,
    TEXT,
    errors,
    json_answer,
    object_schema,
    operation_id,
    query,
)

_ID: Final = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
    "description": "The conversation's.",
}
_ITEM: Final = {
    "name": "item",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
    "description": "The item's.",
}
_DOCUMENT: Final = {**_ITEM, "name": "document", "description": "The document's."}
_PAGE: Final = (
    query("after", "The last one that you have.", TEXT),
    query(
        "limit",
        "How many, at most.",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": 20},
    ),
    query("order", "Eldest or newest first.", {"enum": ["asc", "desc"], "default": "desc"}),
)
_CONVERSATION: Final = json_answer("The conversation.", "Conversation")
_ITEMS: Final = json_answer("Its items.", "ConversationList")
_EXPORT: Final = {
    "description": "All of it.",
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/Conversation"}},
        "text/markdown": {"schema": TEXT},
    },
}
SCHEMAS: Final = {
    "Conversation": object_schema(
        "id object created_at metadata", id=TEXT, object=TEXT, created_at=COUNT, metadata={}
    ),
    "ConversationDeleted": object_schema(
        "id object deleted", id=TEXT, object=TEXT, deleted={"type": "boolean"}
    ),
    "ConversationDocument": object_schema(
        "id object created_at title status chars chunks",
        id=TEXT,
        object=TEXT,
        created_at=COUNT,
        title=TEXT,
        status={"enum": ["in_progress", "completed", "failed"]},
        chars=COUNT,
        chunks=object_schema("total embedded failed", total=COUNT, embedded=COUNT, failed=COUNT),
    ),
    "ConversationDocuments": object_schema(
        "object data has_more",
        object={"const": "list"},
        data={"type": "array", "items": {"$ref": "#/components/schemas/ConversationDocument"}},
        has_more={"type": "boolean"},
    ),
    "ConversationItem": object_schema("id type status", id=TEXT, type=TEXT, status=TEXT),
    "ConversationList": object_schema(
        "object data first_id last_id has_more",
        object={"const": "list"},
        data={"type": "array", "items": {"type": "object"}},
        first_id=TEXT,
        last_id=TEXT,
        has_more={"type": "boolean"},
    ),
}


def conversation_paths(prefix: str) -> dict[str, JSON]:
    """What may be done with conversations."""
    one = f"{prefix}/conversations/{{id}}"

    def does(
        name: str,
        summary: str,
        answer: JSON = _CONVERSATION,
        parameters: Sequence[JSON] = (_ID,),
        body: Table | None = None,
    ) -> dict[str, JSON]:
        return _operation(operation_id(name, prefix), summary, answer, parameters, body)

    words = query("query", "Instead of the list: messages in which these words stand.", TEXT)
    form = query("format", "The whole tree, or one branch for people.", _FORMATS)
    item = json_answer("The item.", "ConversationItem")
    deleted = json_answer("It is gone.", "ConversationDeleted")
    document = json_answer("The document.", "ConversationDocument")
    documents = json_answer("In the order in which they came.", "ConversationDocuments")
    return {
        f"{prefix}/conversations": {
            "get": does("listConversations", "Yours, or a search.", _ITEMS, (*_PAGE, words)),
            "post": does("createConversation", "A new one.", parameters=(), body=CREATE),
        },
        f"{prefix}/conversations/import": {
            "post": does("importConversation", "From an export.", parameters=(), body=IMPORT)
        },
        one: {
            "get": does("getConversation", "One."),
            "post": does("updateConversation", "Change what is said of it.", body=UPDATE),
            "delete": does("deleteConversation", "With all that hangs on it.", deleted),
        },
        f"{one}/items": {
            "get": does("listItems", "Its items.", _ITEMS, (_ID, *_PAGE)),
            "post": does("addItems", "Add items at its end.", _ITEMS, body=ADD_ITEMS),
        },
        f"{one}/items/{{item}}": {
            "get": does("getItem", "One item.", item, (_ID, _ITEM)),
            "delete": does("deleteItem", "Take one item out.", parameters=(_ID, _ITEM)),
        },
        f"{one}/fork": {"post": does("forkConversation", "A new one that begins so.", body=FORK)},
        f"{one}/rollback": {
            "post": does("rollbackConversation", "Go back to a message.", body=ROLLBACK)
        },
        f"{one}/documents": {
            "get": does("listDocuments", "Its documents.", documents),
            "post": does("addDocument", "A text to answer from.", document, body=DOCUMENT),
        },
        f"{one}/documents/{{document}}": {
            "get": does("getDocument", "One, and how far it is.", document, (_ID, _DOCUMENT)),
            "delete": does("deleteDocument", "All of it.", deleted, (_ID, _DOCUMENT)),
        },
        f"{one}/export": {"get": does("exportConversation", "All of it.", _EXPORT, (_ID, form))},
    }


def response_paths(prefix: str) -> dict[str, JSON]:
    """What may be done with a response that is stored."""
    one = f"{prefix}/responses/{{id}}"
    named = {**_ID, "description": "The response's."}

    def does(name: str, summary: str, answer: JSON, *further: JSON) -> dict[str, JSON]:
        return _operation(operation_id(name, prefix), summary, answer, (named, *further), None)

    shown = json_answer("The response.", "Answer")
    deleted = json_answer("It is gone.", "ConversationDeleted")
    return {
        one: {
            "get": does("getResponse", "One that is stored, as far as it is.", shown),
            "delete": does("deleteResponse", "With what only it stood on.", deleted),
        },
        f"{one}/input_items": {
            "get": does("listInputItems", "What was told before it.", _ITEMS, *_PAGE)
        },
    }


_FORMATS: Final = {"enum": ["json", "markdown"], "default": "json"}


def _operation(
    name: str, summary: str, answer: JSON, parameters: Sequence[JSON], body: Table | None
) -> dict[str, JSON]:
    told: dict[str, JSON] = {"operationId": name, "summary": summary, "parameters": [*parameters]}
    if body is not None:
        content = {"application/json": {"schema": body.schema(DEFAULT_LIMITS)}}
        told["requestBody"] = {"required": True, "content": content}
    refused = (InvalidRequest, NotFound, ConversationBusy, BodyTooLarge)
    told["responses"] = {
        "200": answer,
        **errors(*DOORS, *refused, HeadraceError, Unavailable),
    }
    return told
