"""The API as an OpenAPI 3.1 document. Request schemas are the parsers' own tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

import headrace
from headrace.errors import (
    Forbidden,
    HeadraceError,
    InvalidRequest,
    NotFound,
    StreamGone,
    Unavailable,
)
from headrace.wire.api_chat import API_CHAT
from headrace.wire.ask import JSON
from headrace.wire.body import DEFAULT_LIMITS, BodyLimits
from headrace.wire.chat_request import CHAT
from headrace.wire.completion_request import COMPLETION
from headrace.wire.fields import Table
from headrace.wire.openapi_conversations import SCHEMAS, conversation_paths, response_paths
from headrace.wire.openapi_embeddings import embedding_paths, embedding_schemas
from headrace.wire.openapi_parts import (
    COUNT,
    DOORS,
    ERRORS,
    NOT_OF_ANSWERS,
    PREFIXES,
    TEXT,
    error_name,
    errors,
    json_answer,
    object_schema,
    operation_id,
    query,
)
from headrace.wire.responses_request import RESPONSES

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
        "Answer a conversation (responses API).",
        RESPONSES,
        {"model": _MODEL, "input": _HI},
        "Named events, `response.created` to `response.completed`.",
    ),
)
_API_CHAT: Final = _Post(
    "/api/chat",
    "apiChat",
    "Answer a prompt in a conversation, as guides have it; always a stream.",
    API_CHAT,
    {"prompt": _HI, "conversation_id": "my-chat"},
    'Lines `{"token": …}`, then `[DONE]`; an error is one line `{"error": …}`.',
)


def openapi(limits: BodyLimits = DEFAULT_LIMITS) -> dict[str, JSON]:
    """The document, for a server with these limits."""
    paths: dict[str, JSON] = {}
    for prefix in PREFIXES:
        for post in _POSTS:
            paths[prefix + post.path] = {"post": _post(post, prefix)}
        paths |= embedding_paths(prefix)
        paths |= _stream_paths(prefix)
        paths |= conversation_paths(prefix) | response_paths(prefix)
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
        "paths": paths | {_API_CHAT.path: {"post": _api_chat()}} | _root_paths(),
        "components": {
            "schemas": {
                **{post.request_name: post.table.schema(limits) for post in (*_POSTS, _API_CHAT)},
                **_SCHEMAS,
                **embedding_schemas(limits),
                **SCHEMAS,
            },
            "responses": {error_name(error): _error(error) for error in ERRORS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        # A server without keys takes any or none.
        "security": [{"key": []}, {}],
    }


def _post(post: _Post, prefix: str) -> dict[str, JSON]:
    """The operation of an endpoint that generates."""
    schema = {"$ref": f"#/components/schemas/{post.request_name}"}
    return {
        "operationId": operation_id(post.id, prefix),
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
            **errors(*(error for error in ERRORS if error not in NOT_OF_ANSWERS)),
        },
    }


def _api_chat() -> dict[str, JSON]:
    """Whatever it answers is a stream, its refusals too."""
    operation = _post(_API_CHAT, PREFIXES[0])
    content = {"text/event-stream": {"schema": TEXT}}
    told = {error.status: note for error, note in ERRORS.items()}
    operation["responses"] = {
        status: {
            "description": told.get(int(status), "The answer, token by token."),
            "content": content,
        }
        for status in operation["responses"]
    }
    return operation


def _stream_paths(prefix: str) -> dict[str, JSON]:
    """What may be done with a stream that is kept."""
    path = f"{prefix}/streams/{{id}}"
    token = query("token", "Instead of a key, for who only reads.", {"type": "string"})
    after = query("after", "The number of the last event that you have.", COUNT)
    events = {
        "description": "Events with numbers, then those that come.",
        "content": {"text/event-stream": {"schema": TEXT}},
    }
    wait = {"type": "number", "minimum": 0, "default": 0}
    return {
        path: {
            "get": _of_stream(
                "readStream",
                prefix,
                "Go on reading where you were; `EventSource` does so by itself.",
                {"200": events, "204": {"description": "You have all of it."}},
                [after, _LAST_EVENT_ID, token, query("progress", _PROGRESS, {"type": "boolean"})],
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
                {
                    "200": json_answer(
                        "Events; ask `next` for more until it is `done`.", "EventPage"
                    )
                },
                [after, query("wait", "Seconds to wait for something, at most 60.", wait), token],
            )
        },
        f"{path}/token": {
            "post": _of_stream(
                "streamToken",
                prefix,
                "Leave to read this stream for an hour, for a page that has no key.",
                {"200": json_answer("The token, and where to use it.", "StreamToken")},
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
        "operationId": operation_id(name, prefix),
        "summary": summary,
        "parameters": [_STREAM_ID, *parameters],
        "responses": {
            **responses,
            **errors(*DOORS, InvalidRequest, NotFound, StreamGone, HeadraceError),
        },
    }


def _list_models(prefix: str) -> dict[str, JSON]:
    return {
        "operationId": operation_id("listModels", prefix),
        "summary": "The models that can be asked.",
        "responses": {
            "200": json_answer("The models, aliases among them.", "ModelList"),
            **errors(*DOORS, HeadraceError, Unavailable),
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
        "operationId": operation_id("getModel", prefix),
        "summary": "One model.",
        "parameters": [model],
        "responses": {
            "200": json_answer("The model.", "Model"),
            **errors(*DOORS, NotFound, HeadraceError, Unavailable),
        },
    }


def _root_paths() -> dict[str, JSON]:
    """What is told without a key."""
    metrics = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "/health": _told(
            "health", "Is the process alive?", {"200": json_answer("It is.", "Health")}
        ),
        "/ready": _told(
            "ready",
            "Can it answer?",
            {
                "200": json_answer("It can.", "Health"),
                "503": json_answer("Not yet, or no more.", "Health"),
            },
        ),
        "/metrics": _told(
            "metrics",
            "Figures for Prometheus.",
            {"200": {"description": "In its text format.", "content": metrics}},
        ),
    }


def _told(name: str, summary: str, responses: dict[str, JSON]) -> dict[str, JSON]:
    responses = responses | errors(Forbidden)
    return {
        "get": {"operationId": name, "summary": summary, "security": [], "responses": responses}
    }


def _error(error: type[HeadraceError]) -> dict[str, JSON]:
    return json_answer(ERRORS[error], "Error")


_STREAM_ID: Final = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": TEXT,
    "description": "The header `x-headrace-stream` of the answer.",
}
_LAST_EVENT_ID: Final = {
    "name": "Last-Event-ID",
    "in": "header",
    "schema": TEXT,
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
    "Answer": object_schema("id object model", id=TEXT, object=TEXT, model=TEXT),
    "Error": object_schema(
        "error",
        error=object_schema(
            "message type",
            message=TEXT,
            type=TEXT,
            code=TEXT,
            param=TEXT,
            failed_generation=TEXT,
        ),
    ),
    "EventPage": object_schema(
        "events next done",
        events={
            "type": "array",
            "items": object_schema("id data", id=COUNT, data={"type": ["object", "string"]}),
        },
        next=TEXT,
        done={"type": "boolean"},
    ),
    "Health": object_schema("status", status=TEXT),
    "Model": object_schema(
        "id object created owned_by active context_window max_completion_tokens",
        id=TEXT,
        object={"const": "model"},
        created=COUNT,
        owned_by=TEXT,
        active={"type": "boolean"},
        context_window=COUNT,
        public_apps={},
        max_completion_tokens=COUNT,
    ),
    "ModelList": object_schema(
        "object data",
        object={"const": "list"},
        data={"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
    ),
    "Stream": object_schema("id object status", id=TEXT, object={"const": "stream"}, status=TEXT),
    "StreamToken": object_schema(
        "object token expires_at url",
        object={"const": "stream.token"},
        token=TEXT,
        expires_at=COUNT,
        url=TEXT,
    ),
}
