"""The bytes of a request as a JSON object, within bounds.

In: a body, whatever its Content-Type. Out: a dict, or `InvalidRequest`. Thread: the event loop.
Next: `chat_request.py`, `completion_request.py`, `responses_request.py`, `embedding_request.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import orjson

from headrace.errors import InvalidRequest
from headrace.wire.ask import JSON

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """How much one body may ask for, whatever its length in bytes."""

    max_depth: int = 64
    """Objects and lists inside each other, the body itself counted."""
    max_messages: int = 4096
    max_parts: int = 1024
    """Text parts of one message."""
    max_tools: int = 128
    """Also: calls in one message."""
    max_stops: int = 4
    max_biases: int = 1024
    max_metadata: int = 16
    max_documents: int = 128
    """Of one question; their length is the body's."""
    max_prompts: int = 128
    """Prompts of one legacy completion; also the most answers, prompts times `n`."""
    max_inputs: int = 2048
    """Texts of one request for embeddings."""
    max_schema_bytes: int = 65_536
    """Of one JSON schema, written without white space."""
    max_schema_depth: int = 32
    max_schema_nodes: int = 8_192
    """Values of one JSON schema, of any type."""


DEFAULT_LIMITS: Final = BodyLimits()


def parse_body(raw: bytes, limits: BodyLimits = DEFAULT_LIMITS) -> dict[str, JSON]:
    """The object that `raw` spells. Of a key that is there twice, the last one counts.

    Raises `InvalidRequest` for an empty body, one that is no UTF-8, no JSON or no object, and for
    one that nests too deeply.
    """
    if not raw or raw.isspace():
        raise InvalidRequest("the request has no body; send a JSON object")
    try:
        body = orjson.loads(raw.removeprefix(_BYTE_ORDER_MARK))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(_why_not_json(raw, error)) from None
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    # Every level opens a bracket, so few brackets are never deep: most bodies are not walked.
    if raw.count(b"[") + raw.count(b"{") > limits.max_depth and is_deeper(body, limits.max_depth):
        raise InvalidRequest(f"the body nests more than {limits.max_depth} levels deep")
    return body


def is_deeper(value: JSON, max_depth: int) -> bool:
    """Whether lists and objects stand inside each other more than `max_depth` times."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(max_depth):
        if not level:
            return False
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
    return bool(level)


def _why_not_json(raw: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        raw.decode()
    except UnicodeDecodeError as mistake:
        return f"the body is not UTF-8: byte {mistake.start} cannot be read"
    return f"the body is not valid JSON: {error}"
