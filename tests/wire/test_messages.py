"""Messages as clients send them, and as templates get them."""

import json
from typing import Any

import pytest
from hypothesis import given

from headrace.errors import InvalidRequest
from headrace.wire.body import BodyLimits
from headrace.wire.chat_request import parse_chat
from support.bodies import CALL, TOOL, USER, chat_body, json_values, texts

LIMITS = BodyLimits(max_messages=50, max_parts=4)
READ_CALL = {
    "id": "a1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "X"}},
}


def read(*messages: Any, strict: bool = False) -> tuple[Any, ...]:
    parsed = parse_chat(chat_body(*messages), LIMITS, strict=strict).messages
    assert parsed is not None
    return parsed


def refusal(*messages: Any, strict: bool = False) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(chat_body(*messages), LIMITS, strict=strict)
    return caught.value.message, caught.value.param


def test_every_role() -> None:
    assert read(
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "d"},
        {"role": "user", "content": "u", "name": "Ada"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "t", "tool_call_id": "a1", "name": "weather"},
        {"role": "assistant", "content": "a", "reasoning": "r"},
        USER,
    ) == (
        {"role": "system", "content": "s"},
        {"role": "system", "content": "d"},
        {"role": "user", "content": "u", "name": "Ada"},
        {"role": "assistant", "tool_calls": [READ_CALL]},
        {"role": "tool", "content": "t", "name": "weather", "tool_call_id": "a1"},
        {"role": "assistant", "content": "a", "reasoning": "r"},
        USER,
    )


def test_functions_of_old_become_calls_and_tools() -> None:
    called = {"name": "weather", "arguments": '{"city":"X"}'}
    call = READ_CALL | {"id": "call_1"}
    assert read(
        USER,
        {"role": "assistant", "content": None, "function_call": called},
        {"role": "function", "name": "weather", "content": "sun"},
    ) == (
        USER,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "sun", "name": "weather", "tool_call_id": "call_1"},
    )


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {}}]
    ask = parse_chat(chat_body({"role": "user", "content": parts}), LIMITS)
    assert ask.messages == ({"role": "user", "content": "a\nb"},)
    assert ask.ignored == ("messages[0].content[1].cache_control",)


def test_what_the_sdk_dumps_comes_back() -> None:
    """`message.model_dump()` sends nulls for everything that was not there."""
    dumped = {
        "content": None,
        "role": "assistant",
        "annotations": None,
        "executed_tools": None,
        "function_call": None,
        "reasoning": "r",
        "tool_calls": [CALL],
    }
    result = {"role": "tool", "content": "sun", "tool_call_id": "a1"}
    for strict in (False, True):
        ask = parse_chat(chat_body(USER, dumped, result, tools=[TOOL]), LIMITS, strict=strict)
        assert ask.messages is not None
        assert ask.messages[1] == {
            "role": "assistant", "reasoning": "r", "tool_calls": [READ_CALL]
        }  # fmt: skip
        assert ask.ignored == ()


@pytest.mark.parametrize(
    ("arguments", "read_as"),
    [
        ('{"a":1}', {"a": 1}),
        ("", {}),
        ("{", "{"),
        ("[1]", "[1]"),
        ('{"a":' + "[" * 80 + "]" * 80 + "}", '{"a":' + "[" * 80 + "]" * 80 + "}"),
    ],
)
def test_arguments_are_the_object_that_they_spell(arguments: str, read_as: Any) -> None:
    call = {"id": "a", "function": {"name": "f", "arguments": arguments}}
    messages = read(USER, {"role": "assistant", "tool_calls": [call]})
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == read_as


def test_an_answer_of_thoughts_alone_is_one() -> None:
    assert read(USER, {"role": "assistant", "content": None, "reasoning_content": "hm"}, USER)[
        1
    ] == {"role": "assistant", "content": "", "reasoning": "hm"}


