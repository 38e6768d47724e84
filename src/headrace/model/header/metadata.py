"""The metadata of a file: keys and their values, of any type, in bounds."""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import TypeAlias

from headrace.model.header.cursor import (
    MAX_ENTRIES,
    MAX_NAME_BYTES,
    U32,
    U64,
    Cursor,
    check_count,
    shown,
)

Value: TypeAlias = "bool | int | float | str | tuple[Value, ...]"
"""A metadata value; arrays are tuples."""

MAX_NESTED_ITEMS = 1 << 16
MAX_NESTING = 4
DEFAULT_ALIGNMENT = 32

_ARRAY = Struct("<IQ")
# The least that an entry takes: an empty key, its type and one byte.
_MIN_KEY_BYTES = 8 + 4 + 1
_STRING_TYPE, _ARRAY_TYPE, _BOOL_TYPE = 8, 9, 7
_NUMBER_CODES = {
    **dict(enumerate("BbHhIif")),
    _BOOL_TYPE: "B",
    **dict(enumerate("Qqd", start=10)),
}


def read_metadata(cursor: Cursor, num_keys: int) -> dict[str, Value]:
    check_count(cursor, "metadata", num_keys, _MIN_KEY_BYTES, MAX_ENTRIES)
    metadata: dict[str, Value] = {}
    for index in range(num_keys):
        key = cursor.string(f"metadata key {index}", MAX_NAME_BYTES)
        if not key:
            raise cursor.invalid(f"metadata key {index}", "is empty")
        part = shown(key)
        if key in metadata:
            raise cursor.invalid(part, "this key appears twice")
        (value_type,) = cursor.unpack(U32, part)
        metadata[key] = _read_value(cursor, value_type, part, nesting=0)
    return metadata


def _read_value(cursor: Cursor, value_type: int, part: str, nesting: int) -> Value:
    if value_type == _STRING_TYPE:
        return cursor.string(part)
    if value_type == _ARRAY_TYPE:
        return _read_array(cursor, part, nesting + 1)
    value: Value = _read_numbers(cursor, value_type, 1, part)[0]
    return value


def _read_array(cursor: Cursor, part: str, nesting: int) -> tuple[Value, ...]:
    if nesting > MAX_NESTING:
        raise cursor.invalid(part, f"arrays inside arrays, more than {MAX_NESTING} deep")
    item_type, count = cursor.unpack(_ARRAY, part)
    if item_type == _ARRAY_TYPE:
        check_count(cursor, part, count, _ARRAY.size, MAX_NESTED_ITEMS)
        return tuple(_read_array(cursor, f"{part}[{i}]", nesting + 1) for i in range(count))
    if item_type == _STRING_TYPE:
        check_count(cursor, part, count, U64.size)
        return cursor.strings(count, part)
    return _read_numbers(cursor, item_type, count, part)


def _read_numbers(cursor: Cursor, value_type: int, count: int, part: str) -> tuple[Value, ...]:
    code = _NUMBER_CODES.get(value_type)
    if code is None:
        raise cursor.invalid(part, f"unknown value type {value_type}")
    check_count(cursor, part, count, Struct(f"<{code}").size)
    values = cursor.numbers(code, count, part)
    if value_type != _BOOL_TYPE:
        return values
    if values and max(values) > 1:
        raise cursor.invalid(part, f"a boolean must be 0 or 1, not {max(values)}")
    return tuple(map(bool, values))


def alignment_of(cursor: Cursor, metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
        raise cursor.invalid(
            "general.alignment", f"must be a power of two from 8 upward, not {alignment!r}"
        )
    return alignment


def architecture_of(cursor: Cursor, metadata: Mapping[str, Value]) -> str:
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise cursor.invalid("general.architecture", "must name the model's architecture")
    return architecture


def reject_split(cursor: Cursor, metadata: Mapping[str, Value]) -> None:
    count = metadata.get("split.count", 0)
    if type(count) is not int:
        raise cursor.invalid("split.count", f"must be a whole number, not {count!r}")
    if count > 1:
        raise cursor.unsupported(
            "split.count",
            f"this is one of {count} parts of a model; merge them into one file first "
            "(llama-gguf-split --merge)",
        )
