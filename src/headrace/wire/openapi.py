"""The API as an OpenAPI 3.1 document. Request schemas are the parsers' own tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

import headrace
from headrace.errors import (
    AuthenticationFailed,
    BodyTooLarge,
    FlexCapacityExceeded,
    Forbidden,
    GenerationTimeout,
    HeadraceError,
    IdempotencyConflict,
    InvalidRequest,
    NotFound,
    RateLimited,
    StreamGone,
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
    NotFound: "No such model, stream or path.",
    StreamGone: "There was such a stream, and it is not kept any more.",
    IdempotencyConflict: "The same `Idempotency-Key` was used with another body.",
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
    description: str | None = None
    """What else there is to say."""

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
        "The same URL is a WebSocket: any number of questions at once, each under an `id`; "
        "`input.append` sends one piece by piece, and what is known of it is computed meanwhile.",
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
        paths |= _stream_paths(prefix)
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
        **({} if post.description is None else {"description": post.description}),
        "parameters": [_IDEMPOTENCY_KEY, _RESUMABLE],
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
            **_errors(*(error for error in _ERRORS if error is not StreamGone)),
        },
    }


def _stream_paths(prefix: str) -> dict[str, JSON]:
    """What may be done with a stream that is kept."""
    path = f"{prefix}/streams/{{id}}"
    token = _query("token", "Instead of a key, for who only reads.", {"type": "string"})
    after = _query("after", "The number of the last event that you have.", _COUNT)
    events = {
        "description": "Events with numbers, then those that come.",
        "content": {"text/event-stream": {"schema": _TEXT}},
    }
    wait = {"type": "number", "minimum": 0, "default": 0}
    return {
        path: {
            "get": _of_stream(
                "readStream",
                prefix,
                "Go on reading where you were; `EventSource` does so by itself.",
                {"200": events, "204": {"description": "You have all of it."}},
                [after, _LAST_EVENT_ID, token, _query("progress", _PROGRESS, {"type": "boolean"})],
            ),
            "delete": _of_stream("stopStream", prefix, "Stop the generation.", _STOPPED),
        },
        f"{path}/cancel": {
            "post": _of_stream("cancelStream", prefix, "Stop the generation.", _STOPPED)
        },
        f"{path}/events": {
            "get": _of_stream(
                "pollStream",
                prefix,
                "What has come since, as JSON, for clients that cannot read streams.",
                {"200": _json("Events; ask `next` for more until it is `done`.", "EventPage")},
                [after, _query("wait", "Seconds to wait for something, at most 60.", wait), token],
            )
        },
        f"{path}/token": {
            "post": _of_stream(
                "streamToken",
                prefix,
                "Leave to read this stream for an hour, for a page that has no key.",
                {"200": _json("The token, and where to use it.", "StreamToken")},
            )
        },
    }


def _of_stream(
    name: str,
    prefix: str,
    summary: str,
    responses: dict[str, JSON],
    parameters: Sequence[JSON] = (),
) -> dict[str, JSON]:
    return {
        "operationId": _operation_id(name, prefix),
        "summary": summary,
        "parameters": [_STREAM_ID, *parameters],
        "responses": {
            **responses,
            **_errors(*_DOORS, InvalidRequest, NotFound, StreamGone, HeadraceError),
        },
    }


def _query(name: str, note: str, schema: JSON) -> JSON:
    return {"name": name, "in": "query", "schema": schema, "description": note}


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
_STREAM_ID: Final = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": _TEXT,
    "description": "The header `x-headrace-stream` of the answer.",
}
_LAST_EVENT_ID: Final = {
    "name": "Last-Event-ID",
    "in": "header",
    "schema": _TEXT,
    "description": "Counts before `after`.",
}
_IDEMPOTENCY_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "description": "The same key and body again get the same answer, which is made once.",
}
_RESUMABLE: Final = {
    "name": "x-headrace-resumable",
    "in": "header",
    "schema": {"enum": ["1", "true"]},
    "description": "The same as `stream_options.resumable`.",
}
_PROGRESS: Final = "Also tell how far the request is while it says nothing."
_STOPPED: Final = {
    "200": {
        "description": "It has ended; what it said stays readable for a while.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Stream"}}},
    }
}
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
    "EventPage": _object(
        "events next done",
        events={
            "type": "array",
            "items": _object("id data", id=_COUNT, data={"type": ["object", "string"]}),
        },
        next=_TEXT,
        done={"type": "boolean"},
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
    "Stream": _object("id object status", id=_TEXT, object={"const": "stream"}, status=_TEXT),
    "StreamToken": _object(
        "object token expires_at url",
        object={"const": "stream.token"},
        token=_TEXT,
        expires_at=_COUNT,
        url=_TEXT,
    ),
}
