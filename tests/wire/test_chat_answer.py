import json
from typing import Any

import groq._models
import httpx
import openai._models
import pytest
from groq import APIError, Groq
from groq.types.chat import ChatCompletion, ChatCompletionChunk
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion as OpenAICompletion
from openai.types.chat import ChatCompletionChunk as OpenAIChunk

from headrace.errors import GenerationFailed
from headrace.events import (
    Choice,
    Delta,
    Event,
    Failed,
    Finished,
    Started,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
    fold,
    merge_all,
)
from headrace.wire.ask import Stamp
from headrace.wire.chat_answer import ChatStream, chat_answer
from headrace.wire.error_body import error_frame
from support.answers import END, STAMP, TIMINGS, Bytes, answers, finished, spoken, values

SEED = 1790130236


def streamed(events: list[Event], n: int = 1, **options: Any) -> bytes:
    stream = ChatStream(STAMP, seed=SEED, n=n, **options)
    data = b"".join([stream.encode(event) for event in events])
    assert stream.is_ended
    return data


def folded(chunks: list[dict[str, Any]], n: int = 1) -> list[dict[str, Any]]:
    """The choices of a whole answer, as a client makes them of chunks."""
    messages: list[dict[str, Any]] = [{"role": "", "content": ""} for _ in range(n)]
    said: list[list[Any]] = [[] for _ in range(n)]
    reasons: list[str | None] = [None] * n
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        message, delta = messages[choice["index"]], choice["delta"]
        for name in ("role", "content", "reasoning"):
            if name in delta:
                message[name] = message.get(name, "") + delta[name]
        for call in delta.get("tool_calls", []):
            assert call.pop("index") == len(message.get("tool_calls", []))
            message.setdefault("tool_calls", []).append(call)
        said[choice["index"]] += (choice["logprobs"] or {"content": []})["content"]
        assert reasons[choice["index"]] is None
        reasons[choice["index"]] = choice["finish_reason"]
    for message in messages:
        if "tool_calls" in message and not message["content"]:
            del message["content"]
    return [
        {"index": i, "message": messages[i], "logprobs": said[i], "finish_reason": reasons[i]}
        for i in range(n)
    ]


HEAD = (
    '{"id":"chatcmpl-7eb08824","object":"chat.completion.chunk","created":1770770839,'
    '"model":"llama-3.3-70b-versatile","system_fingerprint":"fp_f8b414701e",'
)
USAGE = (
    '{"queue_time":0.041905864,"prompt_tokens":45,"prompt_time":0.003940145,'
    '"completion_tokens":662,"completion_time":2.652230333,"total_tokens":707,'
    '"total_time":2.656170478}'
)
REQUEST_ID = "req_01kh52ndshfr2azv0xe6tnv4fx"
CAPTURED = f"""\
data: {HEAD}"choices":[{{"index":0,"delta":{{"role":"assistant","content":""}},"logprobs":null,\
"finish_reason":null}}],"x_groq":{{"id":"{REQUEST_ID}","seed":1535227698}}}}

data: {HEAD}"choices":[{{"index":0,"delta":{{"content":"Int"}},"logprobs":null,\
"finish_reason":null}}]}}

data: {HEAD}"choices":[{{"index":0,"delta":{{}},"logprobs":null,"finish_reason":"stop"}}],\
"x_groq":{{"id":"{REQUEST_ID}","usage":{USAGE}}},"usage":{USAGE}}}

data: {HEAD}"choices":[],"usage":{USAGE},"service_tier":"on_demand"}}

data: [DONE]

"""


def test_a_stream_as_it_was_seen() -> None:
    stamp = Stamp(
        "chatcmpl-7eb08824",
        REQUEST_ID,
        1770770839,
        "llama-3.3-70b-versatile",
        "fp_f8b414701e",
    )
    stream = ChatStream(stamp, seed=1535227698, include_usage=True)
    assert b"".join(map(stream.encode, spoken("Int"))) == CAPTURED.encode()


def test_without_include_usage_the_usage_chunk_is_missing() -> None:
    frames = streamed(spoken("a")).split(b"\n\n")
    assert [frame[:6] for frame in frames] == [b"data: "] * 4 + [b""]
    assert frames[-2] == b"data: [DONE]"
    assert b'"choices":[]' not in frames[-3]


