import json
from collections.abc import Mapping
from typing import Any

import httpx2
import openai._models
import pytest
from hypothesis import given, settings
from openai import OpenAI
from openai.types.responses import Response, ResponseStreamEvent

from headrace.errors import ContextLengthExceeded, GenerationFailed, HeadraceError, ToolUseFailed
from headrace.events import (
    Delta,
    Event,
    Failed,
    Finished,
    Started,
    TokenLogprob,
    ToolCall,
    Usage,
    fold,
    merge_all,
)
from headrace.wire.responses_answer import ResponsesStream, responses_answer
from support.answers import (
    RESPONSE_STAMP,
    TIMINGS,
    Bytes,
    choice_events,
    finished,
    heard,
    spoken,
)

ECHO = {
    "instructions": "Be <short>.",
    "tools": [{"type": "function", "name": "weather", "parameters": {}, "strict": True}],
    "tool_choice": {"type": "function", "name": "weather"},
    "temperature": 0.5,
    "metadata": {"a": "b"},
    "max_output_tokens": 9,
    "reasoning": {"effort": "low", "summary": None},
    "parallel_tool_calls": False,
    "top_logprobs": 2,
}
STARTED = Started("r", 0, 7, 45, 0)
KEYS = (
    "id object status created_at output previous_response_id model reasoning max_output_tokens "
    "instructions text tools tool_choice truncation metadata temperature top_p user service_tier "
    "error incomplete_details usage parallel_tool_calls store"
)


def streamed(
    events: list[Event], echo: Mapping[str, Any] | None = None, spelling: Bytes | None = None
) -> list[dict[str, Any]]:
    """The stream's events; each is named as its data says, numbered, and strictly valid."""
    stream = ResponsesStream(RESPONSE_STAMP, echo=echo, spelling=spelling)
    said = heard(b"".join([stream.encode(event) for event in events]))
    assert stream.is_ended
    values: list[dict[str, Any]] = []
    for number, event in enumerate(said):
        value = json.loads(event.data)
        assert event.event == value["type"]
        assert value["sequence_number"] == number
        parsed = openai._models.validate_type(type_=ResponseStreamEvent, value=value)
        assert parsed.type == event.event
        values.append(value)
    return values


def whole(events: list[Event], **options: Any) -> dict[str, Any]:
    [choice] = fold(events)
    data = responses_answer(RESPONSE_STAMP, choice, **options)
    assert data.endswith(b"}\n")
    value: dict[str, Any] = json.loads(data)
    assert openai._models.validate_type(type_=Response, value=value).id == RESPONSE_STAMP.id
    return value


def kinds(values: list[dict[str, Any]]) -> list[str]:
    return [value["type"].removeprefix("response.") for value in values]


def test_the_order_of_a_message() -> None:
    values = streamed(spoken("Hel", "", "lo"))
    assert kinds(values) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [value["delta"] for value in values[4:6]] == ["Hel", "lo"]
    item = {
        "type": "message",
        "id": "msg_01k1x6w9ane6d8rfxm05cb4500",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Hello", "annotations": []}],
    }
    assert values[2]["item"] == {**item, "status": "in_progress", "content": []}
    assert values[-2]["item"] == item
    assert values[-1]["response"]["output"] == [item]
    assert values[0]["response"]["status"] == "in_progress"
    assert values[-1]["response"]["status"] == "completed"


def test_a_delta_as_bytes() -> None:
    stream = ResponsesStream(RESPONSE_STAMP)
    stream.encode(STARTED)
    stream.encode(Delta(0, 0, (1,), "a"))
    assert stream.encode(Delta(0, 1, (2,), "<b>")) == (
        b"event: response.output_text.delta\n"
        b'data: {"type":"response.output_text.delta","sequence_number":5,'
        b'"item_id":"msg_01k1x6w9ane6d8rfxm05cb4500","output_index":0,"content_index":0,'
        b'"delta":"\\u003cb\\u003e","logprobs":[]}\n\n'
    )


def test_thoughts_text_and_a_call_follow_each_other() -> None:
    events: list[Event] = [
        STARTED,
        Delta(0, 0, (1,), "", (), "hm"),
        Delta(0, 1, (2, 3), "So", (), "m"),
        ToolCall(0, 0, "call_1", "weather", '{"a":1}'),
        finished(reason="tool_calls"),
    ]
    values = streamed(events)
    assert kinds(values)[2:] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert values[-1]["response"]["output"] == [
        {
            "type": "reasoning",
            "id": "rs_01k1x6w9ane6d8rfxm05cb4500",
            "status": "completed",
            "content": [{"type": "reasoning_text", "text": "hmm"}],
            "summary": [],
        },
        {
            "type": "message",
            "id": "msg_01k1x6w9ane6d8rfxm05cb4501",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "So", "annotations": []}],
        },
        {
            "type": "function_call",
            "id": "fc_01k1x6w9ane6d8rfxm05cb4502",
            "status": "completed",
            "call_id": "call_1",
            "name": "weather",
            "arguments": '{"a":1}',
        },
    ]


@settings(max_examples=40)
@given(choice_events())
def test_the_whole_answer_is_the_end_of_the_stream(events: list[Event]) -> None:
    expected = whole(events, echo=ECHO)
    for said in (events, merge_all(events)):
        assert streamed(said, ECHO)[-1]["response"] == expected


@settings(max_examples=30)
@given(choice_events(with_logprobs=True))
def test_deltas_add_up_to_the_items(events: list[Event]) -> None:
    values = streamed(events, spelling=Bytes())
    output = values[-1]["response"]["output"]
    for index, item in enumerate(output):
        mine = [value for value in values if value.get("output_index") == index]
        text = "".join(value.get("delta", "") for value in mine)
        part = item["content"][0] if "content" in item else {"text": item["arguments"]}
        assert text == part["text"]
        assert {value.get("item_id", item["id"]) for value in mine} == {item["id"]}
    assert whole(events, spelling=Bytes())["output"] == output


