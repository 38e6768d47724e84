"""What request tables are written in: fields, and tables of them.

A field is a name with a kind of value and a place to go. A table reads a whole object: a null is as
good as absent, and what has no effect is noted by its path (`messages[0].timestamp`), never lost
silently. The same tables are the OpenAPI document, so neither can drift from the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from headrace.errors import InvalidRequest
from headrace.wire.ask import JSON, Ask
from headrace.wire.body import BodyLimits
from headrace.wire.kinds import Kind, OneOf, Refused
from headrace.wire.reading import Path, Reading, listed

Given: TypeAlias = dict[str, Any]
"""What a table read, by the names of the wire; absent and null fields are not there."""


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
    name: str,
    kind: Kind,
    into: str | None = None,
    note: str = "",
    *,
    required: bool = False,
    strictly: Kind | None = None,
) -> Field:
    """A field of Groq's."""
    return Field(name=name, kind=kind, into=into, note=note, required=required, strictly=strictly)


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
        self._placed = [(row.name, row.into) for row in fields if row.into is not None]

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
        for name, into in self._placed:
            if name not in given:
                continue
            value = given[name]
            if into in settings and settings[into] != value:
                reading.ignore((came_from[into],))
            settings[into], came_from[into] = value, name
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
