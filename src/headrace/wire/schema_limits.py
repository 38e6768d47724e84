"""How big a client's JSON schema may be, before anybody compiles it.

What a grammar compiler makes of a schema is bounded there; this bounds what it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import orjson

from headrace.errors import InvalidRequest
from headrace.wire.ask import JSON
from headrace.wire.kinds import Object, Then
from headrace.wire.reading import Path, Reading, spelled

_MAPS = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords that hold schemas by name."""
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLES = ("items", "not", "additionalProperties")


def check_schema(schema: dict[str, JSON], path: Path, reading: Reading) -> dict[str, JSON]:
    """`schema`, if it is within the limits. Raises `InvalidRequest`."""
    limits = reading.limits
    num_nodes, depth = _measure(schema, limits.max_schema_nodes, limits.max_schema_depth)
    _check(path, num_nodes, limits.max_schema_nodes, "has more than {} values")
    _check(path, depth, limits.max_schema_depth, "nests more than {} levels deep")
    _check(path, _num_bytes(schema), limits.max_schema_bytes, "has more than {} bytes")
    return schema


def _check(path: Path, measured: int, most: int, sentence: str) -> None:
    if measured > most:
        raise InvalidRequest(
            f"the JSON schema in `{spelled(path)}` {sentence.format(most)}, the most allowed",
            param=spelled(path),
        )


def _measure(schema: JSON, max_nodes: int, max_depth: int) -> tuple[int, int]:
    """Values and levels; no more is counted once there are too many."""
    num_nodes = depth = 0
    level = [schema]
    while level and num_nodes <= max_nodes and depth <= max_depth:
        num_nodes += len(level)
        depth += 1
        level = [child for value in level for child in _children(value)]
    return num_nodes, depth


def _children(value: JSON) -> Iterator[JSON]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _num_bytes(schema: JSON) -> int:
    try:
        return len(orjson.dumps(schema))
    except TypeError as error:  # whatever no JSON body can hold
        raise InvalidRequest(f"a schema must be plain JSON: {error}") from None


SCHEMA = Then(Object(), check_schema)
"""A JSON schema within the limits."""


def open_object(schema: JSON, place: str = "") -> str | None:
    """Where `schema`, within the limits, has an object that allows further properties, as a JSON
    pointer; None where every one is closed, as strict schemas must be."""
    if not isinstance(schema, Mapping):
        return None
    kind = schema.get("type")
    is_object = kind == "object" or (isinstance(kind, list) and "object" in kind)
    if (is_object or "properties" in schema) and schema.get("additionalProperties") is not False:
        return place
    for key, part in _parts(schema):
        found = open_object(part, f"{place}/{key}")
        if found is not None:
            return found
    return None


def _parts(schema: Mapping[str, JSON]) -> Iterator[tuple[str, JSON]]:
    """The schemas right inside a schema, each with its way there."""
    for keyword in _MAPS:
        if isinstance(inner := schema.get(keyword), Mapping):
            yield from ((f"{keyword}/{name}", part) for name, part in inner.items())
    for keyword in _LISTS:
        if isinstance(inner := schema.get(keyword), list):
            yield from ((f"{keyword}/{index}", part) for index, part in enumerate(inner))
    for keyword in _SINGLES:
        yield keyword, schema.get(keyword)
