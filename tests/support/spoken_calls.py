"""Answers of the model families, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.model.answer.formats import GENERIC, HERMES, LLAMA, MISTRAL, ToolFormat
from headrace.model.answer.parts import Broken, Call, Content, Part


@dataclass(frozen=True)
class Sample:
    name: str
    form: ToolFormat
    text: str
    parts: list[Part]


A = Call("a", "{}")
B = Call("b", '{"x":1}')

SAMPLES = [
    Sample("text alone", HERMES, "Hello, <b>you</b> \n", [Content("Hello, <b>you</b> \n")]),
    Sample("nothing", HERMES, "", []),
    Sample("white space", HERMES, " \n", [Content(" \n")]),
    Sample("a beginning of a marker", HERMES, "x <tool_cal", [Content("x <tool_cal")]),
    Sample("two beginnings", HERMES, "<<tool<tool_ca>", [Content("<<tool<tool_ca>")]),
    Sample("one call", HERMES, '<tool_call>\n{"name": "a"}\n</tool_call>', [A]),
    Sample(
        "text, then two calls",
        HERMES,
        'Hm. \n<tool_call>{"name":"a","arguments":{}}</tool_call>\n'
        '<tool_call>{"name":"b","arguments":{"x":1}}</tool_call>\n',
        [Content("Hm."), A, B],
    ),
    Sample(
        "text after a call",
        HERMES,
        '<tool_call>{"name":"a"}</tool_call>\n done.\n',
        [A, Content("done.\n")],
    ),
    Sample(
        "markers and braces inside a string",
        HERMES,
        '<tool_call>{"name":"a","arguments":{"s":"</tool_call>}\\"{\\\\"}}</tool_call>',
        [Call("a", '{"s":"</tool_call>}\\"{\\\\"}')],
    ),
    Sample(
        "a list in the marker",
        HERMES,
        '<tool_call>[{"name":"a"},{"name":"b","arguments":{"x":1}}]</tool_call>',
        [A, B],
    ),
    Sample("no closing marker", HERMES, '<tool_call>{"name":"a"}', [A]),
    Sample(
        "no closing marker between",
        HERMES,
        '<tool_call>{"name":"a"}\n<tool_call>{"name":"b","arguments":{"x":1}}',
        [A, B],
    ),
    Sample(
        "arguments as a JSON string",
        HERMES,
        '<tool_call>{"name":"b","arguments":"{\\"x\\": 1}"}</tool_call>',
        [B],
    ),
    Sample(
        "no JSON",
        HERMES,
        "ah <tool_call> a(x=1) </tool_call> oh",
        [Content("ah"), Broken("<tool_call> a(x=1) </tool_call>", False), Content(" oh")],
    ),
    Sample(
        "no JSON, no end",
        HERMES,
        "<tool_call>a(x=1)",
        [Broken("<tool_call>a(x=1)", True)],
    ),
    Sample("cut", HERMES, '<tool_call>{"name":"a', [Broken('<tool_call>{"name":"a', True)]),
    Sample("cut at once", HERMES, "<tool_call>\n", [Broken("<tool_call>\n", True)]),
    Sample(
        "no name",
        HERMES,
        '<tool_call>{"nome":"a"}</tool_call>',
        [Broken('<tool_call>{"nome":"a"}', False)],
    ),
    Sample(
        "not a number",
        HERMES,
        '<tool_call>{"name":"a","arguments":{"x":NaN}}</tool_call>',
        [Broken('<tool_call>{"name":"a","arguments":{"x":NaN}}', False)],
    ),
    Sample("generic", GENERIC, 'So: <tool_call>{"name":"a"}</tool_call>', [Content("So:"), A]),
    Sample("bare", LLAMA, '{"name": "b", "parameters": {"x": 1}}', [B]),
    Sample("bare, after white space", LLAMA, '\n {"name": "a", "parameters": {}} ', [A]),
    Sample("python tag", LLAMA, '<|python_tag|>{"name": "b", "parameters": {"x": 1}}', [B]),
    Sample(
        "several bare ones",
        LLAMA,
        '{"name":"a","parameters":{}}; {"name":"b","parameters":{"x":1}}',
        [A, B],
    ),
    Sample("bare JSON that calls nothing", LLAMA, ' {"x": [1]} ', [Content(' {"x": [1]} ')]),
    Sample(
        "JSON inside text",
        LLAMA,
        'Say {"name": "a", "parameters": {}}',
        [Content('Say {"name": "a", "parameters": {}}')],
    ),
    Sample("a tag that is none", LLAMA, "<|python", [Content("<|python")]),
    Sample("bare, cut", LLAMA, '{"name": "a', [Broken('{"name": "a', True)]),
    Sample(
        "Mistral's list",
        MISTRAL,
        '[TOOL_CALLS] [{"name": "a", "arguments": {}}, {"name": "b", "arguments": {"x": 1}}]',
        [A, B],
    ),
    Sample(
        "Mistral's list with ids",
        MISTRAL,
        '[TOOL_CALLS][{"name": "a", "arguments": {}, "id": "VvvODy9mT"}]',
        [A],
    ),
    Sample("an empty list", MISTRAL, "[TOOL_CALLS][]", [Broken("[TOOL_CALLS][]", False)]),
    Sample("brackets", MISTRAL, "see [TOOL] and [1]", [Content("see [TOOL] and [1]")]),
    Sample(
        "letters beyond ASCII",
        HERMES,
        'é€😀 <tool_call>{"name":"a","arguments":{"k":"ü\\u00fc\\ud83d\\ude00"}}</tool_call>',
        [Content("é€😀"), Call("a", '{"k":"üü😀"}')],
    ),
]
