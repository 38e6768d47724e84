"""Frames and their numbers: the same for every reader, whenever it comes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import GenerationFailed
from headrace.events import Delta, Event, Failed, Finished, Started, Timings, Usage
from headrace.streams.frames import Frames
from headrace.wire.ask import Stamp
from headrace.wire.chat_answer import ChatStream
from headrace.wire.numbered import Frame, Numbered
from headrace.wire.sse import EventDecoder

STAMP = Stamp("chatcmpl-1", "req_1", 1, "m", "fp_1")
NOTHING = Usage(3, 0, 2)
TIMINGS = Timings(0.0, 0.0, 0.0)
END = Finished(0, "stop", NOTHING, TIMINGS)
AWKWARD = ["data: x", "\n\n", "\r\n\r\n", "id: 7\n", ": ping", "[DONE]", "data: [DONE]", "é\u2028"]


def encoder() -> ChatStream:
    return ChatStream(STAMP, seed=7)


def told(*texts: str) -> list[Event]:
    deltas = [Delta(0, index, (index,), text) for index, text in enumerate(texts)]
    return [Started("r", 0, 7, 3, 0), *deltas, END]


class Growing:
    """A log that shows so many of its events."""

    def __init__(self, events: list[Event], num_shown: int = 0) -> None:
        self.events = events
        self.num_shown = num_shown

    def since(self, start: int) -> list[Event]:
        return self.events[start : self.num_shown]


TEXTS = st.lists(st.sampled_from(AWKWARD) | st.text(max_size=6), max_size=8)


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, after=st.integers(0, 14))
def test_who_comes_back_gets_what_followed(texts: list[str], after: int) -> None:
    events = told(*texts)
    whole, part = Numbered(encoder()), Numbered(encoder(), after)
    all_frames = [frame for event in events for frame in whole.encode(event)]
    rest = [frame for event in events for frame in part.encode(event)]
    assert [frame.number for frame in all_frames] == list(range(1, len(all_frames) + 1))
    assert rest == all_frames[after:]
    assert whole.is_ended and part.is_ended and part.number == len(all_frames)


@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, data=st.data())
def test_shared_frames_are_those_of_a_reader_alone(texts: list[str], data: st.DataObject) -> None:
    log = Growing(told(*texts))
    frames = Frames(encoder(), log)
    read, number = b"", 0
    while log.num_shown < len(log.events) or number < len(frames):
        log.num_shown = data.draw(st.integers(log.num_shown, len(log.events)))
        part, number = frames.part_after(number, data.draw(st.integers(1, 900)))
        read += part
        if not part:
            log.num_shown = min(len(log.events), log.num_shown + 1)
    alone = Numbered(encoder())
    expected = [frame for event in log.events for frame in alone.encode(event)]
    assert read == b"".join(frame.as_sse() for frame in expected)
    assert frames.is_ended and list(frames.after(0, 10**6)) == expected


def test_a_part_has_at_least_a_frame_and_no_more_than_fits() -> None:
    log = Growing(told("a" * 1000, "b" * 1000, "c"), 5)
    frames = Frames(encoder(), log)
    assert [frame.number for frame in frames.after(1, 1)] == [2]
    assert [frame.number for frame in frames.after(1, 2000)] == [2]
    assert [frame.number for frame in frames.after(1, 2450)] == [2, 3]
    assert frames.part_after(len(frames), 100) == (b"", len(frames))
    assert frames.part_after(99, 100) == (b"", 99)


@pytest.mark.parametrize("text", AWKWARD)
def test_data_is_what_a_client_reads(text: str) -> None:
    numbered = Numbered(encoder())
    frames = [frame for event in told(text) for frame in numbered.encode(event)]
    read = EventDecoder().feed(b"".join(frame.as_sse() for frame in frames))
    assert [(event.id, event.data.encode()) for event in read] == [
        (str(frame.number), frame.data) for frame in frames
    ]
    assert json.loads(frames[1].data)["choices"][0]["delta"]["content"] == text
    assert frames[-1].data == b"[DONE]"


def test_an_error_is_a_numbered_frame_with_a_name() -> None:
    numbered = Numbered(encoder())
    numbered.encode(Started("r", 0, 7, 3, 0))
    failed = Failed(0, GenerationFailed("data: no"), NOTHING, TIMINGS)
    (frame,) = numbered.encode(failed)
    assert frame.as_sse().startswith(b"id: 2\nevent: error\ndata: {")
    assert json.loads(frame.data)["error"]["message"] == "data: no"
    assert numbered.is_ended


def test_a_frame_without_a_name() -> None:
    assert Frame(3, b'data: {"a":"data: b"}').data == b'{"a":"data: b"}'
