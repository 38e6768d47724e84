"""`continue_from`: a kept stream is gone on with as if its text had been sent."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from headrace.server.keys import KeyStore
from headrace.testing import ManualEngine
from headrace.testing.asgi import Call
from support.asgi import CHAT, COMPLETIONS, Door, run
from support.bodies import chat_body

RESUMABLE = {"stream": True, "stream_options": {"resumable": True}}
ASKED = chat_body(model="fake", temperature=0, max_tokens=12, seed=3)
COMPLETION: dict[str, Any] = {"model": "fake", "prompt": "once", "temperature": 0, "max_tokens": 9}


def door_with_a_model(**settings: Any) -> Door:
    """Its answers depend on all of their prompt."""
    return Door(ManualEngine(), **settings)


async def streamed(door: Door, path: str, body: dict[str, Any], **headers: str) -> str:
    """The id of a stream that has ended."""
    call = await door.answer(door.post(path, {**body, **RESUMABLE}, headers))
    assert call.status == 200, call.body
    return stream_of(call)


def stream_of(call: Call) -> str:
    name = call.header("x-headrace-stream")
    assert name is not None
    return name


async def said(door: Door, path: str, body: dict[str, Any]) -> tuple[str, int]:
    """Text and prompt tokens of a whole answer."""
    call = await door.answer(door.post(path, body))
    assert call.status == 200, call.body
    answer = json.loads(call.body)
    choice = answer["choices"][0]
    text: str = choice["text"] if "text" in choice else choice["message"]["content"]
    return text, answer["usage"]["prompt_tokens"]


async def refused(door: Door, path: str, body: dict[str, Any], **headers: str) -> tuple[Any, ...]:
    """Status, code and field."""
    call = await door.answer(door.post(path, body, headers))
    error = json.loads(call.body)["error"]
    return call.status, error.get("code"), error.get("param")


def test_a_chat_goes_on_without_being_sent_again() -> None:
    async def play() -> None:
        door = door_with_a_model()
        begun, _ = await said(door, CHAT, ASKED)
        name = await streamed(door, CHAT, ASKED)
        expected = await said(door, CHAT, {**ASKED, "prompt": begun})
        from_stream = {**ASKED, "continue_from": {"stream_id": name}}
        assert await said(door, CHAT, from_stream) == expected
        del from_stream["messages"]
        assert await said(door, CHAT, from_stream) == expected
        # A continuation that is kept can be gone on with as well.
        again = await streamed(door, CHAT, from_stream)
        more = {"prompt": begun + expected[0]}
        twice = {**ASKED, "continue_from": {"stream_id": again}}
        del twice["messages"]
        assert await said(door, CHAT, twice) == await said(door, CHAT, {**ASKED, **more})
        door.serving.streams.close()

    run(play)


def test_each_of_several_answers() -> None:
    async def play() -> None:
        door = door_with_a_model()
        several = {**ASKED, "n": 2, "temperature": 1.0}
        call = await door.answer(door.post(CHAT, several))
        texts = [choice["message"]["content"] for choice in json.loads(call.body)["choices"]]
        name = await streamed(door, CHAT, several)
        for choice, text in enumerate(texts):
            from_stream = {"stream_id": name, "choice": choice}
            assert await said(door, CHAT, {**ASKED, "continue_from": from_stream}) == await said(
                door, CHAT, {**ASKED, "prompt": text}
            )
        body = {**ASKED, "continue_from": {"stream_id": name, "choice": 2}}
        assert (await refused(door, CHAT, body))[::2] == (400, "continue_from.choice")
        door.serving.streams.close()

    run(play)


def test_a_completion_goes_on() -> None:
    async def play() -> None:
        door = door_with_a_model()
        begun, _ = await said(door, COMPLETIONS, COMPLETION)
        name = await streamed(door, COMPLETIONS, COMPLETION)
        expected = await said(door, COMPLETIONS, {**COMPLETION, "prompt": "once" + begun})
        from_stream = {**COMPLETION, "continue_from": {"stream_id": name}}
        assert await said(door, COMPLETIONS, from_stream) == expected
        del from_stream["prompt"]
        assert await said(door, COMPLETIONS, from_stream) == expected
        tokens = await streamed(door, COMPLETIONS, {**COMPLETION, "prompt": [1, 2, 3]})
        from_tokens = {**from_stream, "continue_from": {"stream_id": tokens}}
        assert (await refused(door, COMPLETIONS, from_tokens))[::2] == (400, "continue_from")
        door.serving.streams.close()

    run(play)


def test_one_that_still_runs_is_not_gone_on_with() -> None:
    async def play() -> None:
        door = door_with_a_model()
        call = door.post(CHAT, {**ASKED, **RESUMABLE})
        await call.until(lambda: call.status is not None)
        await door.turn(3)
        body = {**ASKED, "continue_from": {"stream_id": stream_of(call)}}
        assert await refused(door, CHAT, body) == (409, "stream_running", "continue_from")
        await door.answer(call)
        assert (await said(door, CHAT, body))[0]
        door.serving.streams.close()

    run(play)


def test_one_that_is_gone() -> None:
    async def play() -> None:
        door = door_with_a_model(stream_ttl_s=0.01)
        name = await streamed(door, CHAT, ASKED)
        await asyncio.sleep(0.05)
        body = {**ASKED, "continue_from": {"stream_id": name}}
        assert (await refused(door, CHAT, body))[:2] == (410, "stream_gone")
        body = {**ASKED, "continue_from": {"stream_id": "stream_none"}}
        assert (await refused(door, CHAT, body))[:2] == (404, "stream_not_found")

    run(play)


def test_another_tenants_is_not_there(tmp_path: Path) -> None:
    async def play() -> None:
        keys = KeyStore(tmp_path / "keys.json")
        mine, other = (keys.create(name)[1] for name in ("mine", "other"))
        door = Door(ManualEngine(), keys=keys)
        name = await streamed(door, CHAT, ASKED, authorization=f"Bearer {mine}")
        body = {**ASKED, "continue_from": {"stream_id": name}}
        foreign = await refused(door, CHAT, body, authorization=f"Bearer {other}")
        assert foreign[:2] == (404, "stream_not_found")
        own = await door.answer(door.post(CHAT, body, {"authorization": f"Bearer {mine}"}))
        assert own.status == 200
        door.serving.streams.close()

    run(play)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"continue_from": "stream"}, "continue_from"),
        ({"continue_from": {}}, "continue_from.stream_id"),
        ({"continue_from": {"stream_id": 7}}, "continue_from.stream_id"),
        ({"continue_from": {"stream_id": "s", "choice": -1}}, "continue_from.choice"),
    ],
)
def test_nonsense_is_refused(field: dict[str, Any], param: str, strict: bool) -> None:
    async def play() -> None:
        door = door_with_a_model(strict=strict)
        assert (await refused(door, CHAT, {**ASKED, **field}))[::2] == (400, param)

    run(play)


def test_a_beginning_is_said_once() -> None:
    async def play() -> None:
        door = door_with_a_model()
        name = await streamed(door, CHAT, ASKED)
        body = {**ASKED, "prompt": "Well", "continue_from": {"stream_id": name}}
        assert (await refused(door, CHAT, body))[::2] == (400, "prompt")
        body = {**COMPLETION, "continue_from": {"stream_id": name}}
        assert (await refused(door, COMPLETIONS, body))[::2] == (400, "continue_from")
        door.serving.streams.close()

    run(play)


def test_a_retry_finds_its_answer_when_what_it_went_on_with_has_gone() -> None:
    async def play() -> None:
        door = door_with_a_model()
        name = await streamed(door, CHAT, ASKED)
        body = {**ASKED, "continue_from": {"stream_id": name}}
        key = {"idempotency-key": "k"}
        first = await door.answer(door.post(CHAT, body, key))
        door.serving.streams._drop(name)
        assert (await refused(door, CHAT, body))[1] == "stream_gone"
        again = await door.post(CHAT, body, key).ended()
        assert (again.status, again.body) == (200, first.body)
        assert again.header("idempotent-replayed") == "true"
        accept = {"accept": "text/event-stream"}
        streamed_again = await door.post(CHAT, body, key | accept).ended()
        assert streamed_again.header("content-type") == "text/event-stream"
        assert (await refused(door, CHAT, {**body, "seed": 4}, **key))[0] == 422
        door.serving.streams.close()

    run(play)
