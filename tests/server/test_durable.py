"""Streams go on in the next server, whenever the one that began them dies."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from headrace.streams import recovery, segments
from headrace.testing import END_ID, FakeModel, ManualEngine, saying
from headrace.testing.asgi import Call
from support.asgi import CHAT, COMPLETIONS, RESPONSES, engine_saying, frames, run, settle
from support.bodies import chat_body
from support.durable import TEXT, House

RESUMABLE = {"stream": True, "stream_options": {"resumable": True}}
KEY = {"idempotency-key": "k1"}


def ask(**fields: Any) -> dict[str, Any]:
    return chat_body(model="fake", **{**RESUMABLE, "temperature": 0, **fields})


async def begin(house: House, num_steps: int = 4, path: str = CHAT, **fields: Any) -> Call:
    """A resumable answer after some of the engine's steps."""
    call = house.post(path, ask(**fields) if path == CHAT else {"model": "fake", **fields})
    await call.until(lambda: call.status is not None)
    await house.turn(num_steps)
    return call


def path_of(call: Call, rest: str = "") -> str:
    name = call.header("x-headrace-stream")
    assert name is not None, call.body
    return f"/v1/streams/{name}{rest}"


def numbered(body: bytes) -> list[tuple[int, Any]]:
    """Number and data of each event, without what may differ: costs and times."""
    return [(int(event.id), _lasting(event.data)) for event in frames(body)]


def _lasting(data: str) -> Any:
    if data == "[DONE]":
        return data
    said = json.loads(data)
    for where in (said, said.get("x_groq") or {}, said.get("response") or {}):
        where.pop("usage", None)
        where.pop("completed_at", None)
    return said


async def whole(house: House, call: Call) -> list[tuple[int, Any]]:
    await house.answer(call)
    return numbered(call.body)


async def rest(house: House, call: Call, after: int) -> list[tuple[int, Any]]:
    """What a client hears that has come so far."""
    again = house.call("GET", path_of(call), headers={"last-event-id": str(after)})
    return await whole(house, again)


def error_of(call: Call) -> tuple[int | None, str, str]:
    error = json.loads(call.body)["error"]
    return call.status, error["code"], error["message"]


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 9, 21, 22, 23, 24])
def test_the_rest_is_said_as_it_would_have_been(tmp_path: Path, num_steps: int) -> None:
    async def play() -> None:
        first = House(tmp_path / "streams")
        call = first.post(CHAT, ask())
        await call.until(lambda: call.status is not None)
        await first.turn(num_steps)
        read = numbered(call.body) if call.body.count(b"data:") else []
        second = first.after_death()
        second.revive()
        undisturbed = await whole(first, call)
        assert undisturbed[-1][1] == "[DONE]"
        assert read == undisturbed[: len(read)]
        for after in {0, len(read), max(0, len(read) - 1)} - {len(undisturbed)}:
            assert await rest(second, call, after) == undisturbed[after:]
        first.leave()
        second.leave()

    run(play)


@pytest.mark.parametrize(
    "path, fields",
    [
        (CHAT, {"logprobs": True, "top_logprobs": 2}),
        (CHAT, {"stop": "the", "logit_bias": {"97": -1}, "seed": 2**63 - 1}),
        (COMPLETIONS, {"prompt": "x", "echo": True, **RESUMABLE}),
        (RESPONSES, {"input": "x", **RESUMABLE}),
    ],
)
def test_every_kind_of_answer(tmp_path: Path, path: str, fields: dict[str, Any]) -> None:
    async def play() -> None:
        first = House(tmp_path / "streams")
        call = await begin(first, 7, path, **fields)
        second = first.after_death()
        second.revive()
        num_read = len(numbered(call.body))
        undisturbed = await whole(first, call)
        assert num_read and await rest(second, call, num_read) == undisturbed[num_read:]
        assert await rest(second, call, 0) == undisturbed
        first.leave()
        second.leave()

    run(play)


def test_choices_go_on_each_by_itself(tmp_path: Path) -> None:
    """How they take turns is the engine's affair, until they have."""

    def by_choice(events: list[tuple[int, Any]]) -> dict[int, list[Any]]:
        said: dict[int, list[Any]] = {}
        for _, data in events[:-1]:
            for choice in data["choices"]:
                said.setdefault(choice["index"], []).append(choice)
        return said

    async def play() -> None:
        first = House(tmp_path / "streams")
        call = await begin(first, 7, n=2)
        read = numbered(call.body)
        second = first.after_death()
        second.revive()
        undisturbed = await whole(first, call)
        again = read + await rest(second, call, len(read))
        assert again == await rest(second, call, 0)
        assert [number for number, _ in again] == [number for number, _ in undisturbed]
        assert by_choice(again) == by_choice(undisturbed)
        first.leave()
        second.leave()

    run(play)


