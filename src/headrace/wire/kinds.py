"""Kinds of values: each reads one JSON value, or says what is wrong with it, and describes itself
as a JSON schema."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from headrace.errors import InvalidRequest
from headrace.wire.ask import JSON
from headrace.wire.body import BodyLimits
from headrace.wire.reading import Path, Reading, listed, spelled

MOST_INT32: Final = 2**31 - 1
MOST_EXACT: Final = 2**53 - 1
"""The most that every JSON reader has exactly: where a better bound follows."""


class Kind(Protocol):
    """One type of value, with its range."""

    def read(self, value: JSON, path: Path, reading: Reading) -> Any:
        """`value`, checked, as it is used. It is never null. Raises `InvalidRequest`."""

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        """Its JSON schema."""


@dataclass(frozen=True, slots=True)
class Anything:
    def read(self, value: JSON, path: Path, reading: Reading) -> JSON:
        return value

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        return {}


@dataclass(frozen=True, slots=True)
class Boolean:
    def read(self, value: JSON, path: Path, reading: Reading) -> bool:
        if not isinstance(value, bool):
            raise reading.wrong(path, value, "true or false")
        return value

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Number:
    least: float
    most: float

    def read(self, value: JSON, path: Path, reading: Reading) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not self.least <= value <= self.most:
            raise reading.wrong(path, value, f"a number from {self.least:g} to {self.most:g}")
        return float(value)

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        return {"type": "number", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number. 5.0 is one, as in JSON schemas."""

    least: int
    most: int = MOST_INT32

    def read(self, value: JSON, path: Path, reading: Reading) -> int:
        is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if not is_whole or isinstance(value, bool) or not self.least <= value <= self.most:
            is_too_large = is_whole and value > self.most
            raise reading.wrong(path, value, self._wanted(is_too_large=is_too_large))
        return int(value)

    def _wanted(self, *, is_too_large: bool) -> str:
        if self.least == self.most:
            return f"{self.least}"
        if self.most >= MOST_INT32 and not is_too_large:
            return f"a whole number of at least {self.least}"
        return f"a whole number from {self.least} to {self.most}"

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True, slots=True)
class Text:
    """A string; `pattern`, if any, describes all of it, and `wanted` says so in words."""

    pattern: str | None = None
    wanted: str = "a string"

    def read(self, value: JSON, path: Path, reading: Reading) -> str:
        if not isinstance(value, str):
            raise reading.wrong(path, value, self.wanted, said="value must be a string")
        if self.pattern is not None and not re.fullmatch(self.pattern, value):
            raise reading.wrong(path, value, self.wanted)
        return value

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        pattern = {} if self.pattern is None else {"pattern": f"^(?:{self.pattern})$"}
        return {"type": "string", **pattern}


class OneOf:
    """One of some words."""

    def __init__(self, *words: str, synonyms: Mapping[str, str] | None = None) -> None:
        """`synonyms` are further words, each with the one that it stands for."""
        self._words = dict.fromkeys(words, "") | dict(synonyms or {})

    def read(self, value: JSON, path: Path, reading: Reading) -> str:
        if not isinstance(value, str) or value not in self._words:
            allowed = ",".join(f"'{word}'" for word in self._words)
            said = f"value is not one of the allowed values [{allowed}]"
            raise reading.wrong(path, value, listed(self._words), said=said)
        return self._words[value] or value

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        return {"type": "string", "enum": list(self._words)}


@dataclass(frozen=True, slots=True)
class Object:
    """Any object."""

    def read(self, value: JSON, path: Path, reading: Reading) -> dict[str, JSON]:
        if not isinstance(value, dict):
            raise reading.wrong(path, value, "an object")
        return value

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        return {"type": "object"}


@dataclass(frozen=True, slots=True)
class MapOf:
    """An object whose keys are the client's, its values of one kind. Nulls are left out."""

    key: Text
    kind: Kind
    plural: str
    limit: str
    """The field of `BodyLimits` that bounds it."""

    def read(self, value: JSON, path: Path, reading: Reading) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise reading.wrong(path, value, "an object")
        reading.check_number(path, len(value), self.plural, self.limit)
        return {
            self.key.read(name, path, reading): self.kind.read(item, (*path, name), reading)
            for name, item in value.items()
            if item is not None
        }

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        key = self.key.schema(limits)
        return {
            "type": "object",
            "additionalProperties": self.kind.schema(limits),
            "maxProperties": getattr(limits, self.limit),
            **({"propertyNames": key} if self.key.pattern is not None else {}),
        }


@dataclass(frozen=True, slots=True)
class Many:
    """A list of one kind."""

    kind: Kind
    plural: str
    """What the list holds, for people: `messages`."""
    least: int = 0
    limit: str | None = None
    """The field of `BodyLimits` that bounds it."""

    def read(self, value: JSON, path: Path, reading: Reading) -> list[Any]:
        if not isinstance(value, list):
            raise reading.wrong(path, value, f"a list of {self.plural}")
        if len(value) < self.least:
            wanted = f"a list of {self.plural}, {self.least} or more of them"
            said = f"minimum number of items is {self.least}"
            raise reading.wrong(path, value, wanted, said=said)
        if self.limit is not None:
            reading.check_number(path, len(value), self.plural, self.limit)
        return [self.kind.read(item, (*path, index), reading) for index, item in enumerate(value)]

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        schema: dict[str, JSON] = {"type": "array", "items": self.kind.schema(limits)}
        if self.least:
            schema["minItems"] = self.least
        if self.limit is not None:
            schema["maxItems"] = getattr(limits, self.limit)
        return schema


@dataclass(frozen=True, slots=True)
class ByType:
    """One kind or another, as the value's own JSON type says."""

    kinds: Mapping[type, Kind]
    """By the Python types that JSON becomes: `str`, `list`, `dict`."""
    wanted: str
    said: str | None = None

    def read(self, value: JSON, path: Path, reading: Reading) -> Any:
        kind = self.kinds.get(type(value))
        if kind is None:
            raise reading.wrong(path, value, self.wanted, said=self.said)
        return kind.read(value, path, reading)

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        return {"anyOf": [kind.schema(limits) for kind in self.kinds.values()]}


@dataclass(frozen=True, slots=True)
class Then:
    """A kind, and what to make of its values."""

    kind: Kind
    make: Callable[[Any, Path, Reading], Any]

    def read(self, value: JSON, path: Path, reading: Reading) -> Any:
        return self.make(self.kind.read(value, path, reading), path, reading)

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        return self.kind.schema(limits)


@dataclass(frozen=True, slots=True)
class Refused:
    """What cannot be had here, and why: any value but the harmless ones is an error."""

    why: str
    harmless: tuple[JSON, ...] = ()

    def read(self, value: JSON, path: Path, reading: Reading) -> JSON:
        if not any(type(value) is type(word) and value == word for word in self.harmless):
            raise InvalidRequest(
                f"`{spelled(path)}` is not supported: {self.why}", param=spelled(path)
            )
        return value

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        return {"enum": list(self.harmless)} if self.harmless else {"type": "null"}