@pytest.mark.parametrize(
    ("message", "reason", "param"),
    [
        ({"role": "user"}, "`messages[0].content` is missing", "messages[0].content"),
        ({"role": "user", "content": None}, "is missing", "messages[0].content"),
        ({"role": "assistant"}, "is missing", "messages[0].content"),
        ({"role": "tool", "content": "x"}, "is missing", "messages[0].tool_call_id"),
        ({"content": "x"}, "is missing", "messages[0].role"),
        ({"role": "robot", "content": "x"}, "must be `system`, ", "messages[0].role"),
        ({"role": "user", "content": 5}, "must be a string or", "messages[0].content"),
        ({"role": "user", "content": ["x"]}, "must be an object", "messages[0].content[0]"),
        (
            {"role": "user", "content": [{"type": "odd", "text": "x"}]},
            "must be `text`",
            "messages[0].content[0].type",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "x"}] * 5},
            "has 5 text parts",
            "messages[0].content",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f"}}]},
            "is missing",
            "messages[0].tool_calls[0].function.arguments",
        ),
        ("hi", "must be an object", "messages[0]"),
    ],
)
def test_a_wrong_message_is_refused_by_name(message: Any, reason: str, param: str) -> None:
    text, named = refusal(message)
    assert reason in text
    assert named == param


def test_too_many_messages() -> None:
    assert refusal(*[USER] * 51) == (
        "`messages` has 51 messages; at most 50 are allowed",
        "messages",
    )


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_other_media_are_refused_in_groqs_words(kind: str) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "what?"}, {"type": kind}]}
    for strict in (False, True):
        assert refusal(message, strict=strict) == (
            "messages[0].content must be a string",
            "messages[0].content",
        )


def test_a_document_is_read_as_json() -> None:
    document = {"data": {"a": 1, "b": "<ü>"}, "id": "d1"}
    parts = [{"type": "document", "document": document}, {"type": "text", "text": "what?"}]
    (message,) = read({"role": "user", "content": parts})
    assert message["content"] == '{"data":{"a":1,"b":"<ü>"},"id":"d1"}\nwhat?'


def test_a_document_without_data() -> None:
    message = {"role": "user", "content": [{"type": "document", "document": {"id": "d"}}]}
    assert refusal(message)[1] == "messages[0].content[0].document.data"


STRICT = [
    (
        {"role": "user", "content": "x", "timestamp": 1},
        "'messages.0' : for 'role:user' the following must be satisfied"
        "[('messages.0' : property 'timestamp' is unsupported)]",
    ),
    (
        {"role": "user", "content": 5},
        "'messages.0' : for 'role:user' the following must be satisfied"
        "[('messages.0.content' : value must be a string)]",
    ),
    (
        {"role": "user", "content": []},
        "'messages.0' : for 'role:user' the following must be satisfied"
        "[('messages.0.content' : minimum number of items is 1)]",
    ),
    ({"role": "robot"}, "'messages.0' : discriminator property 'role' has invalid value"),
    ({}, "'messages.0' : discriminator property 'role' has invalid value"),
    (
        {"role": "assistant", "content": "x", "reasoning_content": "r"},
        "'messages.0' : for 'role:assistant' the following must be satisfied[('messages.0' : "
        "property 'reasoning_content' is unsupported, did you mean 'reasoning'?)]",
    ),
]


@pytest.mark.parametrize(("message", "words"), STRICT)
def test_strictly_it_is_groqs_grammar(message: Any, words: str) -> None:
    assert refusal(message, strict=True)[0] == words


def test_leniently_the_same_is_noted() -> None:
    noted = parse_chat(chat_body({"role": "user", "content": "x", "id": "1", "ts": None}), LIMITS)
    assert noted.ignored == ("messages[0].id",)


@given(texts, texts)
def test_texts_go_through_unchanged(first: str, second: str) -> None:
    messages = ({"role": "system", "content": first}, {"role": "user", "content": second})
    assert read(*messages) == messages


@given(json_values)
def test_any_message_is_read_or_refused(value: Any) -> None:
    for message in (value, {"role": "assistant", "content": value, "tool_calls": value}):
        try:
            messages = read(message)
        except InvalidRequest as error:
            assert error.param is not None
            assert error.param.startswith("messages[0]")
        else:
            assert json.dumps(messages)
