"""Bodies of `/chat/completions`: each field, contradictions, strictness, and anything at all."""

from typing import Any

import orjson
import pytest
from groq.types.chat import ChatCompletionAssistantMessageParam
from groq.types.chat.completion_create_params import CompletionCreateParams
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidRequest
from headrace.wire.ask import Ask, JSONObject, JSONSchema, NamedTool, Tool
from headrace.wire.body import BodyLimits, parse_body
from headrace.wire.chat_request import CHAT, parse_chat
from headrace.wire.messages import ASSISTANT
from support.bodies import TOOL, USER, chat_body, from_schema, json_values

LIMITS = BodyLimits(max_tools=4, max_schema_bytes=2000, max_schema_depth=8, max_schema_nodes=60)
ANSWER = {"role": "assistant", "content": "Because of"}


def parse(*messages: Any, strict: bool = False, **fields: Any) -> Ask:
    return parse_chat(chat_body(*messages, **fields), LIMITS, strict=strict)


def refusal(*messages: Any, strict: bool = False, **fields: Any) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as caught:
        parse(*messages, strict=strict, **fields)
    return caught.value.message, caught.value.param


def test_the_least_body_has_the_defaults() -> None:
    assert parse() == Ask(model="m", messages=(USER,), tool_choice="none")


def test_every_field_of_groqs_sdk_is_known() -> None:
    known = {row.name for row in CHAT.fields if not row.is_ours}
    assert set(CompletionCreateParams.__annotations__) <= known
    assert set(ChatCompletionAssistantMessageParam.__annotations__) <= {
        "role", *(row.name for row in ASSISTANT.fields)
    }  # fmt: skip


def test_null_is_absent() -> None:
    nulls = {row.name: None for row in CHAT.fields if not row.required}
    assert parse(**nulls) == parse()


SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"temperature": 0}, {"temperature": 0.0}),
    ({"top_p": 0.5}, {"top_p": 0.5}),
    ({"top_k": 40}, {"top_k": 40}),
    ({"min_p": 0.1}, {"min_p": 0.1}),
    ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
    ({"frequency_penalty": -2}, {"frequency_penalty": -2.0}),
    ({"presence_penalty": 2}, {"presence_penalty": 2.0}),
    ({"logit_bias": {"50256": -100}}, {"logit_bias": {50256: -100.0}}),
    ({"seed": -1}, {"seed": -1}),
    ({"stop": "x"}, {"stop": ("x",)}),
    ({"stop": ["x", "y"]}, {"stop": ("x", "y")}),
    ({"stop": []}, {"stop": ()}),
    ({"n": 128}, {"n": 128}),
    ({"max_tokens": 7}, {"max_tokens": 7}),
    ({"max_completion_tokens": 7.0}, {"max_tokens": 7}),
    ({"logprobs": True}, {"logprobs": True}),
    ({"logprobs": True, "top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
    ({"ignore_eos": True}, {"ignore_eos": True}),
    ({"stream": False}, {"stream": False}),
    ({"stream_options": {}}, {}),
    ({"stream_options": {"include_usage": True}}, {"include_usage": True}),
    ({"parallel_tool_calls": False}, {"parallel_tool_calls": False}),
    ({"disable_tool_validation": True}, {"disable_tool_validation": True}),
    ({"include_reasoning": False}, {"include_reasoning": False}),
    ({"reasoning_format": "raw"}, {"reasoning_format": "raw"}),
    ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
    ({"service_tier": "flex"}, {"service_tier": "flex"}),
    ({"service_tier": "default"}, {"service_tier": "on_demand"}),
    ({"user": "u"}, {"user": "u"}),
    ({"chat_template_kwargs": {"enable_thinking": False}},
     {"template_variables": {"enable_thinking": False}}),
    ({"response_format": {"type": "text"}}, {}),
    ({"response_format": {"type": "json_object"}}, {"response_format": JSONObject()}),
    ({"response_format": {"type": "json_schema", "json_schema": {
        "name": "n", "schema": {"type": "array"}, "strict": True}}},
     {"response_format": JSONSchema("n", {"type": "array"}, True)}),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
     {"response_format": JSONSchema("n", {"type": "object"})}),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "becomes"), SETTINGS, ids=str)
