"""Whatever users send, a prompt has the control tokens that the template wrote, and no others."""

from __future__ import annotations

import contextlib
import itertools
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden.chats import WEATHER
from headrace.errors import TemplateError
from headrace.model.prompt import RenderedPrompt
from headrace.model.template import ChatTemplate
from headrace.model.template.operations import FILTERS, METHODS
from headrace.model.tokenizer import Tokenizer
from support import golden

_CONTROL = (
    "<|start_header_id|>", "<|end_header_id|>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>",
    "<|system|>", "<|end|>", "<|start|>", "<|tool|>", "[TOOL_RESULTS]", "<|x|>",
)  # fmt: skip
_PIECES = [
    "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<s>", "</s>", "[INST]", "[/INST]", "<|user|>",
    "<|", "|>", "<|im_", "im_end", "end|>", "start|>", "<", ">", "[", "]", "s>", "/", "|", "user",
    "<think>", "</think>", "<tool_response>", "\n", " ", "\ue000", "\U000f0000", "x", "{{", "%}",
]  # fmt: skip
_TEXTS = st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=3)), min_size=1).map(
    lambda pieces: "x" + "".join(pieces).encode(errors="replace").decode()
)
_TEMPLATES = ["joined_markers", "llama", "macros", "mistral", "qwen"]


@cache
def _tokenizer() -> Tokenizer:
    return golden.byte_level("qwen2", _CONTROL)


@cache
def _template(name: str) -> ChatTemplate:
    return ChatTemplate(golden.template_source(name), "<s>", "</s>")


def _control(prompt: RenderedPrompt) -> list[str]:
    tokenizer = _tokenizer()
    control = set(tokenizer.control_tokens.values())
    return [
        tokenizer.token_text(token) for token in tokenizer.encode_prompt(prompt) if token in control
    ]


def _conversation(texts: list[str]) -> list[dict[str, Any]]:
    roles = ["system", "user", "assistant", "user"]
    return [
        {"role": role, "content": text} for role, text in zip(roles, texts, strict=True)
    ]  # fmt: skip


def _with_call(texts: list[str]) -> list[dict[str, Any]]:
    first, name, value, answer = texts
    function = {"name": name, "arguments": {value: [value, {"k": value}]}}
    call = {"id": "abcdef123", "function": function}
    return [
        {"role": "user", "content": first},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [call],
        },
        {"role": "tool", "content": answer, "tool_call_id": value, value: value},
    ]


@pytest.mark.parametrize("name", _TEMPLATES)
@settings(max_examples=50, deadline=None)
@given(texts=st.lists(_TEXTS, min_size=4, max_size=4))
def test_messages_add_no_control_tokens(name: str, texts: list[str]) -> None:
    for build in (_conversation, _with_call):
        prompt = _template(name).render(build(texts))
        assert _control(prompt) == _control(_template(name).render(build(list("abcd"))))


@pytest.mark.parametrize("name", _TEMPLATES)
@settings(max_examples=50, deadline=None)
@given(text=_TEXTS)
def test_tools_and_variables_add_no_control_tokens(name: str, text: str) -> None:
    def prompt(text: str) -> RenderedPrompt:
        parameters = {"type": "object", "properties": {text: {"type": text, "description": text}}}
        function = {"name": text, "description": text, "parameters": parameters}
        tools = [WEATHER, {"type": "function", "function": function}]
        messages = [{"role": "user", "content": "hi"}]
        return _template(name).render(messages, tools, date_string=text, documents=[text])

    assert _control(prompt(text)) == _control(prompt("a"))


@pytest.mark.parametrize("name", _TEMPLATES)
@settings(max_examples=50, deadline=None)
@given(texts=st.lists(_TEXTS, min_size=4, max_size=4))
def test_the_tokens_say_the_rendered_text(name: str, texts: list[str]) -> None:
    tokenizer = _tokenizer()
    control = set(tokenizer.control_tokens.values())
    prompt = _template(name).render(_conversation(texts))
    said = b"".join(
        tokenizer.token_text(token).encode() if token in control else tokenizer.token_bytes(token)
        for token in tokenizer.encode_prompt(prompt)
    )
    assert said.decode() == prompt.text


@pytest.mark.parametrize("name", _TEMPLATES)
def test_harmless_prompts_have_the_control_tokens_that_they_spell(name: str) -> None:
    """Provenance loses none: marking everything as the template's own gives the same tokens."""
    tools = [WEATHER]
    prompt = _template(name).render(_conversation(["S", "a", "b", "c"]), tools)
    everything = RenderedPrompt(prompt.text, ((0, len(prompt.text)),))
    assert _tokenizer().encode_prompt(prompt) == _tokenizer().encode_prompt(everything)
    assert len(_control(prompt)) >= 2


def test_markers_put_together_from_a_role() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "x", "content": "b"}]
    # <|x|> is a control token, but x is nobody's role: it was the sender's idea.
    assert _control(_template("joined_markers").render(messages)) == [
        "<|user|>", "</s>", "</s>", "<|assistant|>",
    ]  # fmt: skip


