"""Rules: what an answer may look like, family by family."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.model.answer.calls import CallReader
from headrace.model.answer.formats import (
    GENERIC,
    HERMES,
    LLAMA,
    MISTRAL,
    THINK_MARKERS,
    ToolFormat,
    think_markers,
    tool_format,
)
from headrace.model.answer.parts import Call, Content, Part, joined
from headrace.model.answer.rules import CallRule, JSONRule, Rules
from headrace.model.grammar import GrammarCompiler, Vocabulary
from headrace.testing import END_ID, FakeTokenizer

COMPILER = GrammarCompiler(Vocabulary(FakeTokenizer()))
NUM_TOKENS = 260
CITY = JSONRule(
    {"type": "object", "properties": {"city": {"$ref": "#/$defs/name"}}, "required": ["city"],
     "$defs": {"name": {"type": "string"}}}
)  # fmt: skip
CALLS = [CallRule("weather", CITY), CallRule("weather-now", JSONRule({"type": "object"}))]
FAMILIES = [HERMES, LLAMA, MISTRAL, GENERIC]


def fits(text: str, form: ToolFormat, **settings: Any) -> bool | None:
    """Whether the answer may be `text`; None where it may only begin like that."""
    rules = Rules(form=form, **settings).text
    state = COMPILER.compile(rules, "rules").start(NUM_TOKENS)
    for token in text.encode():
        words = state.mask().tolist()
        if not words[token // 32] >> token % 32 & 1:
            return False
        state.accept(token)
    words = state.mask().tolist()
    return True if words[END_ID // 32] >> END_ID % 32 & 1 else None


def call(form: ToolFormat, name: str = "weather", arguments: str = '{"city": "Oslo"}') -> str:
    body = f'{{"name": "{name}", "{form.arguments}": {arguments}}}'
    if form == MISTRAL:
        return f"[TOOL_CALLS] [{body}]"
    return body if form == LLAMA else f"<tool_call>\n{body}\n</tool_call>"


@pytest.mark.parametrize("form", FAMILIES, ids=lambda form: form.name)
class TestForced:
    def test_a_call_of_each_tool(self, form: ToolFormat) -> None:
        assert fits(call(form), form, calls=CALLS)
        assert fits(call(form, "weather-now", "{}"), form, calls=CALLS)

    def test_nothing_else(self, form: ToolFormat) -> None:
        for text in (
            "Hello",
            call(form, "other"),
            call(form, arguments='{"town": "Oslo"}'),
            call(form, arguments='{"city": 7}'),
            call(form) + call(form),
        ):
            assert fits(text, form, calls=CALLS) is False, text

    def test_never_nothing(self, form: ToolFormat) -> None:
        assert fits("", form, calls=CALLS) is None

    def test_what_is_allowed_is_read(self, form: ToolFormat) -> None:
        reader = CallReader(form)
        parts = [*reader.push(call(form)), *reader.finish()]
        assert parts == [Call("weather", '{"city":"Oslo"}')]


@pytest.mark.parametrize("form", FAMILIES, ids=lambda form: form.name)
class TestAuto:
    def test_any_text(self, form: ToolFormat) -> None:
        for text in ("", "Hello\n", "a < b {\n", '{"x": 1} is JSON', "<tool_cat> [TOOL"):
            assert fits(text, form, calls=CALLS, allows_text=True) is True, text

    def test_a_call_once_it_begins(self, form: ToolFormat) -> None:
        assert fits(call(form), form, calls=CALLS, allows_text=True)
        start = call(form)[: len(form.opening)] if form.needs_opening else '{"name'
        assert fits(start, form, calls=CALLS, allows_text=True) is None
        for wrong in (call(form, "other"), call(form, arguments='{"town": 1}')):
            assert fits(wrong, form, calls=CALLS, allows_text=True) is False


@pytest.mark.parametrize("form", [HERMES, MISTRAL, GENERIC], ids=lambda form: form.name)
def test_text_before_a_call(form: ToolFormat) -> None:
    assert fits(f"Let me see.\n{call(form)}", form, calls=CALLS, allows_text=True)


@pytest.mark.parametrize("form", [HERMES, MISTRAL], ids=lambda form: form.name)
def test_several_calls_only_where_they_are_allowed(form: ToolFormat) -> None:
    one = call(form)
    two = f"{one[:-1]}, {one[len('[TOOL_CALLS] [') :]}" if form == MISTRAL else f"{one}\n{one}"
    assert fits(two, form, calls=CALLS, allows_several=True)
    assert fits(two, form, calls=CALLS) is False


def test_calls_come_to_an_end() -> None:
    many = "\n".join([call(HERMES)] * 9)
    assert fits(many, HERMES, calls=CALLS, allows_several=True) is False


@pytest.mark.parametrize("form", FAMILIES, ids=lambda form: form.name)
class TestJSONOrCalls:
    JSON = JSONRule(
        {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"],
         "$defs": {"n": {"type": "integer"}}}
    )  # fmt: skip

    def test_either(self, form: ToolFormat) -> None:
        assert fits('{"n": 1}', form, calls=CALLS, json=self.JSON)
        assert fits(call(form), form, calls=CALLS, json=self.JSON)

    def test_neither(self, form: ToolFormat) -> None:
        for text in ("Hello", '{"n": "x"}', call(form, "other"), call(form, arguments="[]")):
            assert fits(text, form, calls=CALLS, json=self.JSON) is False, text


@pytest.mark.parametrize("form", FAMILIES, ids=lambda form: form.name)
@pytest.mark.parametrize("is_thinking", [False, True])
@pytest.mark.parametrize("allows_text", [False, True])
def test_thoughts_before_calls(form: ToolFormat, is_thinking: bool, allows_text: bool) -> None:
    settings = {
        "calls": CALLS,
        "thinks": THINK_MARKERS[0],
        "is_thinking": is_thinking,
        "allows_text": allows_text,
    }
    begin = "" if is_thinking else "<think>"
    thought = f"{begin}I could say <tool_call> or so.</think>\n\n"
    assert fits(thought + call(form), form, **settings)
    if allows_text:
        assert fits(f"{thought}Hello", form, **settings)
        if form.needs_opening:
            assert fits(thought + call(form, "other"), form, **settings) is False


class TestFamilies:
    @pytest.mark.parametrize(
        ("source", "form"),
        [
            ("{{ '[TOOL_CALLS]' }}", MISTRAL),
            ('\'<tool_call>\\n{"name": "\'', HERMES),
            ("<tool_call> <function=x>", GENERIC),
            ("""Environment: ipython {{ '"parameters": ' }}""", LLAMA),
            ("""<|python_tag|> {{ '"parameters": ' }}""", LLAMA),
            ("<|im_start|>", GENERIC),
            ("", GENERIC),
            ("[TOOL_CALLS]name[ARGS]", GENERIC),
        ],
    )
    def test_tool_format(self, source: str, form: ToolFormat) -> None:
        assert tool_format(source) == form

    def test_think_markers(self) -> None:
        assert think_markers("… </think> …", frozenset()) == THINK_MARKERS[0]
        assert think_markers("", frozenset({"[/THINK]"})) == THINK_MARKERS[1]
        assert think_markers("<|im_start|>", frozenset({"<|im_end|>"})) is None


def test_a_name_is_taken_by_the_letter() -> None:
    odd = [CallRule("a.b/c", JSONRule({"type": "object"}))]
    assert fits(call(HERMES, "a.b/c", "{}"), HERMES, calls=odd)
    assert fits(call(HERMES, "axb/c", "{}"), HERMES, calls=odd) is False


def test_text_and_calls_read_as_written() -> None:
    reader = CallReader(HERMES)
    parts: list[Part] = [*reader.push(f"Well.\n{call(HERMES)}"), *reader.finish()]
    assert joined(parts) == [Content("Well."), Call("weather", '{"city":"Oslo"}')]
