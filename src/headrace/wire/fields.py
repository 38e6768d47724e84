"""What request tables are written in: kinds of values, fields, and tables of fields.

A kind reads one JSON value, or says what is wrong with it, and describes itself as a JSON schema.
A field is a name with a kind and a place to go. A table reads a whole object: a null is as good as
absent, and what has no effect is noted by its path (`messages[0].timestamp`), never lost silently.
The same tables are the OpenAPI document, so neither can drift from the other.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from headrace.errors import InvalidRequest
from headrace.wire.ask import JSON, Ask
from headrace.wire.body import BodyLimits

Path: TypeAlias = tuple[str | int, ...]
"""Where a value stands in the body: `("messages", 0, "content")`."""
Given: TypeAlias = dict[str, Any]
"""What a table read, by the names of the wire; absent and null fields are not there."""

MOST_INT32: Final = 2**31 - 1
_PLAIN_KEY = re.compile(r"[\w-]{1,64}", re.ASCII)


def spelled(path: Path) -> str:
    """`messages[0].content`. Printable ASCII only, whatever keys a client made up."""
    text = ""
    for key in path:
        if isinstance(key, str) and _PLAIN_KEY.fullmatch(key):
            text += f".{key}" if text else key
        else:
            text += f"[{key}]" if isinstance(key, int) else f"[{json.dumps(str(key)[:64])}]"
    return text


def shown(value: JSON) -> str:
    """A value as error messages show it: in JSON's words, and short."""
    if isinstance(value, str):
        return json.dumps(value if len(value) <= 40 else value[:39] + "…", ensure_ascii=False)
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, Mapping):
        return "an object"
    return {None: "null", True: "true", False: "false"}[value] if _is_word(value) else f"{value!r}"


def _is_word(value: JSON) -> bool:
    return value is None or isinstance(value, bool)


def listed(names: Iterable[str]) -> str:
    """`a`, `b` or `c`."""
    *others, last = [f"`{name}`" for name in names]
    return f"{', '.join(others)} or {last}" if others else last


class Reading:
    """One body while it is being read: within which limits, how strictly, what had no effect.

    `strict` answers as Groq's validator does: what it does not know is an error, and errors are in
    its words wherever those are known.
    """

    __slots__ = ("_ignored", "limits", "strict")

    def __init__(self, limits: BodyLimits, *, strict: bool = False) -> None:
        self.limits = limits
        self.strict = strict
        self._ignored: dict[str, None] = {}

    @property
    def ignored(self) -> tuple[str, ...]:
        """Paths of what was sent and has no effect, in order, each once."""
        return tuple(self._ignored)

    def ignore(self, path: Path) -> None:
        self._ignored[spelled(path)] = None

    def wrong(
        self, path: Path, value: JSON, wanted: str, *, said: str | None = None
    ) -> InvalidRequest:
        """The value at `path` is not `wanted`. `said`: Groq's words for that, where known."""
        if self.strict and said is not None:
            return self.in_their_words(path, said, param=path)
        name = spelled(path)
        return InvalidRequest(f"`{name}` must be {wanted}, not {shown(value)}", param=name)

    def missing(self, path: Path) -> InvalidRequest:
        if self.strict:
            return self.in_their_words(path, f"property '{path[-1]}' is missing", param=path)
        return InvalidRequest(f"`{spelled(path)}` is missing; it is required", param=spelled(path))

    def unsupported(self, path: Path, known: Iterable[str]) -> InvalidRequest:
        """No field of that name is known where `known` are."""
        said = f"property '{path[-1]}' is unsupported"
        if near := difflib.get_close_matches(str(path[-1])[:64], list(known), n=1):
            said += f", did you mean '{near[0]}'?"
        return self.in_their_words(path[:-1], said, param=path)

    def check_number(self, path: Path, number: int, plural: str, limit: str) -> None:
        """Refuse more of something than the `BodyLimits` field `limit` allows."""
        most: int = getattr(self.limits, limit)
        if number > most:
            raise InvalidRequest(
                f"`{spelled(path)}` has {number} {plural}; at most {most} are allowed",
                param=spelled(path),
            )

    @staticmethod
    def in_their_words(path: Path, said: str, *, param: Path) -> InvalidRequest:
        """As Groq's validator writes it: `'messages.0.content' : value must be a string`."""
        place = f"'{'.'.join(map(str, path))}' : " if path else ""
        return InvalidRequest(f"{place}{said}", param=spelled(param))


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
            raise reading.wrong(path, value, self._wanted())
        return int(value)

    def _wanted(self) -> str:
        if self.least == self.most:
            return f"{self.least}"
        if self.most == MOST_INT32:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One row of a table."""

    name: str
    kind: Kind
    into: str | None = None
    """The `Ask` field that it becomes as it is; None: whoever reads the table makes more of it."""
    note: str = ""
    """What it is for, in a sentence."""
    required: bool = False
    has_effect: bool = True
    """False: accepted whatever it is, and noted as ignored."""
    is_ours: bool = False
    """Not in Groq's schema."""
    strictly: Kind | None = None
    """What Groq takes, where that is less."""

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        """Its JSON schema, with what holds where it is absent."""
        schema = self.kind.schema(limits)
        if not self.required:
            schema = _or_null(schema)
        if self.into in _DEFAULTS:
            schema["default"] = _DEFAULTS[self.into]
        note = self.note if self.has_effect else "Accepted, without effect."
        return schema | {"description": note} if note else schema


