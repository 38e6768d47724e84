"""`/responses` and `/completions` through OpenAI's Python client; Groq's own has neither."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pydantic
import pytest

from support.clients import MODEL, openai_client
from support.servers import Server

ASKED: dict[str, Any] = {
    "model": MODEL,
    "input": "What is 2+2?",
    "max_output_tokens": 60,
    "temperature": 0,
}
GET_TIME: dict[str, Any] = {
    "type": "function",
    "name": "get_time",
    "parameters": {
        "type": "object",
        "properties": {"zone": {"type": "integer", "minimum": -12, "maximum": 14}},
        "required": ["zone"],
        "additionalProperties": False,
    },
    "strict": True,
}


@pytest.fixture
def client(real: Server) -> openai.OpenAI:
    return openai_client(real)


def test_a_whole_response(client: openai.OpenAI) -> None:
    response = client.responses.create(**ASKED)
    assert response.id.startswith("resp_01")
    assert (response.object, response.status, response.error) == ("response", "completed", None)
    assert response.incomplete_details is None
    [message] = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert message.content[0].text == response.output_text != ""
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert response.store is True


def test_a_response_that_is_cut_off(client: openai.OpenAI) -> None:
    response = client.responses.create(**{**ASKED, "max_output_tokens": 4})
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.output_tokens == 4


MESSAGE_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


def test_events(client: openai.OpenAI) -> None:
    events = list(client.responses.create(**ASKED, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert list(dict.fromkeys(event.type for event in events)) == MESSAGE_EVENTS
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    final = events[-1].response
    assert len(deltas) > 3
    assert "".join(deltas) == final.output_text
    whole = client.responses.create(**ASKED)
    assert final.output_text == whole.output_text
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_the_clients_own_view_of_events(client: openai.OpenAI) -> None:
    with client.responses.stream(**ASKED) as stream:
        kinds = {type(event).__name__ for event in stream}
        response = stream.get_final_response()
    assert {"ResponseCreatedEvent", "ResponseTextDeltaEvent", "ResponseCompletedEvent"} <= kinds
    assert response.output_text == client.responses.create(**ASKED).output_text


def test_a_stream_that_is_cut_off(client: openai.OpenAI) -> None:
    *_, last = client.responses.create(**{**ASKED, "max_output_tokens": 4}, stream=True)
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details.reason == "max_output_tokens"


class Cat(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=20)
    age: int = pydantic.Field(ge=0, le=30)
    colour: Literal["black", "white", "red"]


def test_parse(client: openai.OpenAI) -> None:
    asked = {**ASKED, "input": "Describe a cat.", "max_output_tokens": 300}
    parsed = client.responses.parse(**asked, text_format=Cat).output_parsed
    assert isinstance(parsed, Cat)
    with client.responses.stream(**asked, text_format=Cat) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_parsed == parsed


def test_tools_and_their_results(client: openai.OpenAI) -> None:
    """Nothing is stored: what the model said goes back with the result."""
    asked: dict[str, Any] = {
        "model": MODEL,
        "tools": [GET_TIME],
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_output_tokens": 100,
    }
    said: list[Any] = [{"role": "user", "content": "What time is it?"}]
    response = client.responses.create(**asked, input=said, tool_choice="required")
    [call] = [item for item in response.output if item.type == "function_call"]
    assert (call.name, call.status) == ("get_time", "completed")
    assert -12 <= json.loads(call.arguments)["zone"] <= 14
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "noon"}
    again = client.responses.create(**asked, input=[*said, *response.output, result])
    assert again.usage.input_tokens > response.usage.input_tokens + 15


def test_events_of_a_call(client: openai.OpenAI) -> None:
    events = list(
        client.responses.create(
            model=MODEL,
            input="What time is it?",
            tools=[GET_TIME],
            tool_choice={"type": "function", "name": "get_time"},
            parallel_tool_calls=False,
            stream=True,
        )
    )
    assert [event.type for event in events[2:-1]] == [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ]
    [call] = events[-1].response.output
    assert events[-3].arguments == call.arguments == events[3].delta


def test_instructions_and_turns(client: openai.OpenAI) -> None:
    first = client.responses.create(**ASKED, instructions="Answer in one word.")
    turns = [*first.output, {"role": "user", "content": "And now?"}]
    asked = {**ASKED, "input": [{"role": "user", "content": ASKED["input"]}, *turns]}
    second = client.responses.create(**asked)
    assert second.usage.input_tokens > first.usage.output_tokens
    assert second.output_text


@pytest.mark.parametrize("unsupported", [{"prompt": {"id": "p"}}, {"background": True}])
def test_what_needs_a_store_is_refused_or_named(
    client: openai.OpenAI, unsupported: dict[str, Any]
) -> None:
    """Never silently: an answer without its history would be a wrong one."""
    try:
        raw = client.responses.with_raw_response.create(**ASKED, **unsupported)
    except openai.BadRequestError as error:
        assert error.param in unsupported
    else:
        assert set(unsupported) <= set(raw.headers["x-headrace-ignored"].split(", "))


def test_completions(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 6, "seed": 3}
    whole = client.completions.create(**asked, prompt="Once upon a time", echo=True)
    assert whole.object == "text_completion"
    assert whole.choices[0].text.startswith("Once upon a time")
    prompts = ["One, two,", "Red, green,"]
    several = client.completions.create(**asked, prompt=prompts, n=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    chunks = list(client.completions.create(**asked, prompt=prompts, n=2, stream=True))
    for choice in several.choices:
        parts = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert parts[-1].finish_reason == choice.finish_reason


def scored(client: openai.OpenAI, prompt: str, **more: Any) -> Any:
    """One choice with log probabilities."""
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 6, "seed": 3, "logprobs": 2}
    return client.completions.create(**asked, prompt=prompt, extra_body=more).choices[0]


def test_log_probabilities_of_completions(client: openai.OpenAI) -> None:
    choice = scored(client, "One, two,", heal=False)
    assert "".join(choice.logprobs.tokens) == choice.text
    assert len(choice.logprobs.token_logprobs) == len(choice.logprobs.top_logprobs) == 6


def test_log_probabilities_are_of_the_answer_alone(client: openai.OpenAI) -> None:
    choice = scored(client, "One, two,")
    assert "".join(choice.logprobs.tokens) == choice.text


def test_a_prompt_that_ends_with_a_whole_token_stays_as_it_is(client: openai.OpenAI) -> None:
    """Nothing begins with ` two,`: what the model reads is what it would have read anyway."""
    healed = scored(client, "One, two,", temperature=0)
    assert healed.text == scored(client, "One, two,", temperature=0, heal=False).text