def test_each_field_has_its_effect(fields: dict[str, Any], becomes: dict[str, Any]) -> None:
    ask = parse(**fields)
    expected = {"model": "m", "messages": (USER,), "tool_choice": "none", **becomes}
    assert ask == Ask(**expected)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": 1}, "model"),
    ({"model": ""}, "model"),
    ({"messages": {}}, "messages"),
    ({"messages": []}, "messages"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"01": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"seed": 2**64}, "seed"),
    ({"stop": ["x"] * 5}, "stop"),
    ({"stop": [1]}, "stop[0]"),
    ({"stop": {}}, "stop"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"logprobs": 5}, "logprobs"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": []}, "stream_options"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"prompt": ["x"]}, "prompt"),
    ({"reasoning_format": "odd"}, "reasoning_format"),
    ({"reasoning_effort": 3}, "reasoning_effort"),
    ({"service_tier": "gold"}, "service_tier"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}},
     "response_format.json_schema.name"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": True}}},
     "response_format.json_schema.schema"),
    ({"tools": [{"type": "browser_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [TOOL, TOOL]}, "tools[1]"),
    ({"tools": [TOOL] * 5}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "maybe", "tools": [TOOL]}, "tool_choice"),
    ({"tool_choice": {"type": "function"}, "tools": [TOOL]}, "tool_choice.function"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=str)
def test_a_wrong_value_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    for strict in (False, True):
        if strict and fields.keys() & OURS:
            continue
        message, named = refusal(strict=strict, **fields)
        assert named == param
        assert param.split(".")[-1].split("[")[0] in message


OURS = {row.name for row in CHAT.fields if row.is_ours}
SCHEMAS = [
    ({"enum": list(range(70))}, "more than 60 values"),
    ({"not": {"not": {"not": {"not": {"not": {"not": {"not": {"not": {}}}}}}}}}, "8 levels"),
    ({"description": "x" * 2000}, "more than 2000 bytes"),
]


@pytest.mark.parametrize(("schema", "reason"), SCHEMAS)
def test_schemas_are_bounded(schema: Any, reason: str) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    message, param = refusal(response_format=format_)
    assert reason in message
    assert param == "response_format.json_schema.schema"
    tool = {"type": "function", "function": {"name": "n", "parameters": schema}}
    assert refusal(tools=[tool])[1] == "tools[0].function.parameters"


def test_tools_and_their_choice() -> None:
    ask = parse(tools=[TOOL])
    function = TOOL["function"]
    assert ask.tools == (
        Tool("weather", function["description"], function["parameters"]),  # type: ignore[index]
    )
    assert ask.tool_choice == "auto"
    for word in ("none", "auto", "required"):
        assert parse(tools=[TOOL], tool_choice=word).tool_choice == word
    named = {"type": "function", "function": {"name": "weather"}}
    assert parse(tools=[TOOL], tool_choice=named).tool_choice == NamedTool("weather")
    assert parse(tools=[], tool_choice="auto").tool_choice == "none"


def test_a_forced_tool_must_exist() -> None:
    named = {"type": "function", "function": {"name": "other"}}
    expected = ("requested tool does not exist", "tool_choice")
    assert refusal(tools=[TOOL], tool_choice=named) == expected
    assert refusal(tool_choice=named) == expected


def test_functions_are_tools() -> None:
    function = TOOL["function"]
    ask = parse(functions=[function], function_call={"name": "weather"})
    assert ask == parse(
        tools=[TOOL], tool_choice={"type": "function", "function": {"name": "weather"}}
    )
    both = parse(tools=[TOOL], functions=[{"name": "x"}], tool_choice="none", function_call="auto")
    assert [tool.name for tool in both.tools] == ["weather"]
    assert both.tool_choice == "none"
    assert both.ignored == ("functions", "function_call")


CONTRADICTIONS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"max_tokens": 5, "max_completion_tokens": 6}, {"max_tokens": 6}, "max_tokens"),
    ({"max_completion_tokens": 6, "max_tokens": 5}, {"max_tokens": 6}, "max_tokens"),
    ({"top_logprobs": 2}, {"logprobs": False, "top_logprobs": 0}, "top_logprobs"),
    ({"top_logprobs": 2, "logprobs": False}, {"top_logprobs": 0}, "top_logprobs"),
    ({"include_reasoning": False, "reasoning_format": "raw"},
     {"include_reasoning": True, "reasoning_format": "raw"}, "include_reasoning"),
    ({"reasoning_format": "raw", "response_format": {"type": "json_object"}},
     {"reasoning_format": "parsed"}, "reasoning_format"),
    ({"reasoning_format": "raw", "tools": [TOOL]}, {"reasoning_format": "parsed"},
     "reasoning_format"),
    ({"stop": ["", "x"]}, {"stop": ("x",)}, "stop[0]"),
    ({"stop": ""}, {"stop": ()}, "stop"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "becomes", "loser"), CONTRADICTIONS, ids=str)
