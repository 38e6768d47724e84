"""Chat through the official Python clients: `groq` and `openai` find the same."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import groq
import openai
import pytest

from support.clients import MODEL, groq_client, text_of, user
from support.servers import Server

ASKED: dict[str, Any] = {
    "model": MODEL,
    "messages": user("Name three colours."),
    "max_tokens": 24,
    "seed": 11,
}


def test_a_whole_answer(client: Any) -> None:
    answer = client.chat.completions.create(**ASKED)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == MODEL
    assert abs(answer.created - time.time()) < 60
    assert answer.system_fingerprint.startswith("fp_")
    assert answer.service_tier == "on_demand"
    [choice] = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert not choice.message.tool_calls


def test_usage(client: Any) -> None:
    usage = client.chat.completions.create(**ASKED).usage
    assert usage.completion_tokens == 24
    assert usage.prompt_tokens > 10
    assert usage.total_tokens == usage.prompt_tokens + 24
    assert usage.total_time == pytest.approx(usage.prompt_time + usage.completion_time)
    assert usage.queue_time >= 0


def test_cached_tokens_are_told(client: Any) -> None:
    for _ in range(2):
        usage = client.chat.completions.create(**ASKED).usage
    cached = usage.prompt_tokens_details.cached_tokens
    assert 0 < cached < usage.prompt_tokens
    assert cached % 32 == 0


def test_a_stream_is_the_whole_answer_in_pieces(client: Any) -> None:
    whole = client.chat.completions.create(**ASKED)
    first, *middle, last = client.chat.completions.create(**ASKED, stream=True)
    assert {chunk.object for chunk in (first, *middle, last)} == {"chat.completion.chunk"}
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in (first, *middle, last)}) == 1
    opening = first.choices[0].delta
    assert (opening.role, opening.content) == ("assistant", "")
    for chunk in middle:
        [choice] = chunk.choices
        assert choice.delta.content
        assert choice.delta.role is None
        assert (choice.finish_reason, choice.logprobs, chunk.usage) == (None, None, None)
    assert text_of(middle) == whole.choices[0].message.content
    assert last.choices[0].delta.content is None
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.system_fingerprint == whole.system_fingerprint


def test_one_token_a_chunk(client: Any) -> None:
    """Nothing is held back for bigger deltas: 24 tokens of plain words are 24 chunks."""
    chunks = list(client.chat.completions.create(**ASKED, stream=True))
    assert len(chunks) == 1 + 24 + 1


def test_include_usage_adds_one_chunk(client: Any) -> None:
    options = {"stream_options": {"include_usage": True}}
    *chunks, last = client.chat.completions.create(**ASKED, stream=True, extra_body=options)
    assert all(chunk.choices for chunk in chunks)
    assert last.choices == []
    assert last.usage == chunks[-1].usage
    assert last.service_tier == "on_demand"


def cached_where(usage: dict[str, Any]) -> dict[str, int]:
    """What `x_groq` says of cached tokens where none came from disk; nothing without any."""
    num = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    return {"sram_cached_tokens": num, "dram_cached_tokens": 0} if num else {}


def test_request_ids(client: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(**ASKED)
    answer = raw.parse()
    assert raw.headers["content-type"] == "application/json"
    assert raw.headers["x-request-id"].startswith("req_01")
    told = answer.to_dict()
    where = cached_where(told["usage"])
    own = {"id": raw.headers["x-request-id"], "seed": 11}
    assert told["x_groq"] == ({**own, "usage": where} if where else own)


def test_request_ids_of_streams(client: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(**ASKED, stream=True)
    assert raw.headers["content-type"] == "text/event-stream"
    assert raw.headers["cache-control"] == "no-cache"
    first, *_, last = [chunk.to_dict() for chunk in raw.parse()]
    name = raw.headers["x-request-id"]
    assert first["x_groq"] == {"id": name, "seed": 11}
    assert last["x_groq"]["id"] == name
    assert last["x_groq"]["usage"] == {**last["usage"], **cached_where(last["usage"])}


def test_several_choices(client: Any) -> None:
    whole = client.chat.completions.create(**ASKED, n=3)
    texts = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert 3 * 24 >= whole.usage.completion_tokens > 24
    chunks = list(client.chat.completions.create(**ASKED, n=3, stream=True))
    assert [text_of(chunks, index) for index in range(3)] == texts
    ends = [choice for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert sorted(end.index for end in ends) == [0, 1, 2]
    assert [chunk.usage for chunk in chunks if chunk.usage] == [chunks[-1].usage]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_seeds(client: Any) -> None:
    def say(**options: Any) -> Any:
        return client.chat.completions.create(**{**ASKED, "temperature": 1.0, **options})

    def text(**options: Any) -> str:
        return str(say(**options).choices[0].message.content)

    assert text(seed=5) == text(seed=5) != text(seed=6)
    unseeded = say(seed=None)
    chosen = unseeded.to_dict()["x_groq"]["seed"]
    assert text(seed=chosen) == unseeded.choices[0].message.content
    assert text(temperature=0, seed=5) == text(temperature=0, seed=6)


def test_stop(client: Any) -> None:
    whole = client.chat.completions.create(**ASKED).choices[0].message.content
    stop = whole[12:16]
    expected = whole[: whole.index(stop)]
    for stops in (stop, ["no such thing", stop]):
        [choice] = client.chat.completions.create(**ASKED, stop=stops).choices
        assert (choice.message.content, choice.finish_reason) == (expected, "stop")
    chunks = list(client.chat.completions.create(**ASKED, stop=stop, stream=True))
    assert text_of(chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert client.chat.completions.create(**ASKED, stop=None).choices[0].message.content == whole


def test_log_probabilities(client: Any) -> None:
    options = {**ASKED, "logprobs": True, "top_logprobs": 2}
    [choice] = client.chat.completions.create(**options).choices
    said = choice.logprobs.content
    assert len(said) == 24
    assert "".join(entry.token for entry in said) == choice.message.content
    assert all(entry.logprob <= 0 for entry in said)
    for entry in said:
        assert bytes(entry.bytes).decode() == entry.token
        likeliest = [top.logprob for top in entry.top_logprobs]
        assert len(likeliest) == 2
        assert likeliest == sorted(likeliest, reverse=True)
    streamed = [
        entry
        for chunk in client.chat.completions.create(**options, stream=True)
        for entry in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else ())
    ]
    assert [entry.to_dict() for entry in streamed] == [entry.to_dict() for entry in said]


def test_an_answer_is_gone_on_from(client: Any) -> None:
    """The guide: a stream that broke off is asked for again, with what was received of it."""
    asked = {**ASKED, "temperature": 0}
    chunks = list(client.chat.completions.create(**asked, stream=True))
    whole, received = text_of(chunks), text_of(chunks[:9])
    rest = {**asked, "max_tokens": 24 - 8}
    as_prompt = client.chat.completions.create(**rest, extra_body={"prompt": received})
    prefilled = [*ASKED["messages"], {"role": "assistant", "content": received}]
    as_message = client.chat.completions.create(**{**rest, "messages": prefilled})
    for answer in (as_prompt, as_message):
        assert received + answer.choices[0].message.content == whole


def test_a_conversation(client: Any) -> None:
    system = {"role": "system", "content": "Be short, and name only what one can see. " * 4}
    messages: list[Any] = [system, *ASKED["messages"]]
    num_known = 0
    for question in ("And a fourth?", "Thank you."):
        answer = client.chat.completions.create(**{**ASKED, "messages": messages})
        details = answer.usage.prompt_tokens_details
        # What was asked before is not computed again, as far as it fills banks of 32.
        assert num_known <= (details.cached_tokens if details else 0)
        num_known = answer.usage.prompt_tokens // 32 * 32
        messages += [answer.choices[0].message.model_dump(), *user(question)]
    assert num_known >= 64


def test_answers_hold_against_groqs_own_types(real: Server) -> None:
    """Groq's client can check answers against what Groq has published; it raises if one differs."""
    client = groq_client(real, _strict_response_validation=True)
    create = client.chat.completions.create
    scored = {**ASKED, "logprobs": True, "top_logprobs": 1}
    with_usage = {"stream": True, "extra_body": {"stream_options": {"include_usage": True}}}
    for asked in (ASKED, scored, {**ASKED, "service_tier": "auto"}, {**ASKED, "n": 2}):
        assert create(**asked).choices
        assert list(create(**asked, **with_usage))
    assert client.models.list().data[0] == client.models.retrieve("smollm2-135m-instruct")


