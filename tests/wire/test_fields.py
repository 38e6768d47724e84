"""Kinds, fields and tables: what they read, what they say, what they note."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidRequest
from headrace.wire.body import BodyLimits
from headrace.wire.fields import Table, Variants, field, ours, unused
from headrace.wire.kinds import (
    Anything,
    Boolean,
    ByType,
    Kind,
    Many,
    MapOf,
    Number,
    Object,
    OneOf,
    Refused,
    Text,
    Then,
    Whole,
)
from headrace.wire.reading import Path, Reading, shown, spelled
from support.bodies import json_values


def lenient() -> Reading:
    return Reading(BodyLimits())


def strict() -> Reading:
    return Reading(BodyLimits(), strict=True)


NAMES = Many(Text(), "names", least=1, limit="max_stops")
READ: list[tuple[Kind, Any, Any]] = [
    (Anything(), {"a": 1}, {"a": 1}),
    (Boolean(), False, False),
    (Number(0, 2), 2, 2.0),
    (Number(0, 2), 0.5, 0.5),
    (Whole(1), 5, 5),
    (Whole(1), 5.0, 5),
    (Whole(-(2**63), 2**64 - 1), 2**64 - 1, 2**64 - 1),
    (Text(), "", ""),
    (Text("[a-z]+"), "ab", "ab"),
    (OneOf("a", "b"), "b", "b"),
    (OneOf("a", synonyms={"x": "a"}), "x", "a"),
    (Object(), {"a": None}, {"a": None}),
    (NAMES, ["x", "y"], ["x", "y"]),
    (MapOf(Text("[0-9]"), Boolean(), "digits", "max_stops"), {"1": True, "2": None}, {"1": True}),
    (ByType({str: Text(), dict: Object()}, "text or object"), {}, {}),
    (Then(Whole(0), lambda value, path, reading: value + 1), 4, 5),
    (Refused("not here", (False,)), False, False),
    (Table(field("a", Boolean())), {"a": True, "b": 1}, {"a": True}),
    (Variants("type", {"x": Table(field("a", Text()))}, default="x"), {"a": "b"},
     {"type": "x", "a": "b"}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "read"), READ, ids=lambda value: type(value).__name__)
def test_a_right_value_is_read(kind: Kind, value: Any, read: Any) -> None:
    result = kind.read(value, ("field",), lenient())
    assert result == read
    assert type(result) is type(read)


WRONG: list[tuple[Kind, Any, str]] = [
    (Boolean(), 1, "`f` must be true or false, not 1"),
    (Boolean(), "true", '`f` must be true or false, not "true"'),
    (Number(0, 2), 2.5, "`f` must be a number from 0 to 2, not 2.5"),
    (Number(0, 2), True, "`f` must be a number from 0 to 2, not true"),
    (Number(0, 2), float("nan"), "`f` must be a number from 0 to 2, not nan"),
    (Whole(1), 0, "`f` must be a whole number of at least 1, not 0"),
    (Whole(1), 1.5, "`f` must be a whole number of at least 1, not 1.5"),
    (Whole(1), 1e300, "`f` must be a whole number from 1 to 2147483647, not 1e+300"),
    (Whole(1), True, "`f` must be a whole number of at least 1, not true"),
    (Whole(0, 20), 21, "`f` must be a whole number from 0 to 20, not 21"),
    (Text(), ["x"], "`f` must be a string, not a list"),
    (Text("[a-z]+", "small letters"), "ab\n", '`f` must be small letters, not "ab\\n"'),
    (OneOf("a", "b", "c"), "d", '`f` must be `a`, `b` or `c`, not "d"'),
    (OneOf("a", "b"), [], "`f` must be `a` or `b`, not an empty list"),
    (Object(), [], "`f` must be an object, not an empty list"),
    (NAMES, "x", '`f` must be a list of names, not "x"'),
    (NAMES, [], "`f` must be a list of names, 1 or more of them, not an empty list"),
    (NAMES, ["x"] * 5, "`f` has 5 names; at most 4 are allowed"),
    (NAMES, ["x", None], "`f[1]` must be a string, not null"),
    (MapOf(Text("[0-9]", "a map of digits"), Boolean(), "digits", "max_stops"), {"x": True},
     '`f` must be a map of digits, not "x"'),
    (MapOf(Text(), Boolean(), "things", "max_stops"), {"x": 1},
     "`f.x` must be true or false, not 1"),
    (MapOf(Text(), Boolean(), "things", "max_stops"), dict.fromkeys("abcde", True),
     "`f` has 5 things; at most 4 are allowed"),
    (ByType({str: Text()}, "a text"), {}, "`f` must be a text, not an object"),
    (Refused("not here", (False,)), True, "`f` is not supported: not here"),
    (Refused("not here", (False,)), 0, "`f` is not supported: not here"),
    (Table(field("a", Boolean())), {"a": 1}, "`f.a` must be true or false, not 1"),
    (Table(field("a", Boolean())), "a", '`f` must be an object, not "a"'),
    (Table(field("a", Boolean(), required=True)), {"a": None}, "`f.a` is missing; it is required"),
    (Variants("type", {"x": Table(), "y": Table()}), {"type": "z"},
     '`f.type` must be `x` or `y`, not "z"'),
    (Variants("type", {"x": Table()}), {}, "`f.type` is missing; it is required"),
    (Variants("type", {"x": Table()}), {"type": {}}, "`f.type` must be `x`, not an object"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "message"), WRONG)
def test_a_wrong_value_is_refused_by_name(kind: Kind, value: Any, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        kind.read(value, ("f",), lenient())
    assert caught.value.message == message
    assert caught.value.param == message.split("`")[1]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("messages", 0, "content"), "messages[0].content"),
        ((), ""),
        (("a b",), '["a b"]'),
        (("x", "ä\r\n"), 'x["\\u00e4\\r\\n"]'),
        (("x", "y" * 500), 'x["' + "y" * 64 + '"]'),
    ],
)
def test_a_path_is_spelled(path: Path, name: str) -> None:
    assert spelled(path) == name


@given(st.lists(st.text() | st.integers()))
def test_a_spelled_path_fits_a_header(path: list[str | int]) -> None:
    name = spelled(tuple(path))
    assert name.isascii()
    assert name.isprintable()


@given(json_values)
def test_a_shown_value_is_short(value: object) -> None:
    assert len(shown(value)) < 300


def test_a_long_text_is_cut() -> None:
    assert shown("x" * 1000) == f'"{"x" * 39}…"'


TABLE = Table(
    field("old", Whole(0), "max_tokens"),
    field("new", Whole(0), "max_tokens"),
    unused("store", Boolean()),
    ours("extra", Text()),
    field("inner", Table(field("known", Boolean()))),
)


def test_what_has_no_effect_is_noted_by_its_path() -> None:
    reading = lenient()
    body = {"store": 3, "foo": [1], "inner": {"known": True, "x": 1}, "extra": "e", "gone": None}
    assert TABLE.read(body, (), reading) == {"inner": {"known": True}, "extra": "e"}
    assert reading.ignored == ("store", "foo", "inner.x")


def test_of_two_fields_for_one_place_the_later_row_wins() -> None:
    reading = lenient()
    given = TABLE.read({"new": 1, "old": 2}, (), reading)
    assert TABLE.settings(given, reading) == {"max_tokens": 1}
    assert reading.ignored == ("old",)


def test_two_fields_that_agree_are_no_contradiction() -> None:
    reading = lenient()
    given = TABLE.read({"new": 1, "old": 1}, (), reading)
    assert TABLE.settings(given, reading) == {"max_tokens": 1}
    assert reading.ignored == ()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"foo": 1}, "property 'foo' is unsupported"),
        ({"foo": None}, "property 'foo' is unsupported"),
        ({"stor": 1}, "property 'stor' is unsupported, did you mean 'store'?"),
        ({"extra": "e"}, "property 'extra' is unsupported"),
        ({"inner": {"x": 1}}, "'inner' : property 'x' is unsupported"),
        ({"store": 3}, "`store` must be true or false, not 3"),
    ],
)
def test_strictly_the_unknown_is_an_error(body: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        TABLE.read(body, (), strict())
    assert caught.value.message == message
    assert caught.value.param is not None


def test_a_schema_tells_range_default_and_note() -> None:
    table = Table(
        field("temperature", Number(0, 2), "temperature", "How wild."),
        field("stop", NAMES, required=True),
        unused("tier", OneOf("a", "b")),
    )
    assert table.schema(BodyLimits(max_stops=7)) == {
        "type": "object",
        "properties": {
            "temperature": {
                "type": ["number", "null"],
                "minimum": 0,
                "maximum": 2,
                "default": 0.7,
                "description": "How wild.",
            },
            "stop": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 7},
            "tier": {
                "type": ["string", "null"],
                "enum": ["a", "b", None],
                "description": "Accepted, without effect.",
            },
        },
        "required": ["stop"],
    }