def test_a_call_is_one_chunk_as_it_was_seen() -> None:
    stream = ChatStream(STAMP, seed=SEED)
    frame = stream.encode(ToolCall(0, 0, "tk85n1k4m", "weather", "{}"))
    assert (
        b'"delta":{"tool_calls":[{"id":"tk85n1k4m","type":"function",'
        b'"function":{"name":"weather","arguments":"{}"},"index":0}]},'
        b'"logprobs":null,"finish_reason":null}]}\n\n'
    ) in frame


def test_a_whole_answer_as_it_was_seen() -> None:
    events: list[Event] = [
        Started("r", 0, SEED, 218, 0),
        Delta(0, 0, (1,) * 15, ""),
        ToolCall(0, 0, "ax9fskhev", "weather", "{}"),
        Finished(0, "tool_calls", Usage(218, 0, 15), Timings(0.179481775, 0.01182836, 0.044602289)),
    ]
    seen = """\
{"id":"chatcmpl-1fd017fc-60b8-44eb-a736-375b8e1bc3e7","object":"chat.completion",\
"created":1770770815,"model":"llama-3.3-70b-versatile","choices":[{"index":0,"message":\
{"role":"assistant","tool_calls":[{"id":"ax9fskhev","type":"function","function":\
{"name":"weather","arguments":"{}"}}]},"logprobs":null,"finish_reason":"tool_calls"}],\
"usage":{"queue_time":0.179481775,"prompt_tokens":218,"prompt_time":0.01182836,\
"completion_tokens":15,"completion_time":0.044602289,"total_tokens":233,\
"total_time":0.056430649},"usage_breakdown":null,"system_fingerprint":"fp_f8b414701e",\
"x_groq":{"id":"req_01kh52madzem68scv0bcz3vm00","seed":1790130236},"service_tier":"on_demand"}
"""
    assert chat_answer(STAMP, fold(events), seed=SEED) == seen.encode()


@settings(max_examples=60)
@given(st.data(), st.integers(1, 3), st.booleans())
def test_the_whole_answer_is_the_fold_of_the_stream(
    data: st.DataObject, n: int, with_logprobs: bool
) -> None:
    events = data.draw(answers(n, with_logprobs=with_logprobs))
    cut = data.draw(st.integers(0, len(events)))
    heard = data.draw(st.sampled_from([events, merge_all(events[:cut]) + merge_all(events[cut:])]))
    spelling = Bytes() if with_logprobs else None
    whole = json.loads(chat_answer(STAMP, fold(events), seed=SEED, spelling=spelling))
    chunks = values(streamed(heard, n, spelling=spelling, include_usage=True))
    if not with_logprobs:
        assert all(choice.pop("logprobs") is None for choice in whole["choices"])
    else:
        whole["choices"] = [
            {**choice, "logprobs": choice["logprobs"]["content"]} for choice in whole["choices"]
        ]
    choices = folded(chunks, n)
    if not with_logprobs:
        assert all(choice.pop("logprobs") == [] for choice in choices)
    assert choices == whole["choices"]
    assert chunks[-1]["usage"] == chunks[-2]["usage"] == whole["usage"]
    cached = whole["x_groq"].get("usage", {})
    usage = {**whole["usage"], **cached}
    assert chunks[-2]["x_groq"] == {"id": STAMP.request_id, "usage": usage}
    num_cached = whole["usage"].get("prompt_tokens_details", {}).get("cached_tokens", 0)
    assert sum(cached.values()) == num_cached
    assert sum("usage" in chunk for chunk in chunks) == 2
    assert sum("seed" in chunk.get("x_groq", {}) for chunk in chunks) == n


@settings(max_examples=30)
@given(answers(2, with_logprobs=True))
def test_strict_clients_take_everything(events: list[Event]) -> None:
    for chunk in values(streamed(events, 2, spelling=Bytes(), include_usage=True)):
        assert groq._models.validate_type(type_=ChatCompletionChunk, value=chunk).id == STAMP.id
        chunk.pop("service_tier", None)  # Groq's tiers have names of their own.
        assert openai._models.validate_type(type_=OpenAIChunk, value=chunk).id == STAMP.id
    whole = json.loads(chat_answer(STAMP, fold(events), seed=SEED, spelling=Bytes()))
    assert groq._models.validate_type(type_=ChatCompletion, value=whole).x_groq
    whole.pop("service_tier")
    assert openai._models.validate_type(type_=OpenAICompletion, value=whole).id == STAMP.id