_DEFAULTS: Final[Mapping[str | None, JSON]] = {
    one.name: list(one.default) if isinstance(one.default, tuple) else one.default
    for one in dataclasses.fields(Ask)
    if one.default is not None and one.default is not dataclasses.MISSING
}


def _or_null(schema: dict[str, JSON]) -> dict[str, JSON]:
    if not schema or schema == {"type": "null"}:
        return schema
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    nullable = dict(schema)
    if "type" in schema:
        nullable["type"] = [schema["type"], "null"]
    if "enum" in schema:
        nullable["enum"] = [*schema["enum"], None]
    return nullable


def field(
    name: str, kind: Kind, into: str | None = None, note: str = "", *, required: bool = False
) -> Field:
    """A field of Groq's."""
    return Field(name=name, kind=kind, into=into, note=note, required=required)


def ours(name: str, kind: Kind, into: str | None = None, note: str = "") -> Field:
    """A field that Groq does not have."""
    return Field(name=name, kind=kind, into=into, note=note, is_ours=True)


def unused(name: str, kind: Kind) -> Field:
    """A field of Groq's that has no effect here."""
    return Field(name=name, kind=kind, has_effect=False)


def refused(name: str, why: str, *harmless: JSON) -> Field:
    """A field that means something that cannot be had here."""
    return Field(name=name, kind=Refused(why, harmless), note=f"Not supported: {why}.")


class Table:
    """The fields of one object, and how to read it."""

    def __init__(self, *fields: Field) -> None:
        self.fields: Sequence[Field] = fields
        self._by_name = {row.name: row for row in fields}
        self._strictly = {row.name: row for row in fields if not row.is_ours}
        self._required = [row.name for row in fields if row.required]

    def read(self, value: JSON, path: Path, reading: Reading) -> Given:
        """The fields that `value` gives. Raises `InvalidRequest`, naming the first wrong one."""
        if not isinstance(value, Mapping):
            raise reading.wrong(path, value, "an object")
        known = self._strictly if reading.strict else self._by_name
        given: Given = {}
        for name, item in value.items():
            row = known.get(name)
            if row is None and reading.strict:
                raise reading.unsupported((*path, name), known)
            if item is None:
                continue
            if row is None or not row.has_effect:
                reading.ignore((*path, name))
            if row is not None and (row.has_effect or reading.strict):
                kind = (reading.strict and row.strictly) or row.kind
                given[name] = kind.read(item, (*path, name), reading)
        for name in self._required:
            if name not in given:
                raise reading.missing((*path, name))
        return given

    def settings(self, given: Given, reading: Reading) -> dict[str, Any]:
        """What goes into `Ask` as it is. Of two fields for one place the later row wins."""
        settings: dict[str, Any] = {}
        came_from: dict[str, str] = {}
        for row in self.fields:
            if row.into is None or row.name not in given:
                continue
            value = given[row.name]
            if row.into in settings and settings[row.into] != value:
                reading.ignore((came_from[row.into],))
            settings[row.into], came_from[row.into] = value, row.name
        return settings

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        """An object's; further properties are allowed, as they are ignored."""
        properties = {row.name: row.schema(limits) for row in self.fields}
        schema: dict[str, JSON] = {"type": "object", "properties": properties}
        if self._required:
            schema["required"] = self._required
        return schema


class Variants:
    """Objects of several shapes: one field, the tag, says which."""

    def __init__(
        self,
        tag: str,
        shapes: Mapping[str, Table],
        *,
        default: str | None = None,
        said: str | None = None,
    ) -> None:
        """`shapes` by the tag's value; `default` holds where there is no tag. `said`: Groq's words
        for an unknown tag."""
        self._tag = tag
        self._default = default
        self._said = said
        self._shapes = {
            name: Table(field(tag, OneOf(name), required=default is None), *shape.fields)
            for name, shape in shapes.items()
        }

    def read(self, value: JSON, path: Path, reading: Reading) -> Given:
        """The tag's value is under the tag's name, also where it is the default."""
        if not isinstance(value, Mapping):
            raise reading.wrong(path, value, "an object")
        tag = value.get(self._tag)
        name = self._default if tag is None else tag
        shape = self._shapes.get(name) if isinstance(name, str) else None
        if shape is None:
            raise self._unknown(tag, path, reading)
        return {self._tag: name, **shape.read(value, path, reading)}

    def _unknown(self, tag: JSON, path: Path, reading: Reading) -> InvalidRequest:
        if reading.strict and self._said is not None:
            return reading.in_their_words(path, self._said, param=(*path, self._tag))
        if tag is None:
            return reading.missing((*path, self._tag))
        return reading.wrong((*path, self._tag), tag, listed(self._shapes))

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        return {"anyOf": [shape.schema(limits) for shape in self._shapes.values()]}