def test_contradictions_are_resolved_and_named(
    fields: dict[str, Any], becomes: dict[str, Any], loser: str
) -> None:
    ask = parse(**fields)
    assert {name: getattr(ask, name) for name in becomes} == becomes
    assert ask.ignored == (loser,)


def test_what_has_no_effect_is_named() -> None:
    fields = {"metadata": {"a": "b"}, "store": True, "debug": 3, "foo": [1], "bar": None}
    ask = parse({**USER, "timestamp": 1}, **fields)
    assert ask.ignored == ("messages[0].timestamp", "metadata", "store", "debug", "foo")


def test_an_answers_beginning_is_continued() -> None:
    ask = parse(USER, ANSWER)
    assert ask.continues
    assert ask.messages == (USER, ANSWER)
    assert not parse(USER, ANSWER, USER).continues


def test_prompt_is_what_was_received_so_far() -> None:
    ask = parse(USER, prompt="Because of")
    assert (ask.messages, ask.continues) == ((USER, ANSWER), True)
    assert ask.prompt is None
    ask = parse(USER, ANSWER, prompt=" the air")
    assert (ask.messages, ask.continues) == (
        (USER, {"role": "assistant", "content": "Because of the air"}), True
    )  # fmt: skip
    assert parse(USER, prompt="") == parse(USER)


def test_a_call_is_no_answers_beginning() -> None:
    call = {"id": "a", "function": {"name": "f", "arguments": "{}"}}
    ask = parse(USER, {"role": "assistant", "tool_calls": [call]})
    assert not ask.continues


