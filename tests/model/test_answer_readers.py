"""Calls and thoughts in text: what is read never depends on how the text arrived."""

from __future__ import annotations

import json
import sys
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.model.answer.calls import CallReader
from headrace.model.answer.formats import GENERIC, HERMES, LLAMA, MISTRAL, THINK_MARKERS, ToolFormat
from headrace.model.answer.json_scan import JSONScan
from headrace.model.answer.parts import Broken, Call, Content, Part, held_from, joined
from headrace.model.answer.thoughts import ThoughtReader
from support.spoken_calls import SAMPLES, Sample

THINK = THINK_MARKERS[0]


def read(form: ToolFormat, pieces: list[str]) -> list[Part]:
    reader = CallReader(form)
    parts = [part for piece in pieces for part in reader.push(piece)]
    return joined([*parts, *reader.finish()])


def think(pieces: list[str], *, is_open: bool = False) -> tuple[str, str]:
    reader = ThoughtReader(THINK, is_open=is_open)
    told = [*(reader.push(piece) for piece in pieces), reader.finish()]
    return "".join(thought for thought, _ in told), "".join(said for _, said in told)


def cuts(text: str, num_cuts: int) -> list[list[str]]:
    """All ways to cut `text` at `num_cuts` places."""
    return [
        [text[start:end] for start, end in zip((0, *places), (*places, len(text)), strict=True)]
        for places in combinations(range(1, len(text)), num_cuts)
    ]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
class TestCalls:
    def test_whole(self, sample: Sample) -> None:
        assert read(sample.form, [sample.text]) == sample.parts

    def test_letter_by_letter(self, sample: Sample) -> None:
        assert read(sample.form, list(sample.text)) == sample.parts

    def test_cut_at_every_place(self, sample: Sample) -> None:
        for pieces in cuts(sample.text, 1):
            assert read(sample.form, pieces) == sample.parts, pieces

    def test_cut_at_every_two_places(self, sample: Sample) -> None:
        for pieces in cuts(sample.text[:48], 2):
            assert read(sample.form, pieces) == read(sample.form, [sample.text[:48]]), pieces


def test_plain_text_is_not_held_back() -> None:
    reader = CallReader(HERMES)
    said = [joined(reader.push(word)) for word in ("The", " sky", " is", " blue")]
    assert all(said)


def test_a_call_is_told_when_its_json_ends() -> None:
    reader = CallReader(HERMES)
    assert reader.push('<tool_call>{"name":"a","arguments":{"x":"') == []
    assert reader.push('y"}') == []
    assert reader.push("}") == [Call("a", '{"x":"y"}')]


@pytest.mark.parametrize(
    ("form", "text", "told"),
    [
        (HERMES, "x <tool_", "x "),
        (HERMES, "x <to", "x <to"),  # less than half of a marker may be anything
        (HERMES, "x <tool_call> rain", "x"),
        (HERMES, 'x <tool_call>{"name": "a"', "x"),
        (MISTRAL, 'x [TOOL_CALLS] [{"name"', "x"),
        (LLAMA, '{"na', ""),
        (LLAMA, '{"name": "a", "parameters": {"x"', ""),
        (LLAMA, '{"city": "Oslo', '{"city": "Oslo'),
        (LLAMA, '<|python_tag|>{"name": "a"', ""),
    ],
)
def test_an_answer_cut_in_a_call_says_what_came_before(
    form: ToolFormat, text: str, told: str
) -> None:
    for pieces in [[text], *cuts(text, 1)]:
        reader = CallReader(form)
        parts = [part for piece in pieces for part in reader.push(piece)]
        parts += reader.finish(is_cut=True)
        assert joined(parts) == ([Content(told)] if told else [])


