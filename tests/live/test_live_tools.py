"""Tools and JSON through the official Python clients, with a model that knows nothing of either:
what holds, holds because the server makes it so."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pydantic
import pytest

from support.clients import CLIENTS, MODEL, openai_client, user
from support.servers import Server

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city now",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 40},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
TIME = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "integer", "minimum": -12, "maximum": 14}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}
ASKED: dict[str, Any] = {
    "model": MODEL,
    "messages": user("What is the weather in Paris?"),
    "tools": [WEATHER, TIME],
    "parallel_tool_calls": False,
    "max_tokens": 120,
    "seed": 3,
}
NAMED = {"type": "function", "function": {"name": "get_time"}}


def the_call(choice: Any) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a choice's only call."""
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls
    assert call.type == "function"
    assert call.id
    return call.function.name, json.loads(call.function.arguments)


def check_weather(arguments: dict[str, Any]) -> None:
    assert arguments.keys() == {"city", "unit"}
    assert arguments["unit"] in ("celsius", "fahrenheit")


def test_required(client: Any) -> None:
    answer = client.chat.completions.create(**ASKED, tool_choice="required")
    name, arguments = the_call(answer.choices[0])
    if name == "get_weather":
        check_weather(arguments)
    else:
        assert -12 <= arguments["zone"] <= 14


def test_named(client: Any) -> None:
    answer = client.chat.completions.create(**ASKED, tool_choice=NAMED)
    name, arguments = the_call(answer.choices[0])
    assert name == "get_time"
    assert -12 <= arguments["zone"] <= 14


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_answers_in_words(client: Any, choice: str) -> None:
    """What this model does when it is free to choose."""
    [choice] = client.chat.completions.create(**ASKED, tool_choice=choice).choices
    assert choice.message.content
    assert not choice.message.tool_calls
    assert choice.finish_reason in ("stop", "length")


def test_a_call_comes_in_one_chunk(client: Any) -> None:
    whole = client.chat.completions.create(**ASKED, tool_choice=NAMED).choices[0]
    chunks = list(client.chat.completions.create(**ASKED, tool_choice=NAMED, stream=True))
    [delta] = [chunk.choices[0].delta for chunk in chunks if chunk.choices[0].delta.tool_calls]
    [call] = delta.tool_calls
    assert (call.index, call.type) == (0, "function")
    assert call.id
    assert call.function.name == "get_time"
    assert call.function.arguments == whole.message.tool_calls[0].function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("as_message", ["the object", "model_dump", "only what is set"])
def test_results_go_back(client: Any, as_message: str) -> None:
    """The loop of every agent, with the message passed on in all the ways that agents do."""
    answer = client.chat.completions.create(**ASKED, tool_choice="required")
    message = answer.choices[0].message
    [call] = message.tool_calls
    passed_on = {
        "the object": lambda: message,
        "model_dump": message.model_dump,
        "only what is set": lambda: message.model_dump(exclude_unset=True),
    }[as_message]()
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 18}'}
    messages = [*ASKED["messages"], passed_on, result]
    asked = {**ASKED, "messages": messages, "max_tokens": 16}
    again = client.chat.completions.create(**asked)
    assert again.usage.prompt_tokens > answer.usage.prompt_tokens + 20
    assert again.choices[0].finish_reason


def test_a_call_is_named_by_the_same_id_in_no_two_answers(client: Any) -> None:
    ids = set()
    for _ in range(3):
        answer = client.chat.completions.create(**ASKED, tool_choice=NAMED)
        ids.add(answer.choices[0].message.tool_calls[0].id)
    assert len(ids) == 3


CAT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 30},
        "colour": {"enum": ["black", "white", "red"]},
    },
    "required": ["name", "age", "colour"],
    "additionalProperties": False,
}


def test_any_json(client: Any) -> None:
    asked = {"model": MODEL, "messages": user("A JSON object about a cat, please."), "seed": 1}
    answer = client.chat.completions.create(**asked, response_format={"type": "json_object"})
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


@pytest.mark.parametrize("strict", [True, False])
def test_json_by_a_schema(client: Any, strict: bool) -> None:
    wanted = {
        "type": "json_schema",
        "json_schema": {"name": "cat", "schema": CAT, "strict": strict},
    }
    asked = {"model": MODEL, "messages": user("Describe a cat."), "max_tokens": 200, "seed": 2}
    whole = client.chat.completions.create(**asked, response_format=wanted).choices[0]
    cat = json.loads(whole.message.content)
    assert cat.keys() == CAT["properties"].keys()
    assert cat["colour"] in ("black", "white", "red")
    chunks = list(client.chat.completions.create(**asked, response_format=wanted, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.message.content


class Cat(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=20)
    age: int = pydantic.Field(ge=0, le=30)
    colour: Literal["black", "white", "red"]


class GetTime(pydantic.BaseModel):
    zone: int = pydantic.Field(ge=-12, le=14)


def test_openai_parses_by_a_model(real: Server) -> None:
    completions = openai_client(real).chat.completions
    asked: dict[str, Any] = {"model": MODEL, "messages": user("Describe a cat."), "seed": 4}
    answer = completions.parse(**asked, response_format=Cat)
    assert isinstance(answer.choices[0].message.parsed, Cat)
    with completions.stream(**asked, response_format=Cat) as stream:
        kinds = [event.type for event in stream]
        cat = stream.get_final_completion().choices[0].message.parsed
    assert cat == answer.choices[0].message.parsed
    assert {"chunk", "content.delta", "content.done"} == set(kinds)


def test_openai_parses_calls(real: Server) -> None:
    tool = openai.pydantic_function_tool(GetTime)
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": user("What time is it?"),
        "tools": [tool],
        "tool_choice": {"type": "function", "function": {"name": "GetTime"}},
        "parallel_tool_calls": False,
        "seed": 4,
    }
    completions = openai_client(real).chat.completions
    answer = completions.parse(**asked)
    parsed = answer.choices[0].message.tool_calls[0].function.parsed_arguments
    assert isinstance(parsed, GetTime)
    with completions.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        again = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert again.function.parsed_arguments == parsed
    assert "tool_calls.function.arguments.done" in kinds


@pytest.mark.parametrize("name", CLIENTS)
def test_a_call_that_is_cut_off(real: Server, name: str) -> None:
    """Arguments of which the end is missing would be handed on as if they were whole."""
    client = CLIENTS[name](real)
    answer = client.chat.completions.create(**{**ASKED, "max_tokens": 6}, tool_choice="required")
    [choice] = answer.choices
    assert choice.finish_reason == "length"
    assert not choice.message.tool_calls