STRICT: list[tuple[dict[str, Any], str]] = [
    ({"foo": 1}, "property 'foo' is unsupported"),
    ({"top_k": 5}, "property 'top_k' is unsupported, did you mean 'top_p'?"),
    ({"stream_option": {}},
     "property 'stream_option' is unsupported, did you mean 'stream_options'?"),
    ({"prompt": "x"}, "property 'prompt' is unsupported"),
    ({"messages": []}, "'messages' : minimum number of items is 1"),
    ({"n": 2}, "`n` must be 1, not 2"),
    ({"service_tier": "default"},
     "'service_tier' : value is not one of the allowed values "
     "['auto','on_demand','flex','performance']"),
    ({"reasoning_effort": "xhigh"},
     "'reasoning_effort' : value is not one of the allowed values "
     "['none','default','low','medium','high']"),
    ({"metadata": 3}, "`metadata` must be an object, not 3"),
    ({"response_format": {"type": "json_object"}},
     "'messages' must contain the word 'json' in some form, to use 'response_format' of type "
     "'json_object'."),
    ({"response_format": {"type": "json_schema", "json_schema": {
        "name": "answer", "strict": True, "schema": {"type": "object"}}}},
     "invalid JSON schema for response_format: 'answer': `additionalProperties:false` must be set "
     "on every object"),
    ({"tools": [{"type": "function", "function": {"name": "browse", "strict": True, "parameters": {
        "type": "object", "additionalProperties": False, "properties": {"inputs": {
            "anyOf": [{"type": "array", "items": {"type": "object"}}]}}}}}]},
     "invalid JSON schema for tool browse, tools[0].function.parameters: "
     "/properties/inputs/anyOf/0/items: additionalProperties:false must be set on every object"),
    ({"top_logprobs": 2}, "`top_logprobs` needs `logprobs` to be true"),
    ({"include_reasoning": True, "reasoning_format": "raw"},
     "`include_reasoning` and `reasoning_format` exclude each other; send one of them"),
    ({"reasoning_format": "raw", "tools": [TOOL]},
     "`reasoning_format` must be `parsed` or `hidden` with tools or JSON"),
    ({"tools": [TOOL], "disable_tool_validation": True,
      "tool_choice": {"type": "function", "function": {"name": "weather"}}},
     "`tool_choice` cannot name a tool while `disable_tool_validation` is true"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), STRICT, ids=str)
def test_strictly_it_is_refused(fields: dict[str, Any], message: str) -> None:
    assert refusal(strict=True, **fields)[0] == message


def test_strictly_json_must_be_mentioned() -> None:
    message = {"role": "user", "content": "Answer in JSON."}
    ask = parse(message, strict=True, response_format={"type": "json_object"})
    assert ask.response_format == JSONObject()


def test_the_model_is_required() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat({"messages": [USER]}, LIMITS)
    assert (caught.value.message, caught.value.param) == (
        "`model` is missing; it is required", "model"
    )  # fmt: skip


# What a body can be made of: the fields' own values, and anything at all.
PLACED = {row.name: row for row in CHAT.fields if row.into is not None and row.name != "model"}
SANE = {name: from_schema(row.kind.schema(LIMITS)) for name, row in PLACED.items()}
ALLOWED = {row.name: from_schema(row.schema(LIMITS)) for row in CHAT.fields}
ANYTHING = st.fixed_dictionaries(
    {"model": ALLOWED.pop("model"), "messages": ALLOWED.pop("messages") | json_values},
    optional={name: values | json_values for name, values in ALLOWED.items()}
    | {"foo": json_values},
)


@settings(max_examples=200)
@given(ANYTHING, st.booleans())
def test_any_body_is_an_ask_or_a_refusal(body: dict[str, Any], strict: bool) -> None:
    body = parse_body(orjson.dumps(body))
    try:
        ask = parse_chat(body, LIMITS, strict=strict)
    except InvalidRequest as error:
        assert error.message
        assert error.param is not None
        return
    assert ask.messages
    known = {row.name for row in CHAT.fields if row.has_effect}
    sent = {name for name, value in body.items() if value is not None}
    assert sent - known <= set(ask.ignored)


@settings(max_examples=100)
@given(st.fixed_dictionaries({}, optional=SANE))
def test_no_value_is_lost(fields: dict[str, Any]) -> None:
    """Whatever goes into the ask as it is, is there; or it is named as the loser."""
    variables = fields.get("chat_template_kwargs", {})
    if variables.keys() & {"self", "messages", "tools"}:
        return
    ask = parse(**fields)
    for name, value in fields.items():
        if name in ask.ignored or name in ("stop", "logit_bias", "service_tier", "context"):
            continue
        assert getattr(ask, PLACED[name].into or "") == value
    if "logit_bias" in fields:
        assert {str(token): bias for token, bias in ask.logit_bias.items()} == fields["logit_bias"]
    if isinstance(fields.get("stop"), list):
        assert list(ask.stop) == [text for text in fields["stop"] if text]