def test_held_back_text_is_no_chunk() -> None:
    stream = ChatStream(STAMP, seed=SEED)
    assert stream.encode(Delta(0, 0, (1,), "")) == b""


def test_a_thought_comes_before_text_in_a_chunk_of_its_own() -> None:
    chunks = values(ChatStream(STAMP, seed=SEED).encode(Delta(0, 0, (1, 2), "a", (), "<b>")))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [{"reasoning": "<b>"}, {"content": "a"}]


def test_log_probabilities() -> None:
    said = TokenLogprob(0xE2, -0.5, ((0xE2, -0.5), (65, float("-inf"))))
    stream = ChatStream(STAMP, seed=SEED, spelling=Bytes())
    # Half of a character: there is no text yet, but there is something to say.
    [chunk] = values(stream.encode(Delta(0, 0, (0xE2,), "", (said,))))
    [choice] = chunk["choices"]
    assert choice["delta"] == {"content": ""}
    [entry] = choice["logprobs"]["content"]
    assert list(entry) == ["token", "logprob", "bytes", "top_logprobs"]
    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("\ufffd", -0.5, [0xE2])
    assert entry["top_logprobs"][1] == {"token": "A", "logprob": -9999.0, "bytes": [65]}


def test_the_token_that_ends_an_answer_says_nothing() -> None:
    said = TokenLogprob(END, -0.5, ((END, -0.5),))
    stream = ChatStream(STAMP, seed=SEED, spelling=Bytes())
    assert stream.encode(Delta(0, 0, (END,), "", (said,))) == b""
    said = TokenLogprob(65, -0.5, ((END, -0.25),))
    [chunk] = values(stream.encode(Delta(0, 1, (65,), "A", (said,))))
    [top] = chunk["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert top == {"token": "<|end|>", "logprob": -0.25, "bytes": []}


def test_what_was_stopped_has_stopped() -> None:
    assert b'"finish_reason":"stop"' in streamed([finished(reason="cancelled")])
    # A choice that never started is introduced all the same.
    first, last = values(streamed([finished(reason="cancelled")]))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["x_groq"]["seed"] == SEED
    assert last["choices"][0]["finish_reason"] == "stop"


def test_a_failure_ends_the_stream_without_done() -> None:
    error = GenerationFailed("NaN")
    stream = ChatStream(STAMP, seed=SEED, n=2, include_usage=True)
    for event in spoken("a")[:2]:
        assert stream.encode(event)
    assert stream.encode(Failed(0, error, Usage(1, 0, 1), TIMINGS)) == error_frame(error)
    assert stream.is_ended
    assert b"".join([stream.encode(event) for event in spoken("b", choice=1)]) == b""


def client(data: bytes, content_type: str = "text/event-stream") -> Groq:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=data, headers={"content-type": content_type})

    http = httpx.Client(transport=httpx.MockTransport(answer))
    return Groq(api_key="k", http_client=http, max_retries=0, _strict_response_validation=True)


def test_the_official_client_reads_a_stream() -> None:
    groq_client = client(streamed(spoken("Zür", "i", "<ch>\n")))
    chunks = list(groq_client.chat.completions.create(model="m", messages=[], stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Züri<ch>\n"
    assert chunks[0].x_groq is not None
    assert chunks[0].x_groq.seed == SEED
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 707


def test_the_official_client_reads_a_whole_answer() -> None:
    data = chat_answer(STAMP, fold(spoken("a", "b")), seed=SEED)
    whole = client(data, "application/json").chat.completions.create(model="m", messages=[])
    assert whole.choices[0].message.content == "ab"
    assert whole.system_fingerprint == STAMP.fingerprint


def test_the_official_client_raises_a_failure() -> None:
    events = [*spoken("a")[:2], Failed(0, GenerationFailed("NaN"), Usage(1, 0, 1), TIMINGS)]
    stream = client(streamed(events)).chat.completions.create(model="m", messages=[], stream=True)
    with pytest.raises(APIError, match="NaN"):
        list(stream)


def test_an_empty_answer_has_content() -> None:
    choice = Choice(0, "", (), (), "", (), "length", None, Usage(1, 0, 0), TIMINGS)
    whole = json.loads(chat_answer(STAMP, [choice], seed=SEED))
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": ""}
