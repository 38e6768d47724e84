"""The same key again is the same question, unless its answer came to nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import GenerationFailed
from headrace.server.keys import KeyStore
from headrace.testing.asgi import Call
from support.asgi import CHAT, Door, engine_saying, frames, run, settle, streamed_text
from support.bodies import chat_body

TEXT = "Water turns the wheel."
KEY = {"idempotency-key": "k1"}


def ask(**fields: Any) -> dict[str, Any]:
    return chat_body(model="fake", **fields)


def content(call: Call) -> str:
    text: str = json.loads(call.body)["choices"][0]["message"]["content"]
    return text


def code_of(call: Call) -> tuple[int | None, str]:
    return call.status, json.loads(call.body)["error"]["code"]


def num_generations(door: Door) -> int:
    """Requests that made tokens of their own."""
    return sum(fact.num_completion_tokens > 0 for fact in door.ended)


def test_a_whole_answer_is_given_again() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        first = await door.answer(door.post(CHAT, ask(), KEY))
        again = await door.post(CHAT, ask(), KEY).ended()
        assert (first.status, content(first)) == (200, TEXT)
        assert again.body == first.body
        assert (first.header("idempotent-replayed"), again.header("idempotent-replayed")) == (
            None,
            "true",
        )
        assert again.header("x-headrace-model") == first.header("x-headrace-model")
        assert num_generations(door) == 1
        other = await door.answer(door.post(CHAT, ask(), {"idempotency-key": "k2"}))
        assert json.loads(other.body)["id"] != json.loads(first.body)["id"]
        door.assert_nothing_is_held()

    run(play)


def test_who_asks_again_meanwhile_gets_the_same_answer() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        first = door.post(CHAT, ask(), KEY)
        await door.turn(3)
        second = door.post(CHAT, ask(), KEY)
        await door.turn(1)
        first.leave()
        await first.ended()
        await door.answer(second)
        third = await door.post(CHAT, ask(), KEY).ended()
        assert content(second) == TEXT and third.body == second.body
        assert num_generations(door) == 1
        door.assert_nothing_is_held()

    run(play)


def test_a_plain_stream_is_streamed_again_as_plain() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        first = await door.answer(door.post(CHAT, ask(stream=True), KEY))
        again = await door.post(CHAT, ask(stream=True), KEY).ended()
        assert streamed_text(first.body) == streamed_text(again.body) == TEXT
        assert b"id:" not in first.body + again.body
        ids = {
            json.loads(event.data)["id"]
            for event in frames(first.body + again.body)
            if event.data != "[DONE]"
        }
        assert len(ids) == 1

    run(play)


def test_one_answer_may_be_asked_for_whole_and_as_a_stream() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        whole = await door.answer(door.post(CHAT, ask(), KEY))
        accept = {"accept": "text/event-stream"}
        streamed = await door.post(CHAT, ask(), KEY | accept).ended()
        assert (content(whole), streamed_text(streamed.body)) == (TEXT, TEXT)
        assert num_generations(door) == 1

    run(play)


def test_a_resumable_retry_is_numbered() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        body = ask(stream=True, stream_options={"resumable": True})
        first = door.post(CHAT, body, KEY)
        await door.turn(4)
        first.leave()
        await first.ended()
        second = await door.answer(door.post(CHAT, body, KEY))
        events = frames(second.body)
        assert [event.id for event in events] == [str(n + 1) for n in range(len(events))]
        assert second.body.startswith(first.body) and events[-1].data == "[DONE]"
        assert num_generations(door) == 1

    run(play)


def test_another_body_is_a_conflict() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        first = door.post(CHAT, ask(), KEY)
        await door.turn(2)
        running = await door.post(CHAT, ask(max_tokens=3), KEY).ended()
        await door.answer(first)
        over = await door.post(CHAT, ask(max_tokens=3), KEY).ended()
        for call in (running, over):
            assert code_of(call) == (422, "idempotency_conflict")
            assert json.loads(call.body)["error"]["param"] == "idempotency-key"
        assert (await door.post(CHAT, ask(), KEY).ended()).status == 200

    run(play)


def test_keys_belong_to_their_owners(tmp_path: Path) -> None:
    async def play() -> None:
        keys = KeyStore(tmp_path / "keys.json")
        owners = [{"authorization": f"Bearer {keys.create(n)[1]}"} for n in ("one", "two")]
        door = Door(engine_saying(TEXT), keys=keys)
        ids = set()
        for number, owner in enumerate(owners):
            call = await door.answer(door.post(CHAT, ask(max_tokens=number + 3), KEY | owner))
            assert call.status == 200
            ids.add(call.header("x-headrace-stream"))
        assert len(ids) == 2

    run(play)


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_keys_that_are_none(key: str) -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        call = await door.post(CHAT, ask(), {"idempotency-key": key}).ended()
        assert (call.status, json.loads(call.body)["error"]["param"]) == (400, "idempotency-key")

    run(play)


def test_what_was_refused_holds_no_key() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        refused = await door.post(CHAT, ask(max_tokens=10**6), KEY).ended()
        assert refused.status == 400
        call = await door.answer(door.post(CHAT, ask(), KEY))
        assert (call.status, content(call)) == (200, TEXT)

    run(play)


def test_a_refusal_says_when_to_come_again_and_then_one_may(tmp_path: Path) -> None:
    async def play() -> None:
        limits = tmp_path / "limits.json"
        limits.write_text(json.dumps({"models": {"fake": {"rpm": 1}}}))
        door = Door(engine_saying(TEXT), limits=str(limits))
        await door.answer(door.post(CHAT, ask()))
        refused = await door.post(CHAT, ask(), KEY).ended()
        assert refused.status == 429 and int(refused.header("retry-after") or 0) > 0
        assert len(door.serving.idempotency) == 0

    run(play)


def test_those_who_wait_for_one_that_is_refused_try_themselves() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        admit, gates = door.serving.admit, [asyncio.Event(), asyncio.Event()]
        errors: list[Exception | None] = [GenerationFailed("no"), None]

        async def slowly(*asked: Any) -> Any:
            await gates.pop(0).wait()
            if (error := errors.pop(0)) is not None:
                raise error
            return await admit(*asked)

        first_gate, second_gate = gates
        door.serving.admit = slowly  # type: ignore[method-assign]
        calls = [door.post(CHAT, ask(), KEY) for _ in range(3)]
        await settle()
        assert len(gates) == 1  # the others wait
        first_gate.set()
        await settle()
        second_gate.set()
        for call in calls:
            await door.answer(call)
        assert [call.status for call in calls] == [500, 200, 200]
        assert calls[1].body == calls[2].body
        assert num_generations(door) == 1

    run(play)


def test_who_leaves_while_it_waits_harms_nobody() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        admit, gate = door.serving.admit, asyncio.Event()

        async def slowly(*asked: Any) -> Any:
            await gate.wait()
            return await admit(*asked)

        door.serving.admit = slowly  # type: ignore[method-assign]
        calls = [door.post(CHAT, ask(), KEY) for _ in range(3)]
        await settle()
        calls[0].leave()
        calls[1]._task.cancel()  # as a server does that shuts down
        await settle()
        gate.set()
        await door.answer(calls[2])
        assert content(calls[2]) == TEXT
        assert num_generations(door) == 1
        door.assert_nothing_is_held()

    run(play)


def test_who_makes_it_is_cut_off_and_the_next_one_makes_it() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        admit, gate = door.serving.admit, asyncio.Event()

        async def slowly(*asked: Any) -> Any:
            await gate.wait()
            return await admit(*asked)

        door.serving.admit = slowly  # type: ignore[method-assign]
        first, second = (door.post(CHAT, ask(), KEY) for _ in range(2))
        await settle()
        first._task.cancel()
        gate.set()
        await door.answer(second)
        assert content(second) == TEXT
        door.assert_nothing_is_held()

    run(play)


@pytest.mark.parametrize("end", ["stopped", "failed"])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_half_an_answer_is_not_given_again(end: str, is_streamed: bool) -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        first = door.post(CHAT, ask(stream=is_streamed), KEY)
        await door.turn(4)
        (kept,) = door.serving.streams._live.values()
        if end == "stopped":
            kept.stop()
        else:
            kept.pump.fail(GenerationFailed("it broke"))
        await door.answer(first)
        assert len(door.serving.idempotency) == 0
        again = await door.answer(door.post(CHAT, ask(stream=is_streamed), KEY))
        assert again.status == 200
        assert (streamed_text(again.body) if is_streamed else content(again)) == TEXT
        door.assert_nothing_is_held()

    run(play)


def test_a_key_lives_as_long_as_its_stream() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT), max_streams=1)
        first = await door.answer(door.post(CHAT, ask(), KEY))
        await door.answer(door.post(CHAT, ask(), {"idempotency-key": "k2"}))
        assert len(door.serving.idempotency) == 1
        again = await door.answer(door.post(CHAT, ask(max_tokens=4), KEY))
        assert again.status == 200 and again.body != first.body

    run(play)


def test_a_server_that_drains_waits_for_it() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        first = door.post(CHAT, ask(), KEY)
        await door.turn(2)
        first.leave()
        await first.ended()
        door.serving.begin_drain()
        assert door.serving.num_open == 1
        late = await door.post(CHAT, ask(), KEY).ended()
        assert code_of(late) == (503, "server_draining") and late.header("retry-after")
        back = door.call("GET", f"/v1/streams/{next(iter(door.serving.streams._live))}")
        assert streamed_text((await door.answer(back)).body) == TEXT
        door.assert_nothing_is_held()

    run(play)