def test_log_probabilities_wait_for_the_text_that_they_are_of() -> None:
    events: list[Event] = [
        STARTED,
        Delta(0, 0, (0xC3,), "", (TokenLogprob(0xC3, -1.0, ()),)),
        Delta(0, 1, (0xA9,), "é", (TokenLogprob(0xA9, -2.0, ((65, -0.5),)),)),
        Delta(0, 2, (65,), "", (TokenLogprob(65, -3.0, ()),)),
        finished(),
    ]
    values = streamed(events, spelling=Bytes())
    [delta] = [value for value in values if value["type"] == "response.output_text.delta"]
    assert [entry["logprob"] for entry in delta["logprobs"]] == [-1.0, -2.0]
    [done] = [value for value in values if value["type"] == "response.output_text.done"]
    assert [entry["logprob"] for entry in done["logprobs"]] == [-1.0, -2.0, -3.0]
    [item] = values[-1]["response"]["output"]
    assert item["content"][0]["logprobs"] == done["logprobs"]


def test_the_object_and_its_echo() -> None:
    plain = whole(spoken("a"))
    assert list(plain) == KEYS.split()
    assert (plain["service_tier"], plain["store"]) == ("default", False)
    assert plain["usage"]["total_tokens"] == 707
    echoed = whole(spoken("a"), echo=ECHO)
    assert list(echoed) == [*KEYS.split(), "top_logprobs"]
    assert {name: echoed[name] for name in ECHO} == ECHO


def test_what_is_the_answers_own_is_no_echo() -> None:
    with pytest.raises(ValueError, match="output, status"):
        ResponsesStream(RESPONSE_STAMP, echo={"status": "x", "output": [], "user": "u"})


def test_an_answer_that_was_cut() -> None:
    events: list[Event] = [STARTED, Delta(0, 0, (1,), "a"), finished(reason="length")]
    values = streamed(events)
    response = values[-1]["response"]
    assert values[-1]["type"] == "response.incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == response["status"] == "incomplete"
    assert response == whole(events)


def test_an_answer_that_was_stopped() -> None:
    events: list[Event] = [STARTED, Delta(0, 0, (1,), "a"), finished(reason="cancelled")]
    values = streamed(events)
    response = values[-1]["response"]
    assert values[-1]["type"] == "response.incomplete"
    assert (response["status"], response["incomplete_details"]) == ("cancelled", None)
    assert response["output"][0]["status"] == "incomplete"
    assert response == whole(events)


def test_an_answer_that_was_stopped_before_it_began() -> None:
    events: list[Event] = [finished(reason="cancelled")]
    values = streamed(events)
    assert kinds(values)[:2] == ["created", "in_progress"]
    assert values[-1]["response"]["output"][0]["content"][0]["text"] == ""
    assert values[-1]["response"] == whole(events)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            GenerationFailed("NaN"),
            {"code": "server_error", "message": "NaN", "type": "generation_failed"},
        ),
        (
            ToolUseFailed("no", "text"),
            {
                "code": "invalid_prompt",
                "message": "no",
                "type": "tool_use_failed",
                "failed_generation": "text",
            },
        ),
        (
            ContextLengthExceeded("long", param="input"),
            {
                "code": "invalid_prompt",
                "message": "long",
                "type": "context_length_exceeded",
                "param": "input",
            },
        ),
    ],
)
def test_a_failure(error: HeadraceError, said: dict[str, Any]) -> None:
    events: list[Event] = [
        STARTED,
        Delta(0, 0, (1,), "a"),
        Failed(0, error, Usage(3, 0, 1), TIMINGS),
    ]
    values = streamed(events)
    assert kinds(values)[-2:] == ["output_item.done", "failed"]
    response = values[-1]["response"]
    assert (response["status"], response["error"]) == ("failed", said)
    assert response["output"][0]["status"] == "incomplete"
    assert kinds(streamed(events[-1:])) == ["created", "in_progress", "failed"]


def test_after_the_end_comes_nothing() -> None:
    stream = ResponsesStream(RESPONSE_STAMP)
    assert stream.encode(finished())
    assert stream.encode(Delta(0, 0, (1,), "late")) == b""


def client(data: bytes, content_type: str = "text/event-stream") -> OpenAI:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=data, headers={"content-type": content_type})

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    return OpenAI(api_key="k", http_client=http, max_retries=0)


def test_the_official_client_follows_the_stream() -> None:
    events = [
        *spoken("Zür", "i")[:-1],
        ToolCall(0, 0, "call_1", "weather", '{"a":1}'),
        Finished(0, "tool_calls", Usage(45, 0, 9), TIMINGS),
    ]
    stream = ResponsesStream(RESPONSE_STAMP, echo=ECHO)
    data = b"".join([stream.encode(event) for event in events])
    with client(data).responses.stream(model="m", input="hi") as followed:
        names = [event.type for event in followed]
        final = followed.get_final_response()
    assert names[-1] == "response.completed"
    assert final.output_text == "Züri"
    call = final.output[1]
    assert call.type == "function_call"
    assert (call.name, call.arguments, call.call_id) == ("weather", '{"a":1}', "call_1")
    assert final.usage is not None
    assert final.usage.output_tokens == 9


def test_the_official_client_reads_a_whole_answer() -> None:
    data = responses_answer(RESPONSE_STAMP, fold(spoken("a", "b"))[0])
    response = client(data, "application/json").responses.create(model="m", input="hi")
    assert (response.output_text, response.status) == ("ab", "completed")