TOKENS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", '{"name":"a"}', "{", "}", "[",
    "]", '"', "\\", " ", "\n", ";", "<", "tool", "é", '{"name":"b","arguments":{"x":[1,"}"]}}', "x",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([HERMES, LLAMA, MISTRAL, GENERIC]),
    st.lists(st.sampled_from(TOKENS), max_size=14),
    st.data(),
)
def test_any_text_cut_anyhow(form: ToolFormat, words: list[str], data: st.DataObject) -> None:
    text = "".join(words)
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip((0, *places), (*places, len(text)), strict=True)]
    assert read(form, pieces) == read(form, [text])


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([HERMES, LLAMA, MISTRAL, GENERIC]),
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
        max_size=3,
    ),
    st.booleans(),
)
def test_any_arguments_come_back(form: ToolFormat, arguments: object, is_ascii: bool) -> None:
    call = json.dumps({"name": "f", form.arguments: arguments}, ensure_ascii=is_ascii)
    text = f"{form.opening}[{call}]{form.closing}"
    (part,) = read(form, [text])
    assert isinstance(part, Call)
    assert json.loads(part.arguments) == arguments


@pytest.mark.parametrize(
    "value",
    ["[" * 100_000, '{"name":"a","arguments":' + "[" * 50_000 + "]" * 50_000 + "}"],
)
def test_nesting_without_end_breaks_the_call_alone(value: str) -> None:
    (first, *_) = read(HERMES, [f"<tool_call>{value}"])
    assert isinstance(first, Broken)


@pytest.mark.parametrize("number", ["1e999", "9" * 5000])
def test_huge_numbers_become_the_largest_float(number: str) -> None:
    (part,) = read(HERMES, [f'<tool_call>{{"name":"a","arguments":{{"x":-{number}}}}}'])
    assert part == Call("a", f'{{"x":{-sys.float_info.max!r}}}')


class TestJSONScan:
    @settings(max_examples=100, deadline=None)
    @given(
        st.recursive(
            st.none() | st.integers() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
        st.text(),
        st.integers(1, 9),
    )
    def test_the_end_is_where_the_value_ends(self, value: object, rest: str, step: int) -> None:
        text = json.dumps([value])
        scan = JSONScan()
        ends = [scan.end((text + rest)[:length]) for length in range(0, len(text), step)]
        assert set(ends) <= {None}
        assert scan.end(text + rest) == len(text)


class TestHeldFrom:
    @given(st.text("<ab>", max_size=12), st.sampled_from(["<a>", "<ab<ab>", "aab", "<"]))
    def test_the_longest_end_that_may_become_the_marker(self, text: str, marker: str) -> None:
        if marker in text:
            return
        expected = next((i for i in range(len(text)) if marker.startswith(text[i:])), len(text))
        assert held_from(text, marker) == expected


THOUGHTS = [
    ("<think>\nhm hm\n</think>\n\nYes. ", False, ("hm hm", "Yes. ")),
    ("\n<think>a</think>b", False, ("a", "b")),
    ("<think></think>b", False, ("", "b")),
    ("<think> \n </think> \n b", False, ("", "b")),
    ("no thoughts <think>x</think>", False, ("", "no thoughts <think>x</think>")),
    (" \n", False, ("", " \n")),
    ("<thin", False, ("", "<thin")),
    ("<think>a < b </thin k> c", False, ("a < b </thin k> c", "")),
    ("<think>cut here </thi", False, ("cut here </thi", "")),
    ("hm\n</think>\n\nYes", True, ("hm", "Yes")),
    ("</think>Yes", True, ("", "Yes")),
    ("\n a  b \n", True, ("a  b", "")),
    ("<think>a</think> b <think>c</think>", False, ("a", "b <think>c</think>")),
    ("<think>a</think>\n ", False, ("a", "")),
]


@pytest.mark.parametrize(("text", "is_open", "told"), THOUGHTS)
def test_thoughts_and_speech_at_every_cut(text: str, is_open: bool, told: tuple[str, str]) -> None:
    assert think([text], is_open=is_open) == told
    assert think(list(text), is_open=is_open) == told
    for num_cuts in (1, 2):
        for pieces in cuts(text, num_cuts):
            assert think(pieces, is_open=is_open) == told, pieces


def test_thoughts_are_told_while_they_are_thought() -> None:
    reader = ThoughtReader(THINK, is_open=True)
    assert reader.push("one two ") == ("one two", "")
    assert reader.push("three") == (" three", "")
    assert reader.is_thinking
    assert reader.push("</think>\n") == ("", "")
    assert not reader.is_thinking
    assert reader.push("yes ") == ("", "yes ")
