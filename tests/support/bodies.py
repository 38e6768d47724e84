"""Request bodies: smallest ones that are right, and whatever hypothesis makes of a JSON schema."""

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

USER = {"role": "user", "content": "Why is the sky blue?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {
    "id": "a1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city":"X"}'},
}


def chat_body(*messages: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """A body of `/chat/completions`: these messages or one of a user's, and these fields."""
    return {"model": "m", "messages": list(messages or (USER,)), **fields}


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def from_schema(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values that `schema` allows: of the schemas that the API's description is made of."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of([from_schema(one) for one in schema["anyOf"]])
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not kinds:
        return json_values
    return st.one_of([_OF_TYPE[kind](schema) for kind in kinds])


def _string(schema: Mapping[str, Any]) -> st.SearchStrategy[str]:
    if "pattern" not in schema:
        return texts
    pattern = schema["pattern"].removeprefix("^").removesuffix("$")
    alphabet = st.characters(exclude_categories=["Cs"])
    return st.from_regex(pattern, fullmatch=True, alphabet=alphabet).filter(lambda s: len(s) < 70)


def _number(schema: Mapping[str, Any]) -> st.SearchStrategy[float]:
    return st.floats(schema["minimum"], schema["maximum"])


def _integer(schema: Mapping[str, Any]) -> st.SearchStrategy[int]:
    return st.integers(schema["minimum"], schema["maximum"])


def _array(schema: Mapping[str, Any]) -> st.SearchStrategy[list[Any]]:
    least = schema.get("minItems", 0)
    return st.lists(from_schema(schema["items"]), min_size=least, max_size=least + 2)


def _object(schema: Mapping[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    if "properties" not in schema:
        names = from_schema({"type": "string", **schema.get("propertyNames", {})})
        values = from_schema(schema.get("additionalProperties", {}))
        return st.dictionaries(names, values, max_size=2)
    properties = {name: from_schema(one) for name, one in schema["properties"].items()}
    required = {name: properties.pop(name) for name in schema.get("required", [])}
    return st.fixed_dictionaries(required, optional=properties)


_OF_TYPE = {
    "null": lambda schema: st.none(),
    "boolean": lambda schema: st.booleans(),
    "string": _string,
    "number": _number,
    "integer": _integer,
    "array": _array,
    "object": _object,
}
