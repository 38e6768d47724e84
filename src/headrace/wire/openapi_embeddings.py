"""The embeddings endpoint in the OpenAPI document."""

from __future__ import annotations

from headrace.errors import (
    BodyTooLarge,
    HeadraceError,
    InvalidRequest,
    NotFound,
    PullError,
    RateLimited,
    StorageError,
    Unavailable,
)
from headrace.wire.ask import JSON
from headrace.wire.body import BodyLimits
from headrace.wire.embedding_request import EMBEDDING
from headrace.wire.openapi_parts import (
    COUNT,
    DOORS,
    TEXT,
    errors,
    json_answer,
    object_schema,
    operation_id,
)


def embedding_paths(prefix: str) -> dict[str, JSON]:
    schema = {"$ref": "#/components/schemas/EmbeddingRequest"}
    example = {"model": "all-minilm-l6-v2", "input": ["Water turns the wheel.", "A mill."]}
    operation = {
        "operationId": operation_id("embedding", prefix),
        "summary": "Turn texts into vectors, whose dot products say how alike the texts are.",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema, "example": example}},
        },
        "responses": {
            "200": json_answer("One vector a text, in the order of the texts.", "EmbeddingList"),
            **errors(*DOORS, InvalidRequest, NotFound, BodyTooLarge, RateLimited),
            **errors(HeadraceError, PullError, Unavailable, StorageError),
        },
    }
    return {f"{prefix}/embeddings": {"post": operation}}


def embedding_schemas(limits: BodyLimits) -> dict[str, JSON]:
    vector = {"anyOf": [{"type": "array", "items": {"type": "number"}}, TEXT]}
    item = object_schema(
        "object index embedding", object={"const": "embedding"}, index=COUNT, embedding=vector
    )
    return {
        "EmbeddingRequest": EMBEDDING.schema(limits),
        "EmbeddingList": object_schema(
            "object data model usage",
            object={"const": "list"},
            data={"type": "array", "items": item},
            model=TEXT,
            usage=object_schema(
                "prompt_tokens total_tokens", prompt_tokens=COUNT, total_tokens=COUNT
            ),
        ),
    }
