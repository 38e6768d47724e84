"""Hostile schemas: refused, or followed within bounds; never a stalled server."""

from __future__ import annotations

import random
from typing import Any

import pytest
from llguidance import LLParserLimits

from headrace.errors import InvalidRequest
from headrace.model.answer.formats import GENERIC
from headrace.model.answer.rules import JSONRule, Rules
from headrace.model.answer.validation import Validator
from headrace.model.grammar import GrammarCompiler, Vocabulary
from headrace.model.grammar.schema import checked_text, closed, is_tame, moved, without_patterns
from headrace.testing import FakeTokenizer

COMPILER = GrammarCompiler(Vocabulary(FakeTokenizer()))
NUM_TOKENS = 260


def follow(schema: Any, num_tokens: int = 60) -> None:
    """Everything that a server does with a schema. Raises what refuses it."""
    checked_text(schema, "schema")
    Validator(schema, "schema").errors({"l": {}, "x": 1})
    grammar = COMPILER.compile(Rules(form=GENERIC, json=JSONRule(schema)).text, "schema")
    state = grammar.start(NUM_TOKENS)
    rng = random.Random(0)
    for _ in range(num_tokens):
        words = state.mask().tolist()
        state.accept(rng.choice([i for i in range(256) if words[i // 32] >> i % 32 & 1]))
        if state.is_complete:
            return


def pattern(expression: str) -> dict[str, Any]:
    return {"type": "string", "pattern": expression}


def doubling(key: str, depth: int) -> dict[str, Any]:
    """References that double at each step."""

    def joint(number: int) -> dict[str, Any]:
        both = [{"$ref": f"#/$defs/d{number + 1}"}] * 2
        if key == "properties":
            return {"type": "object", "properties": dict(zip("lr", both, strict=True))}
        return {key: both}

    last = {f"d{depth}": {"type": "object", "properties": {"x": {"type": "integer"}}}}
    return {"$ref": "#/$defs/d0", "$defs": {f"d{i}": joint(i) for i in range(depth)} | last}


HOSTILE: dict[str, Any] = {
    "nested repeats": pattern("^(a+)+b$"),
    "ambiguous": pattern("^(a|aa|aaa)*$"),
    "huge repeat": pattern("^a{1,100000}$"),
    "repeats of repeats": pattern("^((a{1,1000}){1,1000}){1,1000}$"),
    "letters of letters": pattern(r"^(\w{1,1000}){1,1000}$"),
    "many states": pattern("^(.*a.{15}|.*b.{16}|.*c.{17})$"),
    "more states": pattern("^(.*[aeiou].{10}){10}$"),
    "many alternatives": pattern("^(" + "|".join(f"x{i}.*y" for i in range(100)) + ")$"),
    "joined patterns": {"allOf": [pattern(f"^.*a.{{{i}}}.*$") for i in range(8, 16)]},
    "long text": {"type": "string", "minLength": 10**6},
    "many items": {"type": "array", "items": {"type": "integer"}, "minItems": 10**6},
    "many names": {"type": "object", "minProperties": 10**5},
    "wide": {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(1500)}},
    "wide choice": {"enum": [f"value {i}" for i in range(3000)]},
    "multiple": {"type": "integer", "multipleOf": 9_999_991},
    "common multiple": {"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]},
    "tiny multiple": {"type": "number", "multipleOf": 1e-300},
    "itself": {"$ref": "#"},
    "loop": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "deep loop": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "doubling objects": doubling("properties", 40),
    "doubling parts": doubling("allOf", 30),
    "doubling choices": doubling("anyOf", 30),
    "product of choices": {
        "allOf": [
            {"anyOf": [{"properties": {f"p{i}{j}": {"type": "null"}}} for j in range(8)]}
            for i in range(12)
        ]
    },
    "another document": {"$ref": "http://127.0.0.1:9/schema.json"},
    "no such part": {"$ref": "#/$defs/none"},
    "impossible": {"type": "object", "properties": {"a": False}, "required": ["a"]},
    "no type": {"type": "banana"},
    "no pattern": pattern("(("),
    "a back reference": pattern(r"^(a)\1$"),
}


def test_why_a_pattern_cannot_be_followed_is_told() -> None:
    with pytest.raises(InvalidRequest, match="look-around"):
        COMPILER.compile(Rules(form=GENERIC, json=JSONRule(pattern("^(?=a)b$"))).text, "schema")


@pytest.mark.timeout(20)
def test_an_object_may_have_thousands_of_optional_properties() -> None:
    follow({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3000)}}, 10)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", HOSTILE)
def test_is_refused_or_followed(name: str) -> None:
    try:
        follow(HOSTILE[name])
    except InvalidRequest as refusal:
        assert refusal.status == 400
        assert refusal.param == "schema"
        assert len(refusal.message) < 600


@pytest.mark.parametrize(
    "name",
    ["multiple", "common multiple", "itself", "loop", "another document", "impossible", "no type",
     "no pattern", "no such part", "product of choices"],
)  # fmt: skip
def test_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        follow(HOSTILE[name])


class TestSize:
    def test_depth(self) -> None:
        schema: dict[str, Any] = {}
        for _ in range(5000):
            schema = {"items": schema}
        with pytest.raises(InvalidRequest, match="nests deeper than 64"):
            checked_text(schema, "s")

    def test_values(self) -> None:
        with pytest.raises(InvalidRequest, match="more than 10,000 values"):
            checked_text({"enum": list(range(20_000))}, "s")

    def test_characters(self) -> None:
        with pytest.raises(InvalidRequest, match="characters; at most"):
            checked_text({"description": "x" * 200_000}, "s")

    def test_patterns(self) -> None:
        with pytest.raises(InvalidRequest, match="patterns"):
            checked_text({"anyOf": [pattern("x")] * 101}, "s")
        with pytest.raises(InvalidRequest, match="patterns"):
            checked_text({"patternProperties": {"x" * 1001: True}}, "s")

    @pytest.mark.parametrize("multiples", [[0.01, 5, 100], [0.1], [10_000], [0], [True], ["x"]])
    def test_usual_multiples_pass(self, multiples: list[Any]) -> None:
        checked_text({"anyOf": [{"multipleOf": multiple} for multiple in multiples]}, "s")

    @pytest.mark.parametrize("value", [float("nan"), {1, 2}])
    def test_what_is_no_json(self, value: Any) -> None:
        with pytest.raises(InvalidRequest, match="is no JSON"):
            checked_text({"default": value}, "s")


def test_tame_is_what_takes_time_in_proportion() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    assert is_tame(node)
    assert is_tame({"anyOf": [{"$ref": "#/$defs/a"}] * 3, "$defs": {"a": {"type": "null"}}})
    assert not is_tame({"anyOf": [node, node]})
    assert not is_tame(doubling("allOf", 30))
    assert is_tame(doubling("allOf", 5))


OBJECT: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "null"}}}


