"""Bodies of `/responses`: items become messages, and what the answer repeats is kept."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidRequest
from headrace.events import Choice, Timings, Usage
from headrace.wire.ask import Ask, Context, JSONObject, JSONSchema, NamedTool, Place, Stamp, Tool
from headrace.wire.body import BodyLimits
from headrace.wire.responses_answer import responses_answer
from headrace.wire.responses_request import RESPONSES, ResponsesAsk, parse_responses
from support.bodies import from_schema, json_values

LIMITS = BodyLimits(max_messages=20, max_metadata=2)
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}}


def parse(input_: Any = "hi", *, strict: bool = False, **fields: Any) -> ResponsesAsk:
    return parse_responses({"model": "m", "input": input_, **fields}, LIMITS, strict=strict)


def refusal(input_: Any = "hi", **fields: Any) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as caught:
        parse(input_, **fields)
    return caught.value.message, caught.value.param


def messages(*items: Any, **fields: Any) -> list[Any]:
    return list(parse([*items], **fields).ask.messages or ())


USER = {"role": "user", "content": "hi"}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "sun"}


def call(number: int) -> dict[str, Any]:
    return {
        "type": "function_call",
        "call_id": f"c{number}",
        "name": "weather",
        "arguments": f'{{"n":{number}}}',
    }


def read_call(number: int) -> dict[str, Any]:
    function = {"name": "weather", "arguments": {"n": number}}
    return {"id": f"c{number}", "type": "function", "function": function}


def thoughts(*texts: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text} for text in texts]
    return {"type": "reasoning", "summary": [], "content": content}


def test_the_least_body_has_the_defaults() -> None:
    ask = Ask(model="m", messages=(USER,), tool_choice="none", place=Place())
    assert parse() == ResponsesAsk(ask=ask)


def test_instructions_come_first() -> None:
    asked = parse(instructions="be brief")
    assert asked.ask.messages == ({"role": "system", "content": "be brief"}, USER)
    assert asked.instructions == "be brief"


def test_a_message_may_have_parts_and_needs_no_type() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}]
    assert messages({"role": "developer", "content": parts}, {**USER, "type": "message"}) == [
        {"role": "system", "content": "a\nb"},
        USER,
    ]


def test_a_run_of_the_assistants_items_is_one_message() -> None:
    said = {"type": "message", "role": "assistant", "content": "Let me see."}
    assert messages(USER, thoughts("hm", "ah"), said, call(1), call(2), RESULT, call(3)) == [
        USER,
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning": "hm\nah",
            "tool_calls": [read_call(1), read_call(2)],
        },
        {"role": "tool", "content": "sun", "tool_call_id": "c1"},
        {"role": "assistant", "tool_calls": [read_call(3)]},
    ]


def test_two_answers_are_two_messages() -> None:
    one, two = ({"role": "assistant", "content": text} for text in ("one", "two"))
    assert messages(USER, one, two) == [USER, one, two]
    assert messages(USER, one, thoughts("hm"), two)[2] == {**two, "reasoning": "hm"}
    assert messages(USER, call(1), one)[2] == one


def test_an_answers_beginning_is_continued() -> None:
    answer = {"role": "assistant", "content": "Be"}
    assert parse([USER, answer]).ask.continues
    assert not parse([USER, answer, USER]).ask.continues
    assert not parse([USER, call(1)]).ask.continues


SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"max_output_tokens": 9}, {"max_tokens": 9}),
    ({"temperature": 1, "top_p": 0.5, "top_k": 2}, {"temperature": 1.0, "top_p": 0.5, "top_k": 2}),
    ({"reasoning": {"effort": "high"}}, {"reasoning_effort": "high"}),
    ({"service_tier": "default"}, {"service_tier": "on_demand"}),
    ({"service_tier": "flex"}, {"service_tier": "flex"}),
    ({"text": {"format": {"type": "json_object"}}}, {"response_format": JSONObject()}),
    ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "array"}}}},
     {"response_format": JSONSchema("n", {"type": "array"})}),
    ({"tools": [TOOL]},
     {"tools": (Tool("weather", None, {"type": "object"}),), "tool_choice": "auto"}),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "weather"}},
     {"tools": (Tool("weather", None, {"type": "object"}),), "tool_choice": NamedTool("weather")}),
    ({"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
    ({"include": ["message.output_text.logprobs"]}, {"logprobs": True}),
    ({"include": ["reasoning.encrypted_content"]}, {"ignored": ("include[0]",)}),
    ({"stream": True, "user": "u"}, {"stream": True, "user": "u"}),
    ({"store": False, "background": False, "previous_response_id": None}, {"place": None}),
    ({"store": True}, {}),
    ({"previous_response_id": "resp_1"}, {"place": Place(previous_response_id="resp_1")}),
    ({"previous_response_id": "resp_1", "store": False},
     {"place": Place(previous_response_id="resp_1", stores=False)}),
    ({"conversation": "c"}, {"place": Place(conversation_id="c")}),
    ({"conversation": {"id": "c", "after": "msg_1"}, "queue": True, "context": {"k": 3}},
     {"place": Place(conversation_id="c", after="msg_1", queue=True), "context": Context(k=3)}),
    ({"truncation": "auto"}, {"ignored": ("truncation",)}),
    ({"truncation": "disabled"}, {}),
    ({"text": {"verbosity": "low"}}, {"ignored": ("text.verbosity",)}),
    ({"prompt_cache_key": "x"}, {"ignored": ("prompt_cache_key",)}),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "becomes"), SETTINGS, ids=str)
def test_each_field_has_its_effect(fields: dict[str, Any], becomes: dict[str, Any]) -> None:
    least = {"model": "m", "messages": (USER,), "tool_choice": "none", "place": Place()}
    expected = {**least, **becomes}
    assert parse(**fields).ask == Ask(**expected)


def test_what_the_answer_repeats() -> None:
    fields: dict[str, Any] = {
        "instructions": "be brief",
        "max_output_tokens": 9,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low", "summary": "auto"},
        "temperature": 1.0,
        "text": {"format": {"type": "json_object"}},
        "tool_choice": "required",
        "tools": [TOOL],
        "top_p": 0.5,
        "truncation": "auto",
        "user": "u",
    }
    echo = parse(**fields).echo()
    assert echo == fields | {"previous_response_id": None, "store": True}
    assert parse().echo()["text"] == {"format": {"type": "text"}}
    stamp = Stamp("resp_1", "req_1", 1, "m", "fp_1")
    choice = Choice(0, "x", (1,), (), "", (), "stop", None, Usage(1, 0, 1), Timings(0.0, 0.0, 0.0))
    assert b'"instructions":"be brief"' in responses_answer(stamp, choice, echo=echo)


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        (
            {"previous_response_id": "resp_1", "conversation": "c"},
            "previous_response_id",
            "exclude",
        ),
        ({"conversation": "x" * 129}, "conversation", "128"),
        ({"conversation": {}}, "conversation.id", "missing"),
        ({"background": True}, "background", "stream"),
        ({"prompt": {"id": "p"}}, "prompt", "stored prompts"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "must be `function`"),
        ({"tools": [{"type": "mcp"}]}, "tools[0].type", "must be `function`"),
        ({"tools": [TOOL, TOOL]}, "tools[1]", "differ"),
        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice", "does not exist"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type", "must be `function`"),
        ({"metadata": {"a": 1}}, "metadata.a", "string"),
        ({"metadata": dict.fromkeys("abc", "x")}, "metadata", "3 entries"),
        ({"truncation": "odd"}, "truncation", "`auto` or `disabled`"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name", "missing"),
        ({"max_output_tokens": 0}, "max_output_tokens", "at least 1"),
    ],
)
def test_what_cannot_be_had_is_refused(fields: dict[str, Any], param: str, reason: str) -> None:
    message, named = refusal(**fields)
    assert named == param
    assert reason in message


@pytest.mark.parametrize(
    ("input_", "param"),
    [
        (None, "input"),
        (5, "input"),
        ([], "input"),
        ([5], "input[0]"),
        ([{"type": "item_reference", "id": "x"}], "input[0].type"),
        ([{"role": "tool", "content": "x"}], "input[0].role"),
        ([{"role": "user"}], "input[0].content"),
        ([{"role": "user", "content": [{"type": "input_image"}]}], "input[0].content"),
        ([{"type": "function_call", "name": "x", "arguments": "{}"}], "input[0].call_id"),
        ([{"type": "reasoning", "summary": []}], "input"),
        ([USER] * 21, "input"),
    ],
)
def test_a_wrong_input_is_refused_by_name(input_: Any, param: str) -> None:
    assert refusal(input_)[1] == param


def test_strictly_the_unknown_is_an_error() -> None:
    assert refusal(strict=True, foo=1)[0] == "property 'foo' is unsupported"
    assert refusal(strict=True, top_k=1)[1] == "top_k"


ALLOWED = {row.name: from_schema(row.schema(LIMITS)) for row in RESPONSES.fields}
BODIES = st.fixed_dictionaries(
    {"model": ALLOWED.pop("model"), "input": ALLOWED.pop("input") | json_values},
    optional={name: values | json_values for name, values in ALLOWED.items()}
    | {"foo": json_values},
)


@settings(max_examples=150)
@given(BODIES, st.booleans())
def test_any_body_is_an_ask_or_a_refusal(body: dict[str, Any], strict: bool) -> None:
    try:
        asked = parse_responses(body, LIMITS, strict=strict)
    except InvalidRequest as error:
        assert error.message
        assert error.param is not None
    else:
        assert asked.ask.messages
        assert asked.echo()["tools"] == list(asked.tools)