def test_it_may_die_often(tmp_path: Path) -> None:
    async def play() -> None:
        houses = [House(tmp_path / "streams")]
        call = await begin(houses[0], 3)
        for _ in range(5):
            houses.append(houses[-1].after_death())
            houses[-1].revive()
            await houses[-1].turn(3)
        undisturbed = await whole(houses[0], call)
        assert await rest(houses[-1], call, 2) == undisturbed[2:]
        for house in houses:
            house.leave()

    run(play)


def test_what_gets_no_further_is_given_up(tmp_path: Path) -> None:
    async def play() -> None:
        houses = [House(tmp_path / "streams")]
        call = await begin(houses[0], 3)
        for _ in range(4):
            houses.append(houses[-1].after_death())
            houses[-1].revive()
        await houses[-1].turn(2)
        *_, last = await rest(houses[-1], call, 2)
        assert "3 times without a new token" in last[1]["error"]["message"]
        for house in houses:
            house.leave()

    run(play)


def test_an_answer_that_is_over_can_be_read_for_what_is_left_of_its_time(tmp_path: Path) -> None:
    async def play() -> None:
        first = House(tmp_path / "streams")
        call = await begin(first)
        undisturbed = await whole(first, call)
        second = first.after_death()
        second.revive()
        assert await rest(second, call, 5) == undisturbed[5:]
        assert second.engine.stats().num_cached_banks == 0  # nothing was computed
        third = second.after_death(stream_ttl_s=1e-6)
        third.revive()
        assert error_of(await third.call("GET", path_of(call)).ended())[:2] == (410, "stream_gone")
        fourth = third.after_death()
        assert fourth.serving.durable.recovered == []
        for house in (first, second, third, fourth):
            house.leave()

    run(play)


def test_a_stream_whose_time_is_over_leaves_the_disk(tmp_path: Path) -> None:
    async def play() -> None:
        house = House(tmp_path / "streams", stream_ttl_s=0.01)
        await house.answer(await begin(house))
        await asyncio.sleep(0.05)
        assert recovery.recover(tmp_path / "streams") == []
        house.leave()

    run(play)


def test_a_key_stands_for_the_same_answer(tmp_path: Path) -> None:
    async def play() -> None:
        first = House(tmp_path / "streams")
        plain = chat_body(model="fake", temperature=0)
        call = first.post(CHAT, plain, KEY)
        await first.turn(5)
        second = first.after_death()
        early = second.post(CHAT, plain, KEY)  # before the models are loaded
        await settle()
        assert not early.has_ended
        second.revive()
        await second.answer(early)
        await first.answer(call)
        answers = [json.loads(each.body) for each in (call, early)]
        assert early.header("idempotent-replayed") == "true"
        assert answers[0]["id"] == answers[1]["id"]
        assert answers[0]["choices"] == answers[1]["choices"]
        other = await second.post(CHAT, chat_body(model="fake", seed=2), KEY).ended()
        assert error_of(other)[:2] == (422, "idempotency_conflict")
        first.leave()
        second.leave()

    run(play)


def test_who_comes_back_early_waits(tmp_path: Path) -> None:
    async def play() -> None:
        first = House(tmp_path / "streams")
        call = await begin(first)
        second = first.after_death()
        again = second.call("GET", path_of(call))
        await settle()
        assert again.status is None
        second.revive()
        assert await whole(second, again) == await whole(first, call)
        first.leave()
        second.leave()

    run(play)


def test_another_model_does_not_go_on(tmp_path: Path) -> None:
    async def play() -> None:
        first = House(tmp_path / "streams")
        call = await begin(first)
        model = FakeModel(rule=saying(list(TEXT.encode()), END_ID))
        model._spec = type(model.spec)(
            **{name: getattr(model.spec, name) for name in model.spec.__slots__}
            | {"identity": "another"}
        )
        second = first.after_death(ManualEngine(model))
        second.revive()
        status, code, message = error_of(await second.call("GET", path_of(call)).ended())
        assert (status, code) == (410, "stream_gone")
        assert "the model or its numerics changed" in message
        call.leave()
        first.leave()
        second.leave()

    run(play)


def test_a_server_that_is_stopped_ends_no_stream(tmp_path: Path) -> None:
    async def play() -> None:
        first = House(tmp_path / "streams")
        call = await begin(first)
        num_read = len(numbered(call.body))
        first.serving.registry.close()
        await settle()
        assert len(numbered(call.body)) == num_read and not call.has_ended
        second = first.after_death()
        second.revive()
        *_, end, done = await rest(second, call, num_read)
        assert end[1]["choices"][0]["finish_reason"] == "stop" and done[1] == "[DONE]"
        call.leave()
        await settle()
        first.leave()
        second.leave()

    run(play)


def test_ends_that_the_engine_did_not_make(tmp_path: Path) -> None:
    async def play() -> None:
        first = House(tmp_path / "streams", orphan_timeout_s=0.01)
        abandoned, stopped = await begin(first), await begin(first)
        abandoned.leave()
        await asyncio.sleep(0.05)
        stopping = first.call("DELETE", path_of(stopped))
        await first.answer(stopping)
        await first.answer(stopped)
        second = first.after_death()
        second.revive()
        await second.turn(2)
        (_, told), *_ = (await rest(second, abandoned, 0))[-1:]
        assert told["error"]["code"] == "stream_abandoned"
        assert await rest(second, stopped, 0) == numbered(stopped.body)
        first.leave()
        second.leave()

    run(play)