def test_what_clients_send_and_we_have_no_use_for(client: Any) -> None:
    """As `x-headrace-ignored` says, rather than by an error."""
    extra = {"store": True, "metadata": {"a": "b"}, "prompt_cache_key": "x"}
    raw = client.chat.completions.with_raw_response.create(**ASKED, extra_body=extra, user="me")
    assert raw.parse().choices[0].message.content
    assert "prompt_cache_key" in raw.headers["x-headrace-ignored"]


def test_models(client: Any) -> None:
    listed = client.models.list()
    assert listed.object == "list"
    assert {"smollm2-135m-instruct", MODEL} <= {model.id for model in listed.data}
    for model in listed.data:
        assert client.models.retrieve(model.id) == model
        assert model.object == "model"
        assert model.owned_by
        assert model.to_dict()["active"] is True
        embeds = model.id == "all-minilm-l6-v2"
        assert model.to_dict()["context_window"] == (256 if embeds else 8192)


@pytest.mark.parametrize("library", [groq.AsyncGroq, openai.AsyncOpenAI])
def test_many_at_once(library: Any, real: Server) -> None:
    base_url = real.base_url if library is groq.AsyncGroq else real.openai_url

    async def ask(client: Any, seed: int) -> str:
        asked = {**ASKED, "max_tokens": 8, "seed": seed, "stream": True}
        stream = await client.chat.completions.create(**asked)
        return text_of([chunk async for chunk in stream])

    async def ask_all() -> list[str]:
        async with library(base_url=base_url, api_key="any", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, seed) for seed in (1, 2, 3, 1, 2, 3)))

    texts = asyncio.run(ask_all())
    assert texts[:3] == texts[3:]
    assert all(texts)
