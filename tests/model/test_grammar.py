"""Grammars: masks that say what may come, on a vocabulary of bytes and on a real one."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from headrace.errors import GenerationFailed, InvalidRequest, Unavailable
from headrace.model import gguf
from headrace.model.answer.formats import GENERIC, THINK_MARKERS
from headrace.model.answer.rules import JSONRule, Rules
from headrace.model.grammar import CompiledGrammar, GrammarCompiler, Vocabulary
from headrace.model.grammar.compiled import GrammarState
from headrace.model.tokenizer import Tokenizer
from headrace.testing import END_ID, START_ID, FakeTokenizer

BYTES = Vocabulary(FakeTokenizer())
COMPILER = GrammarCompiler(BYTES)
SPELL = FakeTokenizer().token_bytes
NUM_TOKENS = 260
"""Two more than the tokenizer knows, as `FakeModel` has."""


def rules(schema: Mapping[str, Any], **settings: Any) -> str:
    return Rules(form=GENERIC, json=JSONRule(schema), **settings).text


def compiled(schema: Mapping[str, Any], **settings: Any) -> CompiledGrammar:
    return COMPILER.compile(rules(schema, **settings), "schema")


def allowed(state: GrammarState) -> set[int]:
    words = state.mask().tolist()
    return {
        32 * place + bit for place, word in enumerate(words) for bit in range(32) if word >> bit & 1
    }


def after(grammar: CompiledGrammar, text: str) -> GrammarState:
    state = grammar.start(NUM_TOKENS)
    for token in BYTES.encode(text):
        state.accept(token)
    return state


def value(text: bytes) -> Any:
    """What a JSON text says; numbers too large for a float are numbers all the same."""
    return json.loads(text, parse_float=lambda number: min(float(number), 1e300))


def walk(
    grammar: CompiledGrammar,
    seed: int,
    *,
    num_tokens: int = NUM_TOKENS,
    spell: Callable[[int], bytes] = SPELL,
    max_tokens: int = 3000,
) -> bytes:
    """A random text that the grammar allows, tending to its end."""
    rng = random.Random(seed)
    state = grammar.start(num_tokens)
    text = b""
    for _ in range(max_tokens):
        if state.is_complete:
            return text
        choices = sorted(allowed(state))
        if END_ID in choices and num_tokens == NUM_TOKENS and rng.random() < 0.5:
            return text
        ends = [token for token in choices if spell(token)[:1] in (b'"', b"}", b"]")]
        token = rng.choice(ends) if ends and rng.random() < 0.4 else rng.choice(choices)
        state.accept(token)
        text += spell(token)
    raise AssertionError(f"no end in sight: {text[:200]!r}")


NODE = {
    "type": "object",
    "properties": {
        "value": {"type": "integer"},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    },
    "required": ["value", "next"],
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "any object": {"type": "object"},
    "no properties": {"type": "object", "properties": {}},
    "all types": {
        "type": "object",
        "properties": {
            "s": {"type": "string"},
            "n": {"type": "number"},
            "i": {"type": "integer"},
            "b": {"type": "boolean"},
            "z": {"type": "null"},
            "a": {"type": "array", "items": {"type": "integer"}},
            "o": {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]},
        },
        "required": ["s", "n", "i", "b", "z", "a", "o"],
        "additionalProperties": False,
    },
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": "boolean"}},
    },
    "enum": {"enum": ["red", "green", 3, None, {"x": [1]}]},
    "const": {"const": {"kind": "x"}},
    "any of": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"const": 1}}]},
    "one of": {
        "oneOf": [
            {"type": "object", "properties": {"k": {"const": "a"}}, "required": ["k"]},
            {"type": "object", "properties": {"k": {"const": "b"}}, "required": ["k"]},
        ]
    },
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]},
        ]
    },
    "lengths": {"type": "string", "minLength": 2, "maxLength": 4},
    "items": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    "range": {"type": "integer", "minimum": -3, "maximum": 12},
    "multiple": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100},
    "pattern": {"type": "string", "pattern": "^[a-c]{2,3}-[0-9]+$"},
    "date": {"type": "string", "format": "date"},
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "integer"}, {"type": "string"}],
        "items": False,
        "minItems": 2,
    },
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "recursive": {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    "nested": {
        "type": "object",
        "properties": {"list": {"type": "array", "items": NODE | {"title": "node"}}},
        "$defs": {"node": NODE},
        "required": ["list"],
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_is_allowed_satisfies_the_schema(name: str) -> None:
    schema = SCHEMAS[name]
    grammar = compiled(schema)
    for seed in range(4):
        text = walk(grammar, seed)
        jsonschema_rs.validate(schema, value(text))


def test_any_object_begins_with_a_brace_and_ends_with_one() -> None:
    state = after(compiled({"type": "object"}), "")
    assert allowed(state) == {ord("{")}
    state = after(compiled({"type": "object"}), '{"a": [1, {}]}')
    assert state.is_complete
    assert allowed(state) == {END_ID}


def test_what_may_end_or_go_on_allows_the_end() -> None:
    state = after(compiled({"type": "integer"}), "12")
    assert not state.is_complete
    assert {END_ID, ord("3")} <= allowed(state)
    state.accept(END_ID)
    assert state.is_complete


def test_markers_and_padding_are_never_allowed() -> None:
    state = after(compiled({"type": "string"}), '"')
    assert not allowed(state) & {START_ID, END_ID, 258, 259}
    assert len(state.mask()) == 9
    assert state.mask().format == "I"


def test_white_space_comes_to_an_end() -> None:
    spaces = {ord(" "), ord("\n"), ord("\t")}
    for start in ("{", '{"a"', '{"a":', '{"a":1', '{"a":[', '{"a":[1,'):
        for favourite in "\n ":
            state = after(compiled({"type": "object"}), start)
            for _ in range(40):
                here = allowed(state) & spaces
                if not here:
                    break
                state.accept(ord(favourite) if ord(favourite) in here else min(here))
            else:
                raise AssertionError(f"white space without end after {start}")


def test_objects_have_the_properties_they_name_and_no_others() -> None:
    state = after(compiled(SCHEMAS["optional"]), '{"')
    assert allowed(state) == set(b"ab")
    assert {ord("z"), ord("a")} < allowed(after(compiled(SCHEMAS["all of"]), '{"a":1,"b":2,"'))


def test_each_choice_has_a_state_of_its_own() -> None:
    grammar = compiled({"enum": ["ab", "ac"]})
    one, two = grammar.start(NUM_TOKENS), grammar.start(NUM_TOKENS)
    for letter in b'"ab':
        one.accept(letter)
    assert allowed(one) == {ord('"')}
    assert allowed(two) == {ord('"')}
    two.accept(ord('"'))
    assert allowed(two) == {ord("a")}


def test_a_token_that_cannot_be_fails_the_choice_alone() -> None:
    grammar = compiled({"type": "integer"})
    state = grammar.start(NUM_TOKENS)
    with pytest.raises(GenerationFailed):
        state.accept(ord("x"))
    with pytest.raises(GenerationFailed):
        state.mask()
    assert ord("1") in allowed(grammar.start(NUM_TOKENS))


class TestAfter:
    def test_goes_on_where_the_text_ends(self) -> None:
        grammar = compiled(SCHEMAS["all types"]).after('{"s": "x", "n": 1, "i": 2, "b":')
        assert grammar is not None
        assert allowed(grammar.start(NUM_TOKENS)) == set(b"tf \n")

    def test_is_nothing_where_the_text_is_none_of_it(self) -> None:
        assert compiled({"type": "object"}).after("Here it is: {") is None


class TestThoughts:
    THINK = THINK_MARKERS[0]

    def test_may_come_before_the_json(self) -> None:
        grammar = compiled({"const": 1}, thinks=self.THINK)
        assert after(grammar, "<think>{}</think>\n1").is_complete
        assert after(grammar, "1").is_complete

    def test_must_be_ended_where_the_prompt_began_them(self) -> None:
        grammar = compiled({"const": 1}, thinks=self.THINK, is_thinking=True)
        state = after(grammar, "1 and 2")
        assert END_ID not in allowed(state)
        assert after(grammar, "1 and 2</think>\n\n1").is_complete


class Marked(FakeTokenizer):
    """START_ID is spelled `<call>` and may be shown."""

    control_tokens: Mapping[str, int] = {"<call>": START_ID, "<|end|>": END_ID}


def test_visible_control_tokens_count_as_their_spelling() -> None:
    vocabulary = Vocabulary(Marked(), {START_ID: b"<call>"})
    state = GrammarCompiler(vocabulary).compile('start: "<call>" "x"\n', "r").start(NUM_TOKENS)
    assert START_ID in allowed(state)
    state.accept(START_ID)
    assert allowed(state) == {ord("x")}
    assert vocabulary.encode("a<call>b") == [ord("a"), START_ID, ord("b")]


class Spaced(FakeTokenizer):
    """Puts a space before each text."""

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return super().encode(" " + text)


def test_the_space_before_a_text_is_left_out() -> None:
    assert Vocabulary(Spaced()).encode("ab") == [ord("a"), ord("b")]


class TestCompiler:
    def test_keeps_what_it_compiled(self) -> None:
        text = rules({"const": "kept"})
        assert COMPILER.compile(text, "r") is COMPILER.compile(text, "r")

    def test_keeps_no_more_than_its_share(self) -> None:
        compiler = GrammarCompiler(BYTES)
        texts = [rules({"const": str(i)}) + "\n" + " " * 200_000 for i in range(4)]
        first = compiler.compile(texts[0], "r")
        for text in texts[1:]:
            compiler.compile(text, "r")
        assert compiler.compile(texts[0], "r") is not first

    def test_refuses_what_is_too_large(self) -> None:
        with pytest.raises(InvalidRequest, match="`tools` is too large"):
            COMPILER.compile("# " + "x" * 600_000, "tools")

    def test_names_the_field_and_the_reason(self) -> None:
        with pytest.raises(InvalidRequest, match=r"`r` cannot be followed: Unimplemented.*not"):
            COMPILER.compile(rules({"not": {"type": "string"}}), "r")

    def test_leaves_out_what_it_does_not_know_where_that_is_enough(self) -> None:
        text = rules({"type": "integer", "not": {"const": 3}}, is_lenient=True)
        assert ord("3") in allowed(COMPILER.compile(text, "r").start(NUM_TOKENS))

    def test_a_stuck_grammar_is_given_up_and_the_next_refused_until_it_ends(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stuck = threading.Event()
        compiler = GrammarCompiler(BYTES, max_s=0.05)
        work = compiler._compiled
        monkeypatch.setattr(compiler, "_compiled", lambda text: (stuck.wait(), work(text))[1])
        with pytest.raises(InvalidRequest, match="too much work"):
            compiler.compile(rules({"const": 1}), "r")
        with pytest.raises(Unavailable):
            compiler.compile(rules({"const": 2}), "r")
        stuck.set()
        monkeypatch.undo()
        patient = compiler
        patient._max_s = 5.0
        assert patient.compile(rules({"const": 3}), "r") is not None


@pytest.fixture(scope="module")
def real(default_model_path: Path) -> tuple[Tokenizer, GrammarCompiler]:
    tokenizer = Tokenizer.from_metadata(gguf.read(default_model_path).metadata)
    return tokenizer, GrammarCompiler(Vocabulary(tokenizer))


@pytest.mark.parametrize("name", ["any object", "all types", "recursive", "pattern", "enum"])
def test_a_real_vocabulary(name: str, real: tuple[Tokenizer, GrammarCompiler]) -> None:
    tokenizer, compiler = real
    grammar = compiler.compile(rules(SCHEMAS[name]), "schema")
    for seed in range(2):
        text = walk(
            grammar,
            seed,
            num_tokens=tokenizer.vocab_size,
            spell=tokenizer.token_bytes,
            max_tokens=600,
        )
        jsonschema_rs.validate(SCHEMAS[name], value(text))


def test_a_real_vocabulary_ends_with_each_of_its_ends(
    real: tuple[Tokenizer, GrammarCompiler],
) -> None:
    tokenizer, compiler = real
    state = compiler.compile(rules({"type": "integer"}), "s").start(tokenizer.vocab_size)
    for token in tokenizer.encode("7"):
        state.accept(token)
    control = set(tokenizer.control_tokens.values())
    assert allowed(state) & control == set(tokenizer.eog_ids)
