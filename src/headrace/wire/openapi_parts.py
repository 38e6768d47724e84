"""What the parts of the OpenAPI document are made of: answers, errors, parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from headrace.errors import (
    AuthenticationFailed,
    BodyTooLarge,
    ConversationBusy,
    FlexCapacityExceeded,
    Forbidden,
    GenerationTimeout,
    HeadraceError,
    IdempotencyConflict,
    InvalidRequest,
    NotFound,
    PullError,
    RateLimited,
    StorageError,
    StreamGone,
    Unavailable,
)
from headrace.wire.ask import JSON

PREFIXES: Final = ("/openai/v1", "/v1")

ERRORS: Final[Mapping[type[HeadraceError], str]] = {
    InvalidRequest: "A field is wrong; `param` names it.",
    AuthenticationFailed: "No key, or one that is not known.",
    Forbidden: "A foreign web page, or a host that this server is not.",
    NotFound: "No such model, stream or path.",
    ConversationBusy: "Another turn of the conversation is going on.",
    StreamGone: "There was such a stream, and it is not kept any more.",
    IdempotencyConflict: "The same `Idempotency-Key` was used with another body.",
    BodyTooLarge: "The body is too long, or needs more tokens than the limit could ever allow.",
    RateLimited: "A limit of this key is used up; `retry-after` says when to come again.",
    FlexCapacityExceeded: "No room now for `service_tier: flex`.",
    HeadraceError: "The model failed.",
    PullError: "The model could not be fetched.",
    StorageError: "The server's disk has no room for the model.",
    Unavailable: "Not now: overloaded, loading or shutting down; `retry-after` says for how long.",
    GenerationTimeout: "No token, or no end, within the time allowed.",
}
DOORS: Final = (AuthenticationFailed, Forbidden)
"""What any path under a prefix may answer."""
NOT_OF_ANSWERS: Final = (StreamGone, PullError, StorageError)
"""What no endpoint that generates answers."""
TEXT: Final = {"type": "string"}
COUNT: Final = {"type": "integer", "minimum": 0}


def query(name: str, note: str, schema: JSON) -> JSON:
    return {"name": name, "in": "query", "schema": schema, "description": note}


def operation_id(name: str, prefix: str) -> str:
    return name if prefix == PREFIXES[0] else f"{name}Short"


def json_answer(description: str, schema: str) -> dict[str, JSON]:
    """An answer of one of the document's schemas."""
    content = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    return {"description": description, "content": {"application/json": content}}


def errors(*named: type[HeadraceError]) -> dict[str, JSON]:
    return {
        str(error.status): {"$ref": f"#/components/responses/{error_name(error)}"}
        for error in named
    }


def error_name(error: type[HeadraceError]) -> str:
    return f"Error{error.status}"


def object_schema(required: str, **properties: JSON) -> dict[str, JSON]:
    return {"type": "object", "required": required.split(), "properties": properties}
