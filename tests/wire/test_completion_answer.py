import json
from typing import Any

import openai._models
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion

from headrace.errors import GenerationFailed
from headrace.events import (
    Delta,
    Event,
    Failed,
    TokenLogprob,
    ToolCall,
    Usage,
    fold,
)
from headrace.wire.completion_answer import CompletionStream, completion_answer
from headrace.wire.error_body import error_frame
from support.answers import (
    END,
    STAMP,
    TIMINGS,
    Bytes,
    answers,
    finished,
    spoken,
    values,
)

SEED = 5


def streamed(events: list[Event], num_prompts: int = 1, n: int = 1, **options: Any) -> bytes:
    stream = CompletionStream(STAMP, n=n, num_prompts=num_prompts, **options)
    data = b"".join([stream.encode(event) for event in events])
    assert stream.is_ended
    return data


def folded(chunks: list[dict[str, Any]], num_choices: int) -> list[dict[str, Any]]:
    texts = [""] * num_choices
    columns: list[dict[str, list[Any]]] = [
        {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for _ in range(num_choices)
    ]
    reasons = [None] * num_choices
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        index = choice["index"]
        texts[index] += choice["text"]
        for name, column in (choice["logprobs"] or {}).items():
            columns[index][name] += column
        reasons[index] = choice["finish_reason"]
    return [
        {"index": i, "text": texts[i], "logprobs": columns[i], "finish_reason": reasons[i]}
        for i in range(num_choices)
    ]


USAGE = (
    '{"queue_time":0.041905864,"prompt_tokens":45,"prompt_time":0.003940145,'
    '"completion_tokens":662,"completion_time":2.652230333,"total_tokens":707,'
    '"total_time":2.656170478}'
)
HEAD = (
    '{"id":"chatcmpl-1fd017fc-60b8-44eb-a736-375b8e1bc3e7","object":"text_completion",'
    '"created":1770770815,"model":"llama-3.3-70b-versatile","system_fingerprint":"fp_f8b414701e",'
)
REQUEST_ID = "req_01kh52madzem68scv0bcz3vm00"


def test_a_stream() -> None:
    expected = (
        f'data: {HEAD}"choices":[{{"index":0,"text":"a\\u003c","logprobs":null,'
        '"finish_reason":null}]}\n\n'
        f'data: {HEAD}"choices":[{{"index":0,"text":"","logprobs":null,"finish_reason":"stop"}}],'
        f'"usage":{USAGE},"x_groq":{{"id":"{REQUEST_ID}","usage":{USAGE}}}}}\n\n'
        f'data: {HEAD}"choices":[],"usage":{USAGE}}}\n\n'
        "data: [DONE]\n\n"
    )
    assert streamed(spoken("a<", ""), include_usage=True) == expected.encode()


def test_a_whole_answer() -> None:
    expected = (
        f'{HEAD}"choices":[{{"index":0,"text":"ab","logprobs":null,"finish_reason":"stop"}}],'
        f'"usage":{USAGE},"x_groq":{{"id":"{REQUEST_ID}","seed":5}}}}\n'
    )
    assert completion_answer(STAMP, [fold(spoken("a", "b"))], seed=SEED) == expected.encode()


@settings(max_examples=40)
@given(st.data(), st.integers(1, 2), st.integers(1, 2), st.booleans())
def test_the_whole_answer_is_the_fold_of_the_stream(
    data: st.DataObject, num_prompts: int, n: int, with_logprobs: bool
) -> None:
    events = data.draw(answers(num_prompts * n, with_logprobs=with_logprobs))
    spelling = Bytes() if with_logprobs else None
    choices = fold(events)
    prompts = [choices[i : i + n] for i in range(0, len(choices), n)]
    whole = json.loads(completion_answer(STAMP, prompts, seed=SEED, spelling=spelling))
    options = {"include_usage": True, "spelling": spelling}
    chunks = values(streamed(events, num_prompts, n, **options))
    heard = folded(chunks, num_prompts * n)
    if not with_logprobs:
        assert all(choice.pop("logprobs") is None for choice in whole["choices"])
        assert not any(choice.pop("logprobs")["tokens"] for choice in heard)
    assert heard == whole["choices"]
    assert chunks[-1]["usage"] == chunks[-2]["usage"] == whole["usage"]
    assert openai._models.validate_type(type_=Completion, value=whole).usage
    for chunk in chunks:
        for choice in chunk["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"  # OpenAI sends null too.
        assert openai._models.validate_type(type_=Completion, value=chunk).id == STAMP.id


def test_columns_of_log_probabilities() -> None:
    data = "é!".encode()
    events = spoken("", "", "")
    events[1:-1] = [
        Delta(0, 0, (data[0],), "", (TokenLogprob(data[0], -1.0, ((65, -0.5), (data[0], -1.0))),)),
        Delta(0, 1, (data[1],), "é", (TokenLogprob(data[1], -2.0, ()),)),
        Delta(0, 2, (data[2],), "!", (TokenLogprob(data[2], float("-inf"), ()),)),
        Delta(0, 3, (END,), "", (TokenLogprob(END, -0.1, ()),)),
    ]
    whole = json.loads(completion_answer(STAMP, [fold(events)], seed=SEED, spelling=Bytes()))
    assert whole["choices"][0]["logprobs"] == {
        "tokens": ["bytes:\\xc3", "bytes:\\xa9", "!"],
        "token_logprobs": [-1.0, -2.0, -9999.0],
        "top_logprobs": [
            {"A": -0.5, "bytes:\\xc3": -1.0},
            {"bytes:\\xa9": -2.0},
            {"!": -9999.0},
        ],
        "text_offset": [0, 1, 1],
    }


def test_reasons() -> None:
    for reason, said in [("stop", "stop"), ("length", "length"), ("cancelled", "stop")]:
        [chunk] = values(streamed([finished(reason=reason)]))
        assert chunk["choices"][0]["finish_reason"] == said


def test_a_failure_ends_the_stream_without_done() -> None:
    error = GenerationFailed("NaN")
    stream = CompletionStream(STAMP, num_prompts=2)
    assert stream.encode(Failed(1, error, Usage(1, 0, 0), TIMINGS)) == error_frame(error)
    assert stream.is_ended
    assert stream.encode(Delta(0, 0, (1,), "late")) == b""


def test_what_this_endpoint_has_no_words_for() -> None:
    assert CompletionStream(STAMP).encode(ToolCall(0, 0, "a", "b", "{}")) == b""


def test_the_token_that_ends_an_answer_says_nothing() -> None:
    stream = CompletionStream(STAMP, spelling=Bytes())
    assert stream.encode(Delta(0, 0, (END,), "", (TokenLogprob(END, -0.5, ()),))) == b""
