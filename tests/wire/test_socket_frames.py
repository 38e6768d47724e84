"""Messages of a WebSocket: what clients may say, and answers as bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from headrace.errors import GenerationFailed, InvalidRequest, RateLimited
from headrace.events import Delta, Event, Failed, Finished, Started, Timings, Usage
from headrace.wire.ask import Stamp
from headrace.wire.chat_answer import ChatStream
from headrace.wire.numbered import Numbered
from headrace.wire.socket_frames import (
    Append,
    Cancel,
    Clear,
    Commit,
    NumberedMessages,
    PlainMessages,
    Question,
    Resume,
    client_id,
    opening,
    refusal,
    text_frames,
    wish,
)

STAMP = Stamp("chatcmpl-1", "req_1", 1, "m", "fp_1")
USAGE, TIMINGS = Usage(3, 0, 1), Timings(0.0, 0.1, 0.1)
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["\n\n", "data: [DONE]\n\n", "event: error\n", "<>&"]
)


def events(texts: list[str], end: Event) -> list[Event]:
    deltas = [Delta(0, number, (number,), text) for number, text in enumerate(texts)]
    return [Started("", 0, 1, 3, 0), *deltas, end]


ENDS = st.sampled_from(
    [
        Finished(0, "stop", USAGE, TIMINGS),
        Failed(0, GenerationFailed("data: no\n\n"), USAGE, TIMINGS),
    ]
)


@given(st.lists(TEXTS, max_size=5), ENDS, st.text(min_size=1, max_size=10), st.booleans())
@settings(max_examples=60)
def test_messages_are_the_frames_of_the_stream(
    texts: list[str], end: Event, answer_id: str, include_usage: bool
) -> None:
    def stream() -> ChatStream:
        return ChatStream(STAMP, seed=1, include_usage=include_usage)

    plain, by_number = PlainMessages(answer_id, stream()), NumberedMessages(answer_id)
    frames, numbered = stream(), Numbered(stream())
    for event in events(texts, end):
        parts = [part for part in frames.encode(event).decode().split("\n\n") if part]
        told = [json.loads(message) for message in plain.encode(event)]
        again = [json.loads(by_number.message(frame)) for frame in numbered.encode(event)]
        assert len(told) == len(again) == len(parts)
        for part, message, with_number in zip(parts, told, again, strict=True):
            data = part[part.index("data: ") + 6 :]
            said = data if data == "[DONE]" else json.loads(data)
            inside = said if "error" in said else {"data": said}
            shown = answer_id.encode("utf-8", "replace").decode()
            assert message == {"id": shown, **inside}
            assert {**with_number, "event": 0} == {"id": shown, "event": 0, **inside}
    assert plain.is_ended


def test_a_refusal_has_what_http_would_say() -> None:
    error = RateLimited("slow down", wire_type="tokens", retry_after_s=2.5)
    told = json.loads(refusal("a", [(b"x-request-id", b"req_1")], error))
    assert told == {
        "id": "a",
        "headers": {"x-request-id": "req_1", "retry-after": "3"},
        "error": {
            "message": "slow down",
            "type": "tokens",
            "code": "rate_limit_exceeded",
            "status_code": 429,
        },
    }
    assert json.loads(refusal(None, [], error))["id"] is None
    assert json.loads(opening("é", [(b"a", b"b")])) == {"id": "é", "headers": {"a": "b"}}


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ({"id": "a", "model": "m"}, Question({"model": "m", "stream": True})),
        ({"id": "a", "type": "request", "stream": None}, Question({"stream": True})),
        ({"id": "a", "type": "cancel", "more": 1}, Cancel()),
        ({"type": "resume", "stream": "s"}, Resume("s", 0)),
        ({"type": "resume", "stream": "s", "after": 7}, Resume("s", 7)),
        ({"id": "a", "type": "input.append", "text": ""}, Append("", {})),
        ({"type": "input.append", "text": "Hi", "model": "m"}, Append("Hi", {"model": "m"})),
        ({"id": "a", "type": "input.clear"}, Clear()),
        ({"id": "a", "type": "input.commit"}, Commit("", {})),
        ({"type": "input.commit", "text": "!", "n": 1}, Commit("!", {"n": 1})),
    ],
)
def test_what_is_wanted(message: dict[str, Any], wanted: Any) -> None:
    assert wish(message) == wanted


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"type": "nothing"}, "type"),
        ({"type": None}, "type"),
        ({"type": ["x" * 1000]}, "type"),
        ({"stream": False}, "stream"),
        ({"type": "resume"}, "stream"),
        ({"type": "input.append"}, "text"),
        ({"type": "input.append", "text": ["Hi"]}, "text"),
        ({"type": "input.commit", "text": None}, "text"),
        ({"type": "resume", "stream": 5}, "stream"),
        ({"type": "resume", "stream": "s", "after": "1"}, "after"),
        ({"type": "resume", "stream": "s", "after": 1.0}, "after"),
        ({"type": "resume", "stream": "s", "after": 2**60}, "after"),
    ],
)
def test_what_is_not(message: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wish(message)
    assert caught.value.param == param and len(caught.value.message) < 200


def test_ids() -> None:
    assert client_id({"id": "x" * 128}) == "x" * 128
    for message in ({}, {"id": ""}, {"id": "x" * 129}, {"id": None}, {"id": 1}, {"id": ["a"]}):
        with pytest.raises(InvalidRequest, match="`id`"):
            client_id(message)


@given(
    st.lists(st.integers(0, 300) | st.sampled_from([125, 126, 65_535, 65_536, 70_000]), max_size=6)
)
@settings(max_examples=40)
def test_a_client_reads_the_frames(lengths: list[int]) -> None:
    """By an implementation that we did not write."""
    messages = [b"%d" % (number % 10) * length for number, length in enumerate(lengths)]
    client = ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN, max_size=None)
    client.receive_data(text_frames(messages))
    frames = client.events_received()
    assert client.parser_exc is None
    assert [(each.opcode, each.fin) for each in frames] == [(Opcode.TEXT, True)] * len(messages)
    assert [bytes(each.data) for each in frames] == messages