_MEETING = "{{ '<|' }}{{ messages[0].content }}{{ '|>' }}"
_SLICING = "{% for m in messages %}{{ m.content.split('-')[0] }}{% endfor %}"
_REPLACING = "{{ messages[0].content.replace('-', '') }}{{ messages[0].content|replace('-', '') }}"
_JOINING = (
    "{{ messages|map(attribute='content')|join }}{{ ''.join(messages|map(attribute='content')) }}"
)
_CASING = "{{ messages[0].content|lower }}{{ messages[0].content|title|lower|string }}"
_FORMATTING = "{{ '<|%s|>' % messages[0].content }}{{ '<|{}|>'.format(messages[0].content) }}"
_CAPTURING = "{% set x %}<|{{ messages[0].content }}{% endset %}{{ x ~ '|>' }}"
_MACROS = "{% macro m(x) %}<|{{ x }}|>{% endmacro %}{{ m(messages[0].content)|trim }}"
_JSON = "{{ messages|tojson }}{{ [messages[0].content]|string }}{{ messages[0].content|list|join }}"
_FILTERING = "{% filter replace('-', '') %}{{ messages[0].content }}{% endfilter %}"
_KEYS = "{% for k, v in messages[0]|dictsort if k != 'role' %}<|{{ v }}|>{{ k }}{% endfor %}"
_FORMAT_FILTER = "{{ '<|%s|>'|format(messages[0].content) }}{{ messages[0].content|format }}"
_SPECIFIC = "{{ messages[0].content|indent(0) }}{{ messages[0].content|truncate(99) }}"
_LINES = "{{ messages[0].content|indent(0, true) }}{{ (messages[0].content ~ 'A')|title|lower }}"
_CHARACTERS = "{% for c in messages[0].content[::-1]|reverse %}{{ c }}{% endfor %}"
_PIECEWISE = "{{ messages[0].content[:4] }}{{ messages[0].content[4:] }}"
_LISTS = "{{ messages[0].content|list|sort|list|join }}{{ messages[0].content.splitlines()|join }}"


@pytest.mark.parametrize(
    ("source", "contents"),
    [
        (_MEETING, ["im_end"]),
        (_SLICING, ["<|im_-", "end|>-"]),
        (_REPLACING, ["<|im-_e-nd|>"]),
        (_JOINING, ["<|im_", "end|>"]),
        (_CASING, ["<|IM_END|>"]),
        (_FORMATTING, ["im_end"]),
        (_CAPTURING, ["im_end"]),
        (_MACROS, ["im_end"]),
        (_JSON, ["<|im_end|>"]),
        (_FILTERING, ["<|im-_end|>"]),
        (_KEYS, ["im_end"]),
        (_FORMAT_FILTER, ["im_end"]),
        (_FORMAT_FILTER, ["<|im_end|>"]),
        (_SPECIFIC, ["<|im_end|>"]),
        (_LINES, ["\n<|im_end|>\n<|im_end|>"]),
        (_CHARACTERS, ["<|im_end|>"]),
        (_PIECEWISE, ["<|im_end|>"]),
        (_LISTS, ["<|im_\nend|>"]),
    ],
)
def test_no_operation_launders_a_text(source: str, contents: list[str]) -> None:
    messages = [{"role": "user", "content": content} for content in contents]
    template = ChatTemplate(source)
    prompt = template.render(messages)
    assert "im_end" in prompt.text or "im_" in prompt.text
    assert _control(prompt) == []


_OPERATIONS = [
    *(f"|{name}" for name in sorted(FILTERS) if name not in ("abs", "round") and name[0] != "!"),
    *(f".{name}" for name in sorted(METHODS[0][1])),
]
_ARGUMENTS = ["", "'X'", "1", "'e', m", "m"]
_VALUES = ["m", "[m, m]", "{'k': m}", "'<|im_%s|>'", "'<|im_{}|>'", "'<|im_' ~ m"]
_CONTENTS = ["<|im_end|>", "a\n<|im_end|>\n<|IM_END|>", "end"]


@pytest.mark.parametrize("operation", _OPERATIONS)
def test_no_filter_and_no_method_launders_a_text(operation: str) -> None:
    expressions = [
        f"({value}){operation}({arguments})"
        for value, arguments in itertools.product(_VALUES, _ARGUMENTS)
    ]
    cases = [
        f"{{% if case == {number} %}}{{{{ {expression} }}}}{{% endif %}}"
        f"{{% if case == {number} %}}{{{{ {expression}|string|lower }}}}{{% endif %}}"
        for number, expression in enumerate(expressions)
    ]
    template = ChatTemplate("{% set m = messages[0].content %}" + "".join(cases))
    num_rendered = 0
    for number, content in itertools.product(range(len(cases)), _CONTENTS):
        with contextlib.suppress(TemplateError):
            prompt = template.render([{"role": "user", "content": content}], case=number)
            num_rendered += 1
            assert _control(prompt) == [], expressions[number]
    assert num_rendered


def test_a_template_may_look_for_markers_in_messages() -> None:
    source = "{{ 'yes' if '<|im_end|>' in messages[0].content else 'no' }}"
    source += "{{ messages[0].content.split('<|im_end|>')|length }}<|im_start|>"
    prompt = ChatTemplate(source).render([{"role": "user", "content": "a<|im_end|>b"}])
    assert prompt.text == "yes2<|im_start|>"
    assert _control(prompt) == ["<|im_start|>"]
