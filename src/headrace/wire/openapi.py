"""The API as an OpenAPI 3.1 document. Request schemas are the parsers' own tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

import headrace
from headrace.errors import (
    AuthenticationFailed,
    BodyTooLarge,
    FlexCapacityExceeded,
    Forbidden,
    GenerationTimeout,
    HeadraceError,
    InvalidRequest,
    NotFound,
    RateLimited,
    Unavailable,
)
from headrace.wire.ask import JSON
from headrace.wire.body import DEFAULT_LIMITS, BodyLimits
from headrace.wire.chat_request import CHAT
from headrace.wire.completion_request import COMPLETION
from headrace.wire.fields import Table
from headrace.wire.responses_request import RESPONSES

PREFIXES: Final = ("/openai/v1", "/v1")

_ERRORS: Final[Mapping[type[HeadraceError], str]] = {
    InvalidRequest: "A field is wrong; `param` names it.",
    AuthenticationFailed: "No key, or one that is not known.",
    Forbidden: "A foreign web page, or a host that this server is not.",
    NotFound: "No such model or path.",
    BodyTooLarge: "The body is too long, or needs more tokens than the limit could ever allow.",
    RateLimited: "A limit of this key is used up; `retry-after` says when to come again.",
    FlexCapacityExceeded: "No room now for `service_tier: flex`.",
    HeadraceError: "The model failed.",
    Unavailable: "Not now: overloaded, loading or shutting down; `retry-after` says for how long.",
    GenerationTimeout: "No token, or no end, within the time allowed.",
}
_DOORS: Final = (AuthenticationFailed, Forbidden)
"""What any path under a prefix may answer."""
_HI: Final = "Say hello in one word."
_MODEL: Final = "llama-3.1-8b-instant"


@dataclasses.dataclass(frozen=True, slots=True)
class _Post:
    """One endpoint that generates."""

    path: str
    id: str
    summary: str
    table: Table
    example: Mapping[str, JSON]
    streamed: str
    """What its stream is."""

    @property
    def request_name(self) -> str:
        return f"{self.id[0].upper()}{self.id[1:]}Request"


_POSTS: Final = (
    _Post(
        "/chat/completions",
        "chatCompletion",
        "Answer a conversation.",
        CHAT,
        {"model": _MODEL, "messages": [{"role": "user", "content": _HI}], "stream": True},
        "Chunks, then `[DONE]`; an error in mid-stream is an event named `error`.",
    ),
    _Post(
        "/completions",
        "completion",
        "Go on from a raw prompt (the older endpoint).",
        COMPLETION,
        {"model": _MODEL, "prompt": "Water flows", "max_tokens": 16},
        "Chunks, then `[DONE]`; an error in mid-stream is an event named `error`.",
    ),
    _Post(
        "/responses",
        "response",
        "Answer a conversation (responses API). Nothing is stored.",
        RESPONSES,
        {"model": _MODEL, "input": _HI},
        "Named events, `response.created` to `response.completed`.",
    ),
)


def openapi(limits: BodyLimits = DEFAULT_LIMITS) -> dict[str, JSON]:
    """The document, for a server with these limits."""
    paths: dict[str, JSON] = {}
    for prefix in PREFIXES:
        for post in _POSTS:
            paths[prefix + post.path] = {"post": _post(post, prefix)}
        paths[f"{prefix}/models"] = {"get": _list_models(prefix)}
        paths[f"{prefix}/models/{{model}}"] = {"get": _get_model(prefix)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "headrace",
            "version": headrace.__version__,
            "summary": "Streaming-first LLM inference: Groq's API on your own machine.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths | _root_paths(),
        "components": {
            "schemas": {post.request_name: post.table.schema(limits) for post in _POSTS} | _SCHEMAS,
            "responses": {_error_name(error): _error(error) for error in _ERRORS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        # A server without keys takes any or none.
        "security": [{"key": []}, {}],
    }


def _post(post: _Post, prefix: str) -> dict[str, JSON]:
    """The operation of an endpoint that generates."""
    schema = {"$ref": f"#/components/schemas/{post.request_name}"}
    return {
        "operationId": _operation_id(post.id, prefix),
        "summary": post.summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema, "example": dict(post.example)}},
        },
        "responses": {
            "200": {
                "description": f"The answer. With `stream: true`, events. {post.streamed}",
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/Answer"}},
                    "text/event-stream": {"schema": {"type": "string"}},
                },
            },
            **_errors(*_ERRORS),
        },
    }


def _list_models(prefix: str) -> dict[str, JSON]:
    return {
        "operationId": _operation_id("listModels", prefix),
        "summary": "The models that can be asked.",
        "responses": {
            "200": _json("The models, aliases among them.", "ModelList"),
            **_errors(*_DOORS, HeadraceError, Unavailable),
        },
    }


def _get_model(prefix: str) -> dict[str, JSON]:
    model = {
        "name": "model",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
        "description": "Slashes in it may be raw or written as %2F.",
    }
    return {
        "operationId": _operation_id("getModel", prefix),
        "summary": "One model.",
        "parameters": [model],
        "responses": {
            "200": _json("The model.", "Model"),
            **_errors(*_DOORS, NotFound, HeadraceError, Unavailable),
        },
    }


def _root_paths() -> dict[str, JSON]:
    """What is told without a key."""
    metrics = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "/health": _told("health", "Is the process alive?", {"200": _json("It is.", "Health")}),
        "/ready": _told(
            "ready",
            "Can it answer?",
            {"200": _json("It can.", "Health"), "503": _json("Not yet, or no more.", "Health")},
        ),
        "/metrics": _told(
            "metrics",
            "Figures for Prometheus.",
            {"200": {"description": "In its text format.", "content": metrics}},
        ),
    }


def _told(name: str, summary: str, responses: dict[str, JSON]) -> dict[str, JSON]:
    responses = responses | _errors(Forbidden)
    return {
        "get": {"operationId": name, "summary": summary, "security": [], "responses": responses}
    }


def _operation_id(name: str, prefix: str) -> str:
    return name if prefix == PREFIXES[0] else f"{name}Short"


def _json(description: str, schema: str) -> dict[str, JSON]:
    content = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    return {"description": description, "content": {"application/json": content}}


def _errors(*errors: type[HeadraceError]) -> dict[str, JSON]:
    return {
        str(error.status): {"$ref": f"#/components/responses/{_error_name(error)}"}
        for error in errors
    }


def _error_name(error: type[HeadraceError]) -> str:
    return f"Error{error.status}"


def _error(error: type[HeadraceError]) -> dict[str, JSON]:
    return _json(_ERRORS[error], "Error")


def _object(required: str, **properties: JSON) -> dict[str, JSON]:
    return {"type": "object", "required": required.split(), "properties": properties}


_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_SCHEMAS: Final = {
    "Answer": _object("id object model", id=_TEXT, object=_TEXT, model=_TEXT),
    "Error": _object(
        "error",
        error=_object(
            "message type",
            message=_TEXT,
            type=_TEXT,
            code=_TEXT,
            param=_TEXT,
            failed_generation=_TEXT,
        ),
    ),
    "Health": _object("status", status=_TEXT),
    "Model": _object(
        "id object created owned_by active context_window max_completion_tokens",
        id=_TEXT,
        object={"const": "model"},
        created=_COUNT,
        owned_by=_TEXT,
        active={"type": "boolean"},
        context_window=_COUNT,
        public_apps={},
        max_completion_tokens=_COUNT,
    ),
    "ModelList": _object(
        "object data",
        object={"const": "list"},
        data={"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
    ),
}
