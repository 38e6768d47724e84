"""JSON schemas before they are compiled: bounded, and closed where they name their properties.

A schema comes from whoever sends requests, so its size is bounded before anybody works on it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, TypeAlias
from urllib.parse import unquote

from headrace.errors import InvalidRequest

Schema: TypeAlias = Mapping[str, Any]

MAX_CHARS = 1 << 17
MAX_DEPTH = 64
MAX_NODES = 10_000
MAX_PATTERN_CHARS = 1_000
MAX_PATTERNS = 100
_MAX_PLACES = 20

MAX_MULTIPLE = 20_000
"""The least common multiple of all `multipleOf`, in units of their last decimal place: the library
makes a state for each remainder, without a bound of its own."""

_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Hold schemas by name."""
_DATA = frozenset({"const", "enum", "default", "examples"})
"""Hold values, not schemas."""


def checked_text(schema: Schema, param: str) -> str:
    """`schema` as JSON text. Raises `InvalidRequest`: it is too large, too deep, or no JSON."""
    num_nodes = 0
    multiples: list[float] = []
    patterns: list[str] = []
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        num_nodes += len(level)
        if num_nodes > MAX_NODES:
            raise InvalidRequest(
                f"`{param}` has more than {MAX_NODES:,} values; make it smaller", param=param
            )
        patterns += [pattern for value in level for pattern in _patterns(value)]
        multiples += [value["multipleOf"] for value in level if _has_multiple(value)]
        level = [child for value in level for child in _children(value)]
        if not level:
            _check_patterns(patterns, param)
            _check_multiples(multiples, param)
            return _text(schema, param)
    raise InvalidRequest(f"`{param}` nests deeper than {MAX_DEPTH} levels", param=param)


def closed(schema: Any) -> Any:
    """`schema` with its objects limited to the properties they name.

    A schema without `additionalProperties` lets a model invent properties without end, and small
    models do. What is generated still satisfies the schema as it was sent. A schema that joins
    objects from several parts is left as it is: no part of it names all properties.
    """
    return schema if _joins(schema) else _closed(schema)


def _joins(schema: Any) -> bool:
    if isinstance(schema, list):
        return any(map(_joins, schema))
    if not isinstance(schema, Mapping):
        return False
    names_some = not schema.keys().isdisjoint({"properties", "required", "additionalProperties"})
    if names_some and not schema.keys().isdisjoint({"$ref", "anyOf", "oneOf"}):
        return True
    if not schema.keys().isdisjoint({"allOf", "not", "if", "$dynamicRef", "unevaluatedProperties"}):
        return True
    return any(map(_joins, schema.values()))


def _closed(schema: Any) -> Any:
    result = _changed(schema, _closed)
    if not isinstance(result, dict) or not isinstance(result.get("properties"), Mapping):
        return result
    required = result.get("required", [])
    names_all = isinstance(required, list) and all(
        name in result["properties"] for name in required
    )
    if names_all and result.keys().isdisjoint({"additionalProperties", "patternProperties"}):
        result["additionalProperties"] = False
    return result


def moved(schema: Any, to: str) -> Any:
    """`schema` for use as a part of another one, at JSON pointer `to`: its references follow."""
    result = _changed(schema, lambda part: moved(part, to))
    if isinstance(result, dict):
        reference = result.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            result["$ref"] = f"#{to}{reference[1:]}"
    return result


def without_patterns(schema: Any) -> Any:
    """`schema` without the regular expressions of its strings."""
    result = _changed(schema, without_patterns)
    if isinstance(result, dict):
        result.pop("pattern", None)
    return result


def is_tame(schema: Schema) -> bool:
    """Whether holding a value against `schema` takes time in proportion to the value.

    Alternatives that lead back to themselves, or references that double at each step, take time
    without bound.
    """
    try:
        return _num_expanded(schema, schema, {}) <= MAX_NODES
    except _Loop:
        return not _combines(schema)


class _Loop(Exception):
    """A reference leads back to where it stands."""


def _num_expanded(part: Any, root: Schema, known: dict[str, int | None]) -> int:
    """Values in `part` with all references written out. Raises `_Loop`."""
    total = 1 + sum(_num_expanded(child, root, known) for child in _children(part))
    reference = part.get("$ref") if isinstance(part, Mapping) else None
    if not isinstance(reference, str):
        return total
    if reference not in known:
        known[reference] = None
        known[reference] = _num_expanded(_target(reference, root), root, known)
    num_known = known[reference]
    if num_known is None:
        raise _Loop
    return total + num_known


def _target(reference: str, root: Schema) -> Any:
    value: Any = root
    for name in reference.removeprefix("#").split("/")[1:]:
        name = unquote(name).replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def _combines(schema: Any) -> bool:
    combining = {"allOf", "anyOf", "oneOf", "not", "if", "dependentSchemas", "$dynamicRef"}
    if isinstance(schema, Mapping) and not schema.keys().isdisjoint(combining):
        return True
    return any(map(_combines, _children(schema)))


def _changed(schema: Any, change: Callable[[Any], Any]) -> Any:
    """`schema` with each schema right inside it changed."""
    if isinstance(schema, list):
        return [change(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, Mapping):
            result[key] = {name: change(item) for name, item in value.items()}
        else:
            result[key] = value if key in _DATA else change(value)
    return result


def _children(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def _patterns(value: Any) -> list[str]:
    if not isinstance(value, Mapping):
        return []
    named = value.get("patternProperties")
    patterns = [value.get("pattern"), *(named if isinstance(named, Mapping) else ())]
    return [pattern for pattern in patterns if isinstance(pattern, str)]


def _check_patterns(patterns: list[str], param: str) -> None:
    if len(patterns) > MAX_PATTERNS or any(len(p) > MAX_PATTERN_CHARS for p in patterns):
        raise InvalidRequest(
            f"`{param}` may have {MAX_PATTERNS} patterns of up to {MAX_PATTERN_CHARS:,} characters",
            param=param,
        )


def _has_multiple(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    multiple = value.get("multipleOf")
    return isinstance(multiple, int | float) and not isinstance(multiple, bool)


def _check_multiples(multiples: list[float], param: str) -> None:
    exact = [abs(Decimal(repr(multiple))) for multiple in multiples if multiple]
    if not all(number.is_finite() for number in exact):
        raise InvalidRequest(f"`{param}` has a `multipleOf` that is no number", param=param)
    places = max((-_exponent(number) for number in exact), default=0)
    if max(places, *(number.adjusted() for number in exact), 0) <= _MAX_PLACES:
        scale = 10 ** max(0, places)
        if math.lcm(*(int(number * scale) for number in exact)) <= MAX_MULTIPLE:
            return
    raise InvalidRequest(
        f"`{param}` has a `multipleOf` that takes too much work; check it in your own code",
        param=param,
    )


def _exponent(number: Decimal) -> int:
    exponent = number.normalize().as_tuple().exponent
    assert isinstance(exponent, int)  # finite
    return exponent


def _text(schema: Schema, param: str) -> str:
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"`{param}` is no JSON: {error}", param=param) from None
    if len(text) > MAX_CHARS:
        raise InvalidRequest(
            f"`{param}` has {len(text):,} characters; at most {MAX_CHARS:,} are allowed",
            param=param,
        )
    return text