def test_what_the_engine_refuses_is_not_kept(tmp_path: Path) -> None:
    async def play() -> None:
        house = House(tmp_path / "streams", engine_saying(TEXT, max_pending=1))
        await begin(house)
        refused = await house.post(CHAT, ask()).ended()
        assert refused.status == 503
        assert len(recovery.recover(tmp_path / "streams")) == 1
        await house.turn(40)
        house.leave()

    run(play)


def test_plain_answers_and_several_prompts_stay_in_memory(tmp_path: Path) -> None:
    async def play() -> None:
        house = House(tmp_path / "streams")
        plain = house.post(CHAT, chat_body(model="fake", stream=True))
        several = house.post(COMPLETIONS, {"model": "fake", "prompt": ["x", "y"], **RESUMABLE})
        await house.turn(3)
        assert several.header("x-headrace-stream")
        assert recovery.recover(tmp_path / "streams") == []
        await house.answer(plain)
        await house.answer(several)
        house.leave()

    run(play)


def test_a_folder_in_use(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        first = House(tmp_path / "streams")
        with caplog.at_level(logging.WARNING):
            second = House(tmp_path / "streams")
        assert len(caplog.records) == 1 and "another process" in caplog.text
        second.revive()
        call = await begin(second)
        assert (await whole(second, call))[-1][1] == "[DONE]"
        first.leave()
        second.leave()

    run(play)


def test_off_means_nothing_on_disk(tmp_path: Path) -> None:
    async def play() -> None:
        house = House(tmp_path / "streams", durability="off")
        await house.answer(await begin(house))
        assert not (tmp_path / "streams").exists()
        house.leave()

    run(play)


def test_a_disk_that_is_full_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    async def play() -> None:
        house = House(tmp_path / "streams")
        call = await begin(house)
        monkeypatch.setattr(segments, "_write_all", full)
        refused = await house.post(CHAT, ask()).ended()
        assert error_of(refused)[:2] == (507, "journal_failed")
        await house.answer(call)
        assert json.loads(frames(call.body)[-1].data)["error"]["code"] == "journal_failed"
        monkeypatch.undo()
        assert recovery.recover(tmp_path / "streams") == [] or not house.engine.stats().num_running
        house.leave()

    run(play)


def test_facts_and_limits_are_those_of_an_undisturbed_answer(tmp_path: Path) -> None:
    """It is told of once, by the server that saw its end, and counts for its key there."""

    async def play() -> None:
        limits = tmp_path / "limits.toml"
        limits.write_text("[default]\nrpd = 100\ntpm = 10000\n")
        first = House(tmp_path / "streams", limits=str(limits))
        headers = {"x-client-request-id": "mine"}
        call = first.post(CHAT, ask(), headers)
        await call.until(lambda: call.status is not None)
        await first.turn(7)
        second = first.after_death(limits=str(limits))
        second.revive()
        await whole(first, call)
        await rest(second, call, 0)
        [expected] = first.ended
        found, *_ = second.ended
        for name in ("request_id", "client_request_id", "endpoint", "status", "tenant", "model"):
            assert getattr(found, name) == getattr(expected, name), name
        for name in ("served_by", "is_streamed", "finish_reasons", "error_code"):
            assert getattr(found, name) == getattr(expected, name), name
        for name in ("num_prompt_tokens", "num_completion_tokens"):
            assert getattr(found, name) == getattr(expected, name), name
        assert found.ttft_s is None and len(found.gaps_s) < len(expected.gaps_s)
        assert [fact.request_id for fact in second.ended].count(found.request_id) == 1
        levels = [dict(house.serving.limit_headers("local", "fake")) for house in (first, second)]
        assert levels[0][b"x-ratelimit-remaining-requests"] == b"99"
        for name in (b"x-ratelimit-remaining-requests", b"x-ratelimit-limit-tokens"):
            assert levels[0][name] == levels[1][name]
        left = [int(level[b"x-ratelimit-remaining-tokens"]) for level in levels]
        assert abs(left[0] - left[1]) < 50 and left[0] < 10000
        third = second.after_death()
        third.revive()
        await rest(third, call, 0)
        assert not [fact for fact in third.ended if fact.request_id == found.request_id]
        for house in (first, second, third):
            house.leave()

    run(play)


def test_who_waits_after_a_restart_has_not_stalled(tmp_path: Path) -> None:
    """What is said again begins no deadline: the next token may have to wait for others."""

    async def play() -> None:
        first = House(tmp_path / "streams")
        call = await begin(first, 7)
        second = first.after_death(stall_timeout_s=0.5, queue_timeout_s=0.01)
        second.revive()
        await settle()
        await asyncio.sleep(0.7)
        undisturbed = await whole(first, call)
        assert await rest(second, call, 0) == undisturbed
        first.leave()
        second.leave()

    run(play)
