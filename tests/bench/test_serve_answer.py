"""One streamed answer as the load generator hears it, in the dialects of several servers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.bench.serve.answer import Sample, StreamedAnswer
from support.chat_server import USAGE, answer, chunk, frames


def hear(body: bytes, *, status: int = 200, cuts: tuple[int, ...] = ()) -> StreamedAnswer:
    """Piece after piece, one a second."""
    heard = StreamedAnswer()
    heard.hear_status(status)
    ends = [0, *sorted(cuts), len(body)]
    for second, (start, end) in enumerate(pairwise(ends), 1):
        heard.hear_body(body[start:end], float(second))
    return heard


def sample(body: bytes, **how: Any) -> Sample:
    return hear(body, **how).sample(0.0, 99.0, None)


WHOLE = answer("Hel", "lo", usage=USAGE)


def test_a_whole_answer() -> None:
    found = sample(WHOLE, cuts=(WHOLE.index(b'"lo"'),))
    assert found.error is None and found.has_usage
    assert found.token_at == (1.0, 2.0)
    assert (found.num_prompt_tokens, found.num_cached_tokens) == (7, 3)
    assert found.num_completion_tokens == 2
    assert (found.ttft_s, found.e2e_s, list(found.gaps_s)) == (1.0, 99.0, [1.0])
    assert found.tokens_per_second == 1.0
    assert hear(WHOLE).text == "Hello"


@settings(max_examples=60)
@given(st.lists(st.integers(0, len(WHOLE)), max_size=6))
def test_cut_anywhere_it_is_the_same(cuts: list[int]) -> None:
    found = sample(WHOLE, cuts=tuple(cuts))
    assert len(found.token_at) == 2 and list(found.token_at) == sorted(found.token_at)
    assert (found.error, found.num_completion_tokens) == (None, 2)


def test_roles_and_ends_are_no_tokens() -> None:
    assert len(sample(answer("one")).token_at) == 1


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "x"},
        {"reasoning": "x"},
        {"reasoning_content": "x", "content": None},
        {"tool_calls": [{"index": 0}]},
    ],
)
def test_whatever_is_said_is_a_token(delta: dict[str, Any]) -> None:
    spoken = {"choices": [{"delta": delta}]}
    end = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    assert len(sample(frames(spoken, end)).token_at) == 1


def test_legacy_completions() -> None:
    spoken = {"choices": [{"text": "x", "finish_reason": None}]}
    end = {"choices": [{"text": "", "finish_reason": "stop"}]}
    assert sample(frames(spoken, end)).error is None


@pytest.mark.parametrize("place", ["top", "x_groq", "null in between"])
def test_usage_wherever_it_is(place: str) -> None:
    end: dict[str, Any] = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    if place == "x_groq":
        end["x_groq"] = {"id": "req_1", "usage": USAGE}
    else:
        end["usage"] = USAGE
    spoken = chunk("x") | ({"usage": None} if place.startswith("null") else {})
    assert sample(frames(spoken, end)).num_prompt_tokens == 7


def test_without_usage_chunks_count() -> None:
    found = sample(answer("a", "b", "c"))
    assert (found.num_completion_tokens, found.has_usage) == (3, False)


def test_comments_and_other_line_ends_are_fine() -> None:
    body = b": ping\r\n\r\n" + WHOLE.replace(b"\n", b"\r\n")
    assert sample(body) == sample(WHOLE)


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (
            b'{"error":{"message":"m","code":"rate_limit_exceeded"}}\n',
            429,
            "429 rate_limit_exceeded",
        ),
        (b'{"error":{"message":"m","type":"kind"}}', 400, "400 kind"),
        (b"<html>Bad gateway", 502, "502"),
        (frames(chunk("x"), done=False), 200, "the stream ended without an end"),
        (frames(chunk("x"), {"error": {"code": "c"}}, done=False), 200, "in mid-stream: c"),
        (b"event: error\n" + frames({"error": "oh"}, done=False), 200, "in mid-stream: oh"),
        (b"data: nonsense\n\n", 200, "a chunk is not what the API promises"),
        (b"data: [1]\n\n", 200, "a chunk is not what the API promises"),
        (answer(), 200, "no tokens came"),
        (b'{"choices":[{"message":{}}]}', 200, "the stream ended without an end"),
    ],
)
def test_what_goes_wrong_has_a_name(body: bytes, status: int, error: str) -> None:
    assert sample(body, status=status).error == error


def test_what_went_wrong_on_the_way_is_told() -> None:
    cut = hear(frames(chunk("x"), done=False)).sample(0.0, 1.0, "connection: cut")
    assert cut.error == "connection: cut"
    refused = hear(b"", status=503).sample(0.0, 1.0, "connection: cut")
    assert refused.error == "503", "the server's word comes first"


def test_one_token_has_no_speed() -> None:
    assert sample(answer("one", usage=USAGE)).tokens_per_second is None
