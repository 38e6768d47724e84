from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidModelFile, InvalidRequest, TemplateError
from headrace.model.prompt import RenderedPrompt
from headrace.model.template import ChatTemplate
from headrace.model.template.chat import TemplateLimits
from support import golden

_CHATML = """\
{% for m in messages %}
{{ '<|im_start|>' ~ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def _render(source: str, *messages: dict[str, Any], **variables: Any) -> str:
    return ChatTemplate(source).render(messages or [_user("hi")], **variables).text


def _template_parts(prompt: RenderedPrompt) -> list[str]:
    return [prompt.text[start:end] for start, end in prompt.template_spans]


# What templates are given


def test_a_prompt_knows_what_the_template_wrote() -> None:
    prompt = ChatTemplate(_CHATML).render([_user("<|im_end|>"), _assistant("")])
    assert prompt.text == (
        "<|im_start|>user\n<|im_end|><|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n"
    )
    assert _template_parts(prompt) == [
        "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n",
    ]


def test_without_a_generation_prompt() -> None:
    prompt = ChatTemplate(_CHATML).render([_user("a")], add_generation_prompt=False)
    assert prompt.text == "<|im_start|>user\na<|im_end|>\n"


def test_tokens_and_variables() -> None:
    template = ChatTemplate("{{ bos_token }}{{ x }}{{ eos_token }}", "<s>", "</s>")
    prompt = template.render([_user("hi")], x="</s>", bos_token="mine", messages_too=1)
    assert prompt.text == "<s></s></s>"
    assert _template_parts(prompt) == ["<s>", "</s>"]
    assert prompt.template_spans == ((0, 3), (7, 11))


def test_variables_cannot_take_the_place_of_messages() -> None:
    source = "{{ messages[0].content }}{{ add_generation_prompt }}{{ tools }}"
    template = ChatTemplate(source)
    assert template.render([_user("hi")], documents=[{"text": "d"}]).text == "hiTrueNone"


def test_absent_tools_are_none_and_empty_ones_too() -> None:
    template = ChatTemplate("{{ tools is none }}")
    assert template.render([_user("a")]).text == "True"
    assert template.render([_user("a")], []).text == "True"


def test_tools_have_a_template_of_their_own_where_the_model_has_one() -> None:
    template = ChatTemplate("plain", tool_source="with {{ tools[0].name }}")
    assert template.render([_user("a")]).text == "plain"
    assert template.render([_user("a")], [{"name": "f"}]).text == "with f"


def test_todays_date() -> None:
    template = ChatTemplate(
        "{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2024, 2, 29, 12, 0)
    )
    assert template.render([_user("a")]).text == "29 Feb 2024"


def test_text_parts_become_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, "b", {"type": "text", "text": "c"}]
    assert _render("{{ messages[0].content }}", _user(parts)) == "a\nb\nc"


@pytest.mark.parametrize("part", [{"type": "image_url"}, {"type": "text"}, 3, None])
def test_other_parts_are_refused(part: Any) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        _render(_CHATML, _user("a"), _user(["b", part]))
    assert refusal.value.param == "messages[1].content[1]"


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_goes_by_all_its_names(name: str) -> None:
    source = "{{ messages[1].reasoning_content }}/{{ messages[1].thinking }}"
    assert _render(source, _user("a"), {**_assistant("b"), name: "hm"}) == "hm/hm"


def test_a_missing_content_counts_as_empty_where_the_template_needs_one() -> None:
    source = "{% for m in messages %}{{ m.role + ':' + m.content + ';' }}{% endfor %}"
    call = {"role": "assistant", "tool_calls": []}
    assert _render(source, _assistant(None), call, _user("b")) == "assistant:;assistant:;user:b;"


def test_a_missing_content_stays_missing_where_the_template_can_tell() -> None:
    assert _render("{{ messages[0].content is none }}", _assistant(None)) == "True"
    assert _render("{{ messages[0].content is defined }}", {"role": "assistant"}) == "False"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([_user("a"), {"content": "b"}], "messages[1].role"),
        ([{"role": 1, "content": "b"}], "messages[0].role"),
        (["text"], "messages[0].role"),
        ([_user(5)], "messages[0].content"),
        ([_user({"a": 1})], "messages[0].content"),
    ],
)
def test_malformed_messages(messages: list[Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        ChatTemplate(_CHATML).render(messages)
    assert refusal.value.param == param


def test_values_must_be_plain() -> None:
    with pytest.raises(InvalidRequest, match="datetime"):
        _render(_CHATML, {**_user("a"), "at": datetime.now()})
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    with pytest.raises(InvalidRequest, match="nested more than 64 levels deep"):
        _render(_CHATML, {**_user("a"), "deep": nested})


def test_refused_by_the_template() -> None:
    with pytest.raises(InvalidRequest, match="refuses these messages: only two!") as refusal:
        _render("{{ raise_exception('only two!') }}")
    assert refusal.value.param == "messages"
    assert refusal.value.status == 400


# Prefill


def _continue(source: str, prefill: str, **variables: Any) -> RenderedPrompt:
    messages = [_user("a"), _assistant(prefill)]
    return ChatTemplate(source, "<s>", "</s>").render(
        messages, continue_final_message=True, **variables
    )


_TRIMMING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content|trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@settings(deadline=None)
@given(st.text(alphabet="ab \n<|>", min_size=1))
def test_a_prefill_ends_the_prompt(prefill: str) -> None:
    for source in (_CHATML, _TRIMMING):
        text = _continue(source, prefill).text
        assert text.endswith(prefill.lstrip())
        assert text.startswith(_continue(source, "x").text[:-1])


def test_a_prefill_is_a_users_text() -> None:
    prompt = _continue(_CHATML, "<|im_end|>")
    assert prompt.text.endswith("<|im_start|>assistant\n<|im_end|>")
    assert prompt.template_spans[-1][1] == len(prompt.text) - len("<|im_end|>")


def test_nothing_of_the_template_follows_a_prefill() -> None:
    assert _continue(_CHATML, "Sure: ").text == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nSure: "
    )
    assert _continue(_TRIMMING, "Sure:\n\n").text == "<|user|>a</s>\n<|assistant|>Sure:\n\n"


def test_an_answer_that_repeats_the_question_is_cut_at_the_answer() -> None:
    assert _continue("{{ messages[1].content }}-{{ messages[1].content }}!", "x").text == "x-x"


def test_an_empty_prefill_is_a_plain_prompt() -> None:
    assert _continue(_CHATML, "") == ChatTemplate(_CHATML).render([_user("a")])


@pytest.mark.parametrize(
    "shown", ["", "{{ m.content|upper }}", "{{ m.content|replace('S', 'Z') }}", "{{ m|tojson }}"]
)
def test_a_template_that_does_not_show_the_answer_begins_a_new_one(shown: str) -> None:
    source = "{% for m in messages %}{{ m.role }}:" + shown + ";{% endfor %}"
    source += "{% if add_generation_prompt %}go:{% endif %}"
    assert _continue(source, "Sure").text.endswith(";go:Sure")


def test_prefill_after_thinking() -> None:
    prompt = ChatTemplate(golden.template_source("qwen")).render(
        [_user("a"), _assistant("<think>\nhm\n</think>\n\nSo ")], continue_final_message=True
    )
    assert prompt.text.endswith("<|im_start|>assistant\n<think>\nhm\n</think>\n\nSo ")


@pytest.mark.parametrize("final", [_user("b"), _assistant(None), {"role": "assistant"}])
def test_only_a_text_answer_can_be_continued(final: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        ChatTemplate(_CHATML).render([_user("a"), final], continue_final_message=True)
    assert refusal.value.param == "messages[1]"


# Which template


def test_from_metadata() -> None:
    metadata = golden.metadata("byte_level")
    metadata["tokenizer.chat_template"] = "{{ bos_token }}{{ eos_token }}"
    tokenizer = golden.byte_level("qwen2")
    assert ChatTemplate.from_metadata(metadata, tokenizer).render([_user("a")]).text == "<s></s>"
    metadata["tokenizer.chat_template.tool_use"] = "tools!"
    template = ChatTemplate.from_metadata(metadata, tokenizer)
    assert template.render([_user("a")], [{"name": "f"}]).text == "tools!"
    metadata["tokenizer.chat_template"] = 5
    with pytest.raises(InvalidModelFile, match=r"tokenizer\.chat_template must be a text"):
        ChatTemplate.from_metadata(metadata, tokenizer)


def test_default_for_vocabularies_with_chatml() -> None:
    template = ChatTemplate.from_metadata({}, golden.byte_level("qwen2"))
    messages = [{"role": "system", "content": "S"}, _user("a"), _assistant(None), _user("b")]
    assert template.render(messages).text == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.render([_user("a"), _assistant("b ")], continue_final_message=True).text == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb "
    )


def test_default_for_other_vocabularies() -> None:
    metadata = golden.metadata("scored")
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, tuple)
    metadata["tokenizer.ggml.tokens"] = tuple(
        "other" if token == "<|im_start|>" else token for token in tokens
    )
    tokenizer = type(golden.scored(has_prefix=True)).from_metadata(metadata)
    template = ChatTemplate.from_metadata(metadata, tokenizer)
    messages = [{"role": "system", "content": "S"}, _user("a"), _assistant("b"), _user("c")]
    assert template.render(messages).text == (
        "<s>S\n\nUser: a\n\nAssistant: b</s>\n\nUser: c\n\nAssistant:"
    )


# Broken templates


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("\n{% if %}", "in line 2: Expected an expression"),
        ("\n\n{% for %}", "in line 3: "),
        ("{% endfor %}", "in line 1: "),
        ("{{ x|no_such_filter }}", "in line 1: No filter named 'no_such_filter'"),
        ("{{ 'open }}", "in line 1: "),
        ("{% include 'other' %}", "in line 1: "),
        ("{{ " + "(" * 5000 + "1 }}", "too deeply"),
        ("{% if a %}" * 1500 + "{% endif %}" * 1500, "too deeply"),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "too deeply"),
        ("{{ " + " or ".join(["0"] * 2000) + " }}", "too deeply"),
        ("x" * 200_000, "200000 characters; 131072 are allowed"),
        ("\n\n{{ nothing.at.all }}", "in line 3: 'nothing' is undefined"),
        ("\n{{ 1 + messages[0].content }}", "in line 2: TypeError: unsupported operand"),
        ("{{ 1 / 0 }}", "in line 1: ZeroDivisionError"),
        ("{{ messages.append(1) }}", "in line 1: access to attribute 'append'"),
        ("{{ messages[0].update(role='x') }}", "access to attribute 'update'"),
        ("{% set ns = namespace(__class__=1) %}", "cannot have an attribute '__class__'"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "cannot have an attribute '_x'"),
    ],
)
def test_broken(source: str, message: str) -> None:
    with pytest.raises(TemplateError) as failure:
        _render(source)
    assert message in str(failure.value)
    assert str(failure.value).startswith("the model's chat template ")


def test_long_chains_are_not_deep() -> None:
    assert _render("{{ " + " + ".join(["'a'"] * 2000) + " }}") == "a" * 2000
    assert _render("{{ " + " ~ ".join(["'a'"] * 2000) + " }}") == "a" * 2000


# Hostile templates


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'].__mro__ }}",
        "{{ messages.__class__.__base__ }}",
        "{{ (messages|map(attribute='__class__')|first).__base__ }}",
        "{{ (messages|sort(attribute='__class__.__mro__')) }}",
        "{{ (messages|groupby('__class__')|first).grouper.__mro__ }}",
        "{{ range.__globals__ }}",
        "{{ raise_exception.__globals__['sys'] }}",
        "{{ strftime_now.__closure__[0] }}",
        "{{ self.__init__.__globals__ }}",
        "{{ self._TemplateReference__context.meter }}",
        "{% macro m() %}{% endmacro %}{{ m._func.__globals__['x'] }}",
        "{% for m in messages %}{{ loop._iterable.gi_frame.f_globals }}{% endfor %}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ messages[0].content.format_map(messages[0]) }}",
        "{{ (1).to_bytes(9, 'big') }}",
        "{{ cycler('a').next() }}",
        "{{ lipsum() }}",
        "{{ messages|pprint }}",
        "{{ 'x'|attr('__class__') }}",
        "{{ context.meter }}",
        "{{ environment.call }}",
    ],
)
def test_no_way_out(source: str) -> None:
    try:
        text = _render(source)
    except TemplateError:
        return
    # Jinja prints what is unsafe or unknown as nothing.
    assert text in ("", "[{'role': 'user', 'content': 'hi'}]")


_DOUBLING = (
    "{% set ns = namespace(x=START) %}{% for i in range(99) %}{% set ns.x = NEXT %}{% endfor %}"
)


def _doubling(start: str, following: str) -> str:
    return _DOUBLING.replace("START", start).replace("NEXT", following)


_TOO_MUCH_WORK = [
    "{% for i in range(99999) %}x{% endfor %}",
    "{% for i in range(99) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% for i in range(9) recursive %}{{ loop(range(9)) if loop.depth < 20 }}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "{% macro m() %}{{ caller() }}{% endmacro %}"
    "{% for i in range(9999) %}{% call m() %}x{% endcall %}{% endfor %}",
    "{% for i in range(999) %}{{ range(99999)|reject('defined')|list }}{% endfor %}",
    "{% for i in range(999) %}{{ range(99999)|select('odd')|map('string')|first }}{% endfor %}",
    "{% for i in range(9999) %}{% set x = 'a' in range(99999) %}{% endfor %}",
    "{% set a = 'x' * 99999 %}{% for i in range(9999) %}{% set b = a.split('x') %}{% endfor %}",
    "{% set a = 'x' * 99999 %}{% for i in range(9999) %}{% set b = a|tojson %}{% endfor %}",
    "{% set a = 'x' * 99999 %}{% for i in range(9999) %}{% set b = a|title %}{% endfor %}",
    "{% set a = range(999)|list %}{% for i in range(999) %}{{ '' if a == a[:] }}{% endfor %}",
    "{% set a = range(999)|list %}{% for i in range(999) %}{{ '' if a < a < a }}{% endfor %}",
    "{% set a = range(999)|list %}{% for i in range(999) %}{{ '' if a is eq(a) }}{% endfor %}",
    "{% set a = range(999)|list %}{% for i in range(999) %}{{ loop.changed(a[:]) }}{% endfor %}",
    "{% set a = range(999)|list %}{% for i in range(999) %}{% set b = a|sort %}{% endfor %}",
    "{% set a = range(999)|list %}{% for i in range(999) %}{% set b = a.index(998) %}{% endfor %}",
    "{% set a = range(999)|list %}{% for i in range(999) %}{% set b = a|string %}{% endfor %}",
    "{% set a = range(99)|list %}{% for i in range(999) %}{{ {(a|string): 1} }}{% endfor %}",
    "{% set x %}{% for i in range(9999) %}" + "y" * 9999 + "{% endfor %}{% endset %}",
    "{% set x %}{% for i in range(9999) %}"
    + "{{ messages[0].content }}" * 99
    + "{% endfor %}{% endset %}",
    _doubling("[1]", "ns.x + ns.x"),
]
_TOO_LARGE = [
    "{{ 'a' * 10 ** 10 }}",
    "{{ 10 ** 10 * 'a' }}",
    "{{ [1] * 10 ** 9 }}",
    "{{ 9 ** 9 ** 9 ** 9 }}",
    "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ ('a' * 99999).replace('', 'b' * 99999) }}",
    "{{ ('a' * 99999)|replace('a', 'b' * 99999) }}",
    "{{ range(99999)|join('b' * 99999) }}",
    "{{ ('b' * 99999).join(['a'] * 999) }}",
    "{{ messages|tojson(indent=10 ** 9) }}",
    "{{ messages|tojson(indent='x' * 999999) }}",
    "{{ messages|tojson(separators=('x' * 999999, ':')) }}",
    "{{ 5|indent(10 ** 9) }}",
    "{{ 5|indent('x' * 99999999) }}",
    _doubling("'a'", "ns.x + ns.x"),
    _doubling("'a'", "ns.x ~ ns.x"),
    _doubling("['a']", "[ns.x, ns.x]"),
    _doubling("(1,)", "(ns.x, ns.x)"),
    _doubling("1", "{'a': ns.x, 'b': ns.x}"),
    _doubling("1", "dict(a=ns.x, b=ns.x)"),
    _doubling("1", "[[], []]|map('first')|map('default', ns.x)|list"),
    "{% macro m() %}{{ caller(varargs) }}{% endmacro %}"
    + _doubling("1", "ns.x")
    + "{% set ns = namespace(x=1) %}{% for i in range(99) %}"
    "{% call(v) m(ns.x, ns.x) %}{% set ns.x = v %}{% endcall %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[]) %}{% for i in range(999) %}{% set ns.x = [ns.x] %}{% endfor %}",
]


@pytest.mark.parametrize("source", _TOO_MUCH_WORK)
def test_too_much_work(source: str) -> None:
    template = ChatTemplate(source, limits=TemplateLimits(num_steps=100_000))
    with pytest.raises(TemplateError, match=r"works more than these messages can need|too deeply"):
        template.render([_user("hi " * 99)])


@pytest.mark.parametrize("source", _TOO_LARGE)
def test_too_large(source: str) -> None:
    with pytest.raises(TemplateError, match=r"it (makes|computes|formats|nests)"):
        _render(source)


def test_output_is_bounded() -> None:
    template = ChatTemplate(
        "{{ messages[0].content }}" * 100, limits=TemplateLimits(num_chars=1000)
    )
    with pytest.raises(TemplateError, match=r"makes a text of more than \d+ characters"):
        template.render([_user("x" * 100)])


def test_endless_recursion() -> None:
    with pytest.raises(TemplateError, match="too deeply"):
        _render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}")


def test_a_namespace_that_holds_itself_prints_as_nothing_much() -> None:
    source = "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}{{ [ns] }}"
    assert _render(source) == "<namespace>[<namespace>]"


def test_budgets_grow_with_the_messages() -> None:
    limits = TemplateLimits(num_steps=1000, num_chars=100)
    template = ChatTemplate(_CHATML, limits=limits)
    conversation = [_user("word " * 1000) for _ in range(300)]
    assert len(template.render(conversation).text) > 300 * 5000


def test_a_template_is_used_again_and_again() -> None:
    template = ChatTemplate(
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
        "{{ ns.n }}",
        limits=TemplateLimits(num_steps=30, num_steps_per_unit=10),
    )
    assert [template.render([_user("a")]).text for _ in range(20)] == ["1"] * 20
