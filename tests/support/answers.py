"""Answers to write: events of any choices in any order, and what a client makes of the bytes."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from headrace.events import (
    Delta,
    Event,
    Finished,
    FinishReason,
    Started,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)
from headrace.wire.ask import Stamp
from headrace.wire.sse import EventDecoder, ServerSentEvent

STAMP = Stamp(
    id="chatcmpl-1fd017fc-60b8-44eb-a736-375b8e1bc3e7",
    request_id="req_01kh52madzem68scv0bcz3vm00",
    created=1770770815,
    model="llama-3.3-70b-versatile",
    fingerprint="fp_f8b414701e",
)
RESPONSE_STAMP = Stamp(
    id="resp_01k1x6w9ane6d8rfxm05cb45yk",
    request_id="req_01kh52madzem68scv0bcz3vm00",
    created=1754088325,
    model="llama-3.3-70b-versatile",
    fingerprint="fp_f8b414701e",
)
TIMINGS = Timings(0.041905864, 0.003940145, 2.652230333)
END = 256
"""The token that ends an answer."""


class Bytes:
    """A spelling with a token for each byte, and one that says nothing."""

    def token_text(self, token: int, /) -> str:
        return self.token_bytes(token).decode(errors="replace") if token < END else "<|end|>"

    def token_bytes(self, token: int, /) -> bytes:
        return bytes((token,)) if token < END else b""


def finished(
    choice: int = 0,
    reason: FinishReason = "stop",
    usage: Usage | None = None,
    timings: Timings = TIMINGS,
) -> Finished:
    return Finished(choice, reason, usage or Usage(45, 0, 662), timings)


def spoken(*texts: str, choice: int = 0) -> list[Event]:
    """A choice that says `texts`, one a token."""
    deltas = [Delta(choice, i, (i,), text) for i, text in enumerate(texts)]
    return [Started("r", choice, 7, 45, 0), *deltas, finished(choice)]


_REASONS: tuple[FinishReason, ...] = ("stop", "length", "cancelled")


@st.composite
def choice_events(draw: st.DrawFn, choice: int = 0, *, with_logprobs: bool = False) -> list[Event]:
    """One choice's events: thoughts, then text, then calls, any of them missing; held-back text."""
    events: list[Event] = [Started("r", choice, 7, draw(st.integers(1, 50)), 0)]
    thoughts = draw(st.lists(st.text(max_size=4), max_size=3))
    texts = draw(st.lists(st.text(max_size=4), max_size=5))
    for reasoning, text in [(t, "") for t in thoughts] + [("", t) for t in texts]:
        tokens = tuple(draw(st.lists(st.integers(0, END), min_size=1, max_size=2)))
        logprobs = tuple(draw(_logprob(token)) for token in tokens) if with_logprobs else ()
        events.append(Delta(choice, len(events), tokens, text, logprobs, reasoning))
    calls = draw(st.lists(st.text(max_size=5), max_size=2))
    events += [
        ToolCall(choice, index, f"call{choice}{index}", "weather", arguments)
        for index, arguments in enumerate(calls)
    ]
    reason: FinishReason = "tool_calls" if calls else draw(st.sampled_from(_REASONS))
    usage = Usage(50, draw(st.sampled_from([0, 32])), draw(st.integers(0, 99)))
    seconds = st.floats(0, 100)
    timings = Timings(draw(seconds), draw(seconds), draw(seconds))
    events.append(Finished(choice, reason, usage, timings))
    return events if draw(st.integers(0, 9)) else events[-1:]


@st.composite
def _logprob(draw: st.DrawFn, token: int) -> TokenLogprob:
    value = st.floats(-100, 0) | st.just(float("-inf"))
    top = draw(st.lists(st.tuples(st.integers(0, END), value), max_size=2))
    return TokenLogprob(token, draw(value), tuple(top))


@st.composite
def interleaved(draw: st.DrawFn, parts: list[list[Event]]) -> list[Event]:
    """All events, each part's in its own order."""
    order = draw(st.permutations([index for index, part in enumerate(parts) for _ in part]))
    iterators = [iter(part) for part in parts]
    return [next(iterators[index]) for index in order]


@st.composite
def answers(draw: st.DrawFn, n: int = 1, *, with_logprobs: bool = False) -> list[Event]:
    """The events of an answer of `n` choices."""
    parts = [draw(choice_events(choice, with_logprobs=with_logprobs)) for choice in range(n)]
    return draw(interleaved(parts))


def heard(data: bytes) -> list[ServerSentEvent]:
    """Everything that a client hears."""
    return EventDecoder().feed(data)


def values(data: bytes) -> list[Any]:
    """The JSON of each event before `[DONE]`, which must be the end where it is there."""
    events = [event.data for event in heard(data)]
    if "[DONE]" in events:
        assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]
