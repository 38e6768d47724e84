"""One question, streamed or whole, by each endpoint: the same events told twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from headrace.events import Started
from headrace.model.answer.formats import THINK_MARKERS
from headrace.server.chat import ChatForm
from headrace.server.exchange import header_value
from headrace.testing import END_ID, FakeModel, FaultyModel, ManualEngine, saying
from headrace.testing.asgi import Call
from headrace.wire.ask import Stamp
from headrace.wire.body import BodyLimits
from headrace.wire.chat_answer import ChatStream
from support.asgi import (
    CHAT,
    COMPLETIONS,
    RESPONSES,
    Door,
    engine_saying,
    frames,
    run,
    settle,
    streamed_text,
)
from support.bodies import chat_body

TEXT = "Water é flows."


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "prompt": "x", **fields}


def response(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "input": "Hi", **fields}


ENDPOINTS = [
    (CHAT, chat_body(model="fake")),
    (COMPLETIONS, completion()),
    (RESPONSES, response()),
]


def error(call: Call) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call.body)["error"]
    return found


@pytest.mark.parametrize(("path", "body"), ENDPOINTS)
def test_a_stream_says_what_the_whole_answer_is(path: str, body: dict[str, Any]) -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        whole = await door.answer(door.post(path, body))
        stream = await door.answer(door.post(path, {**body, "stream": True}))
        assert whole.header("content-type") == "application/json"
        assert whole.header("content-length") == str(len(whole.body))
        assert whole.body.endswith(b"}\n")
        assert stream.header("content-type") == "text/event-stream"
        assert stream.header("cache-control") == "no-cache"
        assert stream.header("content-length") is None
        assert text_of(whole.body) == streamed_text_of(stream.body) == TEXT
        door.assert_nothing_is_held()

    run(play)


def text_of(body: bytes) -> str:
    answer = json.loads(body)
    match answer["object"]:
        case "chat.completion":
            text = answer["choices"][0]["message"]["content"]
        case "text_completion":
            text = answer["choices"][0]["text"]
        case _:
            text = answer["output"][0]["content"][0]["text"]
    return str(text)


def streamed_text_of(body: bytes) -> str:
    text = ""
    for frame in frames(body):
        if frame.data == "[DONE]":
            break
        part = json.loads(frame.data)
        if part.get("type") == "response.output_text.delta":
            text += part["delta"]
        for choice in part.get("choices", ()):
            text += choice.get("text", "") or choice.get("delta", {}).get("content", "")
    return text


def test_each_token_is_a_part_of_its_own_while_the_reader_keeps_up() -> None:
    async def play() -> None:
        door = Door(engine_saying("Hello."))
        call = door.post(CHAT, chat_body(model="fake", stream=True))
        num_parts = []
        for _ in range(8):
            await door.turn()
            num_parts.append(len(call.parts))
        # The role and the first token in one; the end and `[DONE]` in one; then their end.
        assert num_parts == [1, 2, 3, 4, 5, 6, 7, 7]
        assert streamed_text(call.body) == "Hello."
        deltas = [frame for frame in frames(call.body) if '"content":' in frame.data]
        assert len(deltas) == 1 + len("Hello.")

    run(play)


def test_a_reader_that_is_behind_gets_bigger_parts_and_all_of_the_text() -> None:
    async def play() -> None:
        text = "A text that goes on for some time, while nobody reads."
        door = Door(engine_saying(text))
        call = door.post(CHAT, chat_body(model="fake", stream=True))
        await door.turn(2)
        call.stop_reading()
        await door.turn(30)
        num_parts = len(call.parts)
        call.read_on()
        await settle()
        assert len(call.parts) <= num_parts + 2
        await door.answer(call)
        assert streamed_text(call.body) == text
        door.assert_nothing_is_held()

    run(play)


def test_choices_are_streamed_together_and_each_ends_once() -> None:
    async def play() -> None:
        door = Door(engine_saying("Hey"))
        asked = chat_body(model="fake", stream=True, n=3, stream_options={"include_usage": True})
        call = await door.answer(door.post(CHAT, asked))
        *chunks, done = [frame.data for frame in frames(call.body)]
        choices = [c for chunk in chunks for c in json.loads(chunk)["choices"]]
        for index in range(3):
            mine = [c for c in choices if c["index"] == index]
            assert "".join(c["delta"].get("content", "") for c in mine) == "Hey"
            assert [c["finish_reason"] for c in mine if c["finish_reason"]] == ["stop"]
        assert done == "[DONE]"
        assert json.loads(chunks[-1])["usage"]["completion_tokens"] == 12

    run(play)


def test_several_prompts_with_several_choices_and_their_echoes() -> None:
    async def play() -> None:
        door = Door(engine_saying("!"))
        asked = completion(prompt=["one", "two"], n=2, echo=True)
        whole = await door.answer(door.post(COMPLETIONS, asked))
        texts = ["one!", "one!", "two!", "two!"]
        choices = json.loads(whole.body)["choices"]
        assert [(c["index"], c["text"]) for c in choices] == list(enumerate(texts))
        call = await door.answer(door.post(COMPLETIONS, {**asked, "stream": True}))
        *chunks, done = [frame.data for frame in frames(call.body)]
        said = dict.fromkeys(range(4), "")
        for chunk in chunks:
            for choice in json.loads(chunk)["choices"]:
                said[choice["index"]] += choice["text"]
        assert list(said.values()) == texts and done == "[DONE]"
        door.assert_nothing_is_held()

    run(play)


def test_offsets_of_log_probabilities_point_into_the_text_echo_included() -> None:
    async def play() -> None:
        door = Door(engine_saying("hey"))
        asked = completion(prompt=["one", "three"], echo=True, logprobs=0)
        whole = await door.answer(door.post(COMPLETIONS, asked))
        choices = json.loads(whole.body)["choices"]
        assert [c["logprobs"]["text_offset"] for c in choices] == [[3, 4, 5], [5, 6, 7]]
        call = await door.answer(door.post(COMPLETIONS, {**asked, "stream": True}))
        offsets: dict[int, list[int]] = {0: [], 1: []}
        for frame in frames(call.body)[:-1]:
            for choice in json.loads(frame.data)["choices"]:
                offsets[choice["index"]] += (choice["logprobs"] or {}).get("text_offset", [])
        assert list(offsets.values()) == [[3, 4, 5], [5, 6, 7]]

    run(play)


def test_prompts_given_as_tokens() -> None:
    async def play() -> None:
        door = Door(engine_saying("!"))
        asked = completion(prompt=[[104, 105], [105]])
        call = await door.answer(door.post(COMPLETIONS, asked))
        answer = json.loads(call.body)
        assert [c["text"] for c in answer["choices"]] == ["!", "!"]
        assert answer["usage"]["prompt_tokens"] == 3
        call = await door.answer(door.post(COMPLETIONS, completion(prompt=[10**6])))
        assert (call.status, error(call)["param"]) == (400, "prompt")
        assert "`prompt` must be whole numbers from 0" in error(call)["message"]

    run(play)


def test_an_answer_s_beginning_is_gone_on_from() -> None:
    async def play() -> None:
        door = Door(engine_saying("p!"))
        seen: list[str] = []
        encode = door.engine.tokenizer.encode_prompt

        def listening(prompt: Any) -> Any:
            seen.append(prompt.text)
            return encode(prompt)

        door.engine.tokenizer.encode_prompt = listening  # type: ignore[method-assign]
        beginning = {"role": "assistant", "content": "Hel"}
        for body in (
            chat_body({"role": "user", "content": "Hi"}, beginning, model="fake"),
            chat_body({"role": "user", "content": "Hi"}, model="fake", prompt="Hel"),
        ):
            call = await door.answer(door.post(CHAT, body))
            assert text_of(call.body) == "p!"
        assert seen == ["<|start|>user:Hi<|end|><|start|>assistant:Hel"] * 2

    run(play)


def test_logprobs_are_told_in_both_ways() -> None:
    async def play() -> None:
        door = Door(engine_saying("Hi"))
        asked = chat_body(model="fake", logprobs=True, top_logprobs=2, temperature=0)
        whole = json.loads((await door.answer(door.post(CHAT, asked))).body)
        told = whole["choices"][0]["logprobs"]["content"]
        assert [one["token"] for one in told][:2] == ["H", "i"]
        assert all(len(one["top_logprobs"]) == 2 for one in told)
        call = await door.answer(door.post(CHAT, {**asked, "stream": True}))
        streamed = [
            one
            for frame in frames(call.body)[:-1]
            for choice in json.loads(frame.data)["choices"]
            for one in (choice["logprobs"] or {"content": []})["content"]
        ]
        assert streamed == told

    run(play)


@pytest.mark.parametrize(("tier", "told"), [("auto", "on_demand"), ("performance", "performance")])
def test_the_tier_that_answers(tier: str, told: str) -> None:
    async def play() -> None:
        door = Door()
        call = await door.answer(door.post(CHAT, chat_body(model="fake", service_tier=tier)))
        assert json.loads(call.body)["service_tier"] == told

    run(play)


def test_a_seed_is_kept_and_one_that_is_chosen_is_told() -> None:
    async def play() -> None:
        door = Door(ManualEngine())
        asked = chat_body(model="fake", max_tokens=8, temperature=1, ignore_eos=True)
        first = json.loads((await door.answer(door.post(CHAT, asked))).body)
        seed = first["x_groq"]["seed"]
        again = json.loads((await door.answer(door.post(CHAT, {**asked, "seed": seed}))).body)
        other = json.loads((await door.answer(door.post(CHAT, asked))).body)
        assert again["x_groq"]["seed"] == seed != other["x_groq"]["seed"]
        assert again["choices"] == first["choices"] != other["choices"]

    run(play)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the request has no body"),
        (b"  ", "the request has no body"),
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"model": "\xff"}', "not UTF-8"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "levels deep"),
        (b"{}", "`model` is missing"),
        (b'{"model":"fake"}', "is missing"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])
def test_bodies_that_ask_nothing(path: str, body: bytes, said: str) -> None:
    async def play() -> None:
        door = Door()
        call = await door.answer(door.call("POST", path, body))
        assert call.status == 400
        assert error(call)["type"] == "invalid_request_error"
        assert said in error(call)["message"] or "`messages`" in error(call)["message"]

    run(play)


def test_the_content_type_does_not_matter() -> None:
    async def play() -> None:
        door = Door()
        for kind in ("application/x-www-form-urlencoded", "text/plain", ""):
            headers = {"content-type": kind}
            call = await door.answer(door.post(CHAT, chat_body(model="fake"), headers))
            assert call.status == 200

    run(play)


def test_strict_refuses_what_is_unknown() -> None:
    async def play() -> None:
        door = Door(strict=True)
        call = await door.answer(door.post(CHAT, chat_body(model="fake", foo=1)))
        assert call.status == 400
        assert "property 'foo' is unsupported" in error(call)["message"]

    run(play)


# --- what fails -----------------------------------------------------------------------------------


def faulty(**faults: Any) -> ManualEngine:
    model = FakeModel(rule=saying(list(b"Hello."), END_ID))
    return ManualEngine(FaultyModel(model, **faults))


@pytest.mark.parametrize(("path", "body"), ENDPOINTS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_byte_has_a_status(
    path: str, body: dict[str, Any], stream: bool
) -> None:
    async def play() -> None:
        door = Door()
        door.engine.close()
        call = await door.answer(door.post(path, {**body, "stream": stream}))
        assert (call.status, error(call)["code"]) == (503, "engine_closed")
        assert call.header("content-type") == "application/json"

    run(play)


@pytest.mark.parametrize(("path", "body"), ENDPOINTS)
def test_a_failure_after_it_is_said_inside(path: str, body: dict[str, Any]) -> None:
    async def play() -> None:
        door = Door(faulty(nan_at=[(3, 0)]))
        call = await door.answer(door.post(path, {**body, "stream": True}))
        assert call.status == 200 and call.is_whole
        last = frames(call.body)[-1]
        assert last.event in ("error", "response.failed")
        assert "the model's logits are not numbers" in last.data
        assert b"[DONE]" not in call.body
        if last.event == "error":
            inside = json.loads(last.data)["error"]
            assert list(inside) == ["message", "type", "code", "status_code"]
            assert (inside["code"], inside["status_code"]) == ("generation_failed", 500)
        assert streamed_text_of(call.body).startswith("He")
        (fact,) = door.ended
        assert (fact.status, fact.finish_reasons) == (200, ("error",))
        assert fact.error_code == "generation_failed"
        door.assert_nothing_is_held()

    run(play)


def test_a_failure_of_a_whole_answer_has_a_status() -> None:
    async def play() -> None:
        door = Door(faulty(nan_at=[(3, 0)]))
        call = await door.answer(door.post(CHAT, chat_body(model="fake")))
        assert (call.status, error(call)["code"]) == (500, "generation_failed")
        door.assert_nothing_is_held()

    run(play)


def test_one_choice_that_fails_ends_the_whole_answer() -> None:
    async def play() -> None:
        for stream in (False, True):
            door = Door(faulty(nan_at=[(4, 1)]))
            call = await door.answer(door.post(CHAT, chat_body(model="fake", n=2, stream=stream)))
            assert call.status == (200 if stream else 500)
            await door.turn(2)
            door.assert_nothing_is_held()

    run(play)


def test_a_frame_that_cannot_be_written_ends_one_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def play() -> None:
        door = Door()
        encode = ChatStream.encode

        def broken(self: ChatStream, event: Any) -> bytes:
            if not isinstance(event, Started):
                raise RuntimeError("a bug")
            return encode(self, event)

        with monkeypatch.context() as patch:
            patch.setattr(ChatStream, "encode", broken)
            call = door.post(CHAT, chat_body(model="fake", stream=True))
            with pytest.raises(RuntimeError, match="a bug"):
                await door.answer(call)
        await door.turn(2)
        assert not call.is_whole
        assert [fact.status for fact in door.ended] == [500]
        door.assert_nothing_is_held()
        call = await door.answer(door.post(CHAT, chat_body(model="fake", stream=True)))
        assert streamed_text(call.body) == "Hello."

    run(play)


@pytest.mark.parametrize(
    ("patience", "num_steps", "status", "code"),
    [
        ({"queue_timeout_s": 0.02}, 0, 503, "engine_overloaded"),
        ({"total_timeout_s": 0.02}, 0, 504, "generation_timeout"),
        ({"stall_timeout_s": 0.02}, 3, 504, "generation_timeout"),
        ({"total_timeout_s": 0.05}, 3, 504, "generation_timeout"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_patience_that_runs_out(
    patience: Mapping[str, float], num_steps: int, status: int, code: str, stream: bool
) -> None:
    async def play() -> None:
        door = Door(engine_saying("Hello."), **patience)
        call = door.post(CHAT, chat_body(model="fake", stream=stream, ignore_eos=True))
        await door.turn(num_steps)
        async with asyncio.timeout(30):
            while not call.has_ended:
                await asyncio.sleep(0.005)
        if stream and num_steps:
            last = frames(call.body)[-1]
            assert (call.status, last.event) == (200, "error")
            inside = json.loads(last.data)["error"]
            assert (inside["status_code"], inside["code"]) == (status, code)
        else:
            assert (call.status, error(call)["code"]) == (status, code)
            assert (call.header("retry-after") is None) == (status == 504)
        await door.turn(2)
        door.assert_nothing_is_held()

    run(play)


def test_header_values_are_printable() -> None:
    assert header_value("é\r\nx: 1\x00\x7f\t") == rb"\xe9  x: 1   "


@pytest.mark.parametrize(
    ("path", "asked", "ignored"),
    [
        (CHAT, {"reasoning_effort": "high"}, "reasoning_effort"),
        (CHAT, {"reasoning_effort": "none"}, None),
        (CHAT, {"reasoning_effort": "low", "frobnicate": 1}, "frobnicate, reasoning_effort"),
        (RESPONSES, {"reasoning": {"effort": "high"}}, "reasoning.effort"),
    ],
)
def test_effort_is_ignored_by_a_model_without_thoughts(
    path: str, asked: dict[str, Any], ignored: str | None
) -> None:
    async def play() -> None:
        door = Door()
        question = {"model": "fake", "input": "x"} if path == RESPONSES else chat_body(model="fake")
        call = await door.answer(door.post(path, {**question, **asked}))
        assert (call.status, call.header("x-headrace-ignored")) == (200, ignored)

    run(play)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b", "reasoning": "r"},
                    {"role": "user", "content": "c"},
                ]
            },
            "messages[1].reasoning",
        ),
    ],
)
def test_strict_lets_nobody_ask_for_thoughts_that_are_not_had(
    fields: dict[str, Any], param: str
) -> None:
    async def play() -> None:
        for strict, status in ((True, 400), (False, 200)):
            door = Door(strict=strict)
            call = await door.answer(door.post(CHAT, {**chat_body(model="fake"), **fields}))
            assert call.status == status
            if strict:
                assert error(call)["param"] == param

    run(play)


def test_strict_names_the_effort_of_a_response_as_it_is_called_there() -> None:
    async def play() -> None:
        door = Door(strict=True)
        asked = response(reasoning={"effort": "low"})
        call = await door.answer(door.post(RESPONSES, asked))
        assert (call.status, error(call)["param"]) == (400, "reasoning.effort")

    run(play)


@pytest.mark.parametrize(
    ("tool_choice", "content"), [("required", None), ("auto", ""), ("none", "")]
)
def test_the_first_chunk_of_a_call_that_is_forced_has_no_content(
    tool_choice: str, content: str | None
) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    form = ChatForm(chat_body(tools=[tool], tool_choice=tool_choice), BodyLimits(), False)
    stamp = Stamp(id="chatcmpl-1", request_id="req_1", created=1, model="m", fingerprint="fp_1")
    first = frames(form.stream(stamp, 1, None).encode(Started("r", 0, 1, 1, 0)))[0]
    delta = json.loads(first.data)["choices"][0]["delta"]
    assert delta == {"role": "assistant", "content": content}


def test_a_response_tells_its_times_where_they_are_asked_for() -> None:
    async def play() -> None:
        door = Door()
        for headers in ({}, {"groq-beta": "inference-metrics"}):
            asked = response(metadata={"a": "b"})
            call = await door.answer(door.post(RESPONSES, asked, headers))
            metadata = json.loads(call.body)["metadata"]
            assert metadata.pop("a") == "b"
            names = {"completion_time", "prompt_time", "queue_time", "total_time"}
            assert set(metadata) == (names if headers else set())
            assert all(float(value) >= 0 for value in metadata.values())

    run(play)


def test_a_server_that_drains_tells_the_limits(tmp_path: Path) -> None:
    async def play() -> None:
        (tmp_path / "limits.toml").write_text("[default]\nrpd = 5\n")
        door = Door(limits=str(tmp_path / "limits.toml"))
        door.serving.begin_drain()
        call = await door.answer(door.post(CHAT, chat_body(model="fake")))
        assert call.status == 503 and call.header("retry-after")
        assert call.header("x-ratelimit-limit-requests") == "5"

    run(play)


def test_effort_counts_for_a_model_that_thinks() -> None:
    async def play() -> None:
        door = Door()
        (served,) = door.serving.registry.served
        served.style.thinks = THINK_MARKERS[0]
        call = await door.answer(door.post(CHAT, chat_body(model="fake", reasoning_effort="high")))
        assert (call.status, call.header("x-headrace-ignored")) == (200, None)

    run(play)