class TestClosed:
    def test_objects_inside_and_definitions(self) -> None:
        schema = {"type": "array", "items": OBJECT, "$defs": {"x": OBJECT}}
        shut = OBJECT | {"additionalProperties": False}
        assert closed(schema) == {"type": "array", "items": shut, "$defs": {"x": shut}}

    @pytest.mark.parametrize(
        "more",
        [
            {"additionalProperties": True},
            {"patternProperties": {"^x": True}},
            {"required": ["a", "b"]},
            {"allOf": [{"required": ["b"]}]},
            {"anyOf": [{"required": ["b"]}, {}]},
            {"$ref": "#/$defs/x"},
            {"unevaluatedProperties": False},
        ],
    )
    def test_leaves_open_what_is_said_elsewhere(self, more: dict[str, Any]) -> None:
        assert closed(OBJECT | more) == OBJECT | more

    def test_a_property_may_be_called_properties(self) -> None:
        schema = {"type": "object", "properties": {"properties": {"type": "string"}}}
        assert closed(schema) == schema | {"additionalProperties": False}

    def test_values_are_no_schemas(self) -> None:
        schema = {"const": {"properties": {}}, "enum": [{"properties": {}}]}
        assert closed(schema) == schema


def test_moved_takes_references_along() -> None:
    schema = {"properties": {"$ref": {"$ref": "#/$defs/a"}, "b": {"const": {"$ref": "#"}}}}
    assert moved(schema, "/anyOf/1") == {
        "properties": {"$ref": {"$ref": "#/anyOf/1/$defs/a"}, "b": {"const": {"$ref": "#"}}}
    }


def test_without_patterns_keeps_properties_of_that_name() -> None:
    schema = {"properties": {"pattern": {"type": "string", "pattern": "x"}}}
    assert without_patterns(schema) == {"properties": {"pattern": {"type": "string"}}}


def test_a_limit_that_is_met_on_the_way_is_the_schemas_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = LLParserLimits(max_items_in_row=100, verbose_errors=False)
    monkeypatch.setattr("headrace.model.grammar.compiler._LIMITS", few)
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(101)}}
    with pytest.raises(InvalidRequest, match="`schema` takes too much work to follow") as refusal:
        follow(schema)
    assert refusal.value.param == "schema"
