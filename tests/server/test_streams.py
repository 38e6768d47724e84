"""Kept streams over HTTP: coming back, polling, stopping, and who may."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import GenerationFailed
from headrace.server.keys import KeyStore
from headrace.server.paths import PREFIXES
from headrace.testing.asgi import Call
from support.asgi import CHAT, COMPLETIONS, RESPONSES, Door, engine_saying, frames, run, settle
from support.bodies import chat_body

TEXT = "Water turns the wheel."
RESUMABLE = {"stream": True, "stream_options": {"resumable": True}}


def ask(**fields: Any) -> dict[str, Any]:
    return chat_body(model="fake", temperature=0, **{**RESUMABLE, **fields})


async def begin(door: Door, headers: dict[str, str] | None = None, **fields: Any) -> Call:
    """A resumable answer that has said its first words."""
    call = door.post(CHAT, ask(**fields), headers)
    await call.until(lambda: call.status is not None)
    await door.turn(4)
    return call


def stream_of(call: Call) -> str:
    name = call.header("x-headrace-stream")
    assert name is not None
    return name


def path_of(call: Call, rest: str = "") -> str:
    return f"/v1/streams/{stream_of(call)}{rest}"


def numbered(body: bytes) -> list[tuple[int, str, str]]:
    """Number, name and data of each event."""
    return [(int(event.id), event.event, event.data) for event in frames(body)]


def hold_up(door: Door) -> asyncio.Event:
    """Let requests wait for their limits until the event is set."""
    admit, admitted = door.serving.admit, asyncio.Event()

    async def slowly(*asked: Any) -> Any:
        await admitted.wait()
        return await admit(*asked)

    door.serving.admit = slowly  # type: ignore[method-assign]
    return admitted


async def eventually(is_so: Any) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.002)


def code_of(call: Call) -> tuple[int | None, str]:
    return call.status, json.loads(call.body)["error"]["code"]


def test_events_are_numbered_and_come_with_a_delay_to_come_back() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        call = await door.answer(door.post(CHAT, ask()))
        assert call.body.startswith(b"retry: 1000\nid: 1\ndata: {")
        events = numbered(call.body)
        assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
        assert events[-1][2] == "[DONE]"
        said = [json.loads(data)["choices"][0]["delta"] for _, _, data in events[:-1]]
        assert "".join(delta.get("content", "") for delta in said) == TEXT
        assert call.header("x-headrace-stream-token") is None
        door.assert_nothing_is_held()

    run(play)


def test_the_header_asks_for_it_as_well() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        body = chat_body(model="fake", stream=True)
        by_header = await door.answer(door.post(CHAT, body, {"x-headrace-resumable": "1"}))
        plain = await door.answer(door.post(CHAT, body))
        assert numbered(by_header.body)[0][0] == 1
        assert b"id:" not in plain.body and plain.header("x-headrace-stream") is None

    run(play)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])
def test_every_number_can_be_come_back_to(path: str) -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        question = {CHAT: {"messages": [{"role": "user", "content": "x"}]}, COMPLETIONS: {}}
        body = {"model": "fake", "prompt": "x", "input": "x", **RESUMABLE}
        kept = {"model", "stream", "stream_options"}
        own = question.get(path, {})
        field = {CHAT: set(), COMPLETIONS: {"prompt"}, RESPONSES: {"input"}}[path]
        first = await door.answer(door.post(path, {**{k: body[k] for k in kept | field}, **own}))
        assert first.status == 200, first.body
        whole = numbered(first.body)
        for after in range(len(whole)):
            again = await door.call(
                "GET", path_of(first), headers={"last-event-id": str(after)}
            ).ended()
            assert numbered(again.body) == whole[after:]
            by_query = await door.call("GET", path_of(first, f"?after={after}")).ended()
            assert by_query.body == again.body
        over = await door.call("GET", path_of(first, f"?after={len(whole)}")).ended()
        assert (over.status, over.body) == (204, b"")

    run(play)


def test_the_header_counts_before_the_query() -> None:
    # An `EventSource` keeps its URL when it comes back.
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        first = await door.answer(door.post(CHAT, ask()))
        again = door.call("GET", path_of(first, "?after=2"), headers={"last-event-id": "5"})
        assert numbered((await again.ended()).body)[0][0] == 6

    run(play)


def test_both_prefixes_lead_there() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        first = await door.answer(door.post(CHAT, ask()))
        for prefix in PREFIXES:
            path = f"{prefix}/streams/{stream_of(first)}"
            assert (await door.call("GET", path).ended()).status == 200
            page = await door.call("GET", path + "/events").ended()
            assert json.loads(page.body)["next"].startswith(path + "/events?after=")

    run(play)


@pytest.mark.parametrize(
    ("after", "status"),
    [
        ("-1", 400),
        ("1.5", 400),
        ("x", 400),
        ("²", 400),
        ("9" * 5000, 400),
        ("0" * 30 + "9" * 5000, 400),
        ("999999999999999", 204),
        ("", 200),
        ("0", 200),
    ],
)
def test_what_is_no_number(after: str, status: int) -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        first = await door.answer(door.post(CHAT, ask()))
        call = await door.call("GET", path_of(first, f"?after={after}")).ended()
        assert call.status == status
        if status == 400:
            assert json.loads(call.body)["error"]["param"] == "after"

    run(play)


def test_leaving_does_not_stop_it_and_anybody_may_join() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        first = await begin(door)
        first.leave()
        await first.ended()
        assert door.serving.num_open == 1
        readers = [door.call("GET", path_of(first, f"?after={n}")) for n in (0, 1, 3)]
        for reader in readers:
            await door.answer(reader)
        whole = numbered(readers[0].body)
        assert whole[-1][2] == "[DONE]"
        assert [numbered(reader.body) for reader in readers] == [whole, whole[1:], whole[3:]]
        assert numbered(first.body) == whole[: len(numbered(first.body))]
        door.assert_nothing_is_held()

    run(play)


@pytest.mark.parametrize("method", ["DELETE", "POST"])
def test_stopping_ends_it_for_everybody(method: str) -> None:
    async def play() -> None:
        door = Door(engine_saying("x" * 200))
        first = await begin(door)
        path = path_of(first, "/cancel" if method == "POST" else "")
        stopping = await door.answer(door.call(method, path))
        assert json.loads(stopping.body) == {
            "id": stream_of(first),
            "object": "stream",
            "status": "ended",
        }
        await door.answer(first)
        whole = numbered(first.body)
        assert [data for _, _, data in whole].count("[DONE]") == 1 and whole[-1][2] == "[DONE]"
        again = await door.call("GET", path_of(first)).ended()
        assert numbered(again.body) == whole
        assert (await door.answer(door.call(method, path))).status == 200
        door.assert_nothing_is_held()

    run(play)


def test_who_leaves_before_it_has_a_name_leaves_nothing_running() -> None:
    async def play() -> None:
        door = Door(engine_saying("x" * 200))
        admitted = hold_up(door)
        call = door.post(CHAT, ask())
        await settle()
        call.leave()
        await settle()
        admitted.set()
        await call.ended()
        await door.turn(2)
        assert [fact.status for fact in door.ended] == [499]
        door.assert_nothing_is_held()

    run(play)


def test_nobody_comes_back_so_it_fails_and_says_why() -> None:
    async def play() -> None:
        door = Door(engine_saying("x" * 200), orphan_timeout_s=0.02)
        first = await begin(door)
        await asyncio.sleep(0.05)  # somebody reads: no orphan
        assert not first.has_ended
        first.leave()
        await first.ended()
        await eventually(lambda: door.serving.num_open == 0)
        await door.turn(2)
        again = await door.call("GET", path_of(first)).ended()
        *_, (_, name, data) = numbered(again.body)
        assert name == "error" and json.loads(data)["error"]["code"] == "stream_abandoned"
        door.assert_nothing_is_held()

    run(play)


def test_a_stream_that_is_gone() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT), stream_ttl_s=0.01)
        first = await door.answer(door.post(CHAT, ask()))
        await eventually(lambda: len(door.serving.streams) == 0)
        for method, rest in [("GET", ""), ("GET", "/events"), ("DELETE", ""), ("POST", "/token")]:
            call = await door.call(method, path_of(first, rest)).ended()
            assert code_of(call) == (410, "stream_gone")
        unknown = await door.call("GET", "/v1/streams/stream_x").ended()
        assert code_of(unknown) == (404, "stream_not_found")

    run(play)


def test_pages_of_a_poll() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        first = await begin(door)
        path = path_of(first, "/events")
        page = json.loads((await door.call("GET", path).ended()).body)
        assert not page["done"] and page["events"][0]["data"]["object"] == "chat.completion.chunk"
        numbers = [event["id"] for event in page["events"]]
        assert page["next"] == f"{path}?after={numbers[-1]}"
        empty = json.loads((await door.call("GET", page["next"]).ended()).body)
        assert empty == {"events": [], "next": page["next"], "done": False}
        waiting = door.call("GET", page["next"] + "&wait=30")
        await settle()
        assert not waiting.has_ended
        await door.answer(waiting)
        more = json.loads(waiting.body)
        assert more["events"][0]["id"] == numbers[-1] + 1
        assert more["next"] == f"{path}?after={more['events'][-1]['id']}&wait=30"
        await door.answer(first)
        rest = json.loads((await door.call("GET", more["next"]).ended()).body)
        assert rest["done"] and rest["events"][-1]["data"] == "[DONE]"
        over = json.loads((await door.call("GET", rest["next"]).ended()).body)
        assert over == {"events": [], "next": rest["next"], "done": True}

    run(play)


@pytest.mark.parametrize("wait", ["-1", "nan", "x", "1e"])
def test_what_is_no_time(wait: str) -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        first = await door.answer(door.post(CHAT, ask()))
        call = await door.call("GET", path_of(first, f"/events?wait={wait}")).ended()
        assert (call.status, json.loads(call.body)["error"]["param"]) == (400, "wait")

    run(play)


def test_a_poll_waits_no_longer_than_it_may_and_ends_when_its_client_leaves() -> None:
    async def play() -> None:
        door = Door(engine_saying("x" * 100))
        first = await begin(door)
        last = numbered(first.body + b"")[-1][0]
        short = door.call("GET", path_of(first, f"/events?after={last}&wait=0.01"))
        assert json.loads((await short.ended()).body)["events"] == []
        long = door.call("GET", path_of(first, f"/events?after={last}&wait=inf"))
        await settle()
        long.leave()
        await long.ended()
        first.leave()
        await first.ended()
        (kept,) = door.serving.streams._live.values()
        assert kept.num_readers == 0
        kept.stop()
        await door.turn(2)
        door.assert_nothing_is_held()

    run(play)


def test_a_poll_gives_text_that_looks_like_a_field() -> None:
    async def play() -> None:
        door = Door(engine_saying('data: {"a"}\n\nid: 3\n'))
        first = await door.answer(door.post(CHAT, ask()))
        page = json.loads((await door.call("GET", path_of(first, "/events")).ended()).body)
        deltas = [event["data"]["choices"][0]["delta"] for event in page["events"][:-1]]
        assert "".join(d.get("content", "") for d in deltas) == 'data: {"a"}\n\nid: 3\n'

    run(play)


def test_a_silent_stream_says_that_it_lives() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT), heartbeat_s=0.01)
        first = door.post(CHAT, ask())
        await eventually(lambda: b": ping\n: ping\n" in first.body)  # queued: no step was made
        assert b"id:" not in first.body
        await door.answer(first)
        assert numbered(first.body)[-1][2] == "[DONE]"

    run(play)


@pytest.mark.parametrize("is_resumable", [False, True])
def test_progress_is_told_to_who_asks(is_resumable: bool) -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT, max_running=1))
        options = {"resumable": is_resumable, "progress": True}
        busy = await begin(door)
        waiting = door.post(CHAT, ask(stream_options=options))
        await eventually(lambda: b"headrace.progress" in waiting.body)
        assert b"[DONE]" not in waiting.body
        await door.answer(busy)
        await door.answer(waiting)
        events = frames(waiting.body)
        news = [json.loads(e.data) for e in events if e.event == "headrace.progress"]
        assert news[0] | {"prompt_tokens": 0} == {
            "state": "queued",
            "queue_position": 1,
            "estimated_wait_s": news[0]["estimated_wait_s"],
            "prompt_tokens": 0,
        }
        # No number is given to them, and none is taken from the answer.
        answer = [event for event in events if event.event == "message"]
        numbers = [str(number) for number in range(1, len(answer) + 1)]
        assert [event.id for event in answer] == (numbers if is_resumable else [""] * len(answer))
        assert answer[-1].data == "[DONE]"
        door.assert_nothing_is_held()

    run(play)


def test_a_reader_that_came_later_may_ask_for_progress() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        first = door.post(CHAT, ask())
        await first.until(lambda: first.status)
        other = door.call("GET", path_of(first, "?progress=1"))
        await other.until(lambda: b"headrace.progress" in other.body)
        await door.answer(first)
        await door.answer(other)
        assert b"headrace.progress" not in first.body
        again = await door.call("GET", path_of(first, "?progress=1")).ended()
        assert again.body == first.body

    run(play)


def test_a_slow_reader_holds_up_nobody() -> None:
    async def play() -> None:
        door = Door(engine_saying("x" * 100))
        slow = await begin(door, max_tokens=90)
        slow.stop_reading()
        fast = await door.answer(door.call("GET", path_of(slow)))
        assert numbered(fast.body)[-1][2] == "[DONE]"
        assert b"[DONE]" not in slow.body
        slow.read_on()
        await door.answer(slow)
        assert slow.body == fast.body

    run(play)


def test_only_the_owner_sees_a_stream(tmp_path: Path) -> None:
    async def play() -> None:
        keys = KeyStore(tmp_path / "keys.json")
        mine, theirs = (
            {"authorization": f"Bearer {keys.create(name)[1]}"} for name in ("one", "two")
        )
        door = Door(engine_saying(TEXT), keys=keys, stream_ttl_s=0.2)
        first = await door.answer(door.post(CHAT, ask(), mine))
        ways = [("GET", ""), ("GET", "/events"), ("DELETE", ""), ("POST", "/cancel")]
        ways.append(("POST", "/token"))
        for method, rest in ways:
            path = path_of(first, rest)
            assert (await door.call(method, path, headers=mine).ended()).status == 200
            other = await door.call(method, path, headers=theirs).ended()
            assert code_of(other) == (404, "stream_not_found")
            nobody = await door.call(method, path).ended()
            assert code_of(nobody) == (401, "invalid_api_key")
        await eventually(lambda: len(door.serving.streams) == 0)
        gone = await door.call("GET", path_of(first), headers=mine).ended()
        never = await door.call("GET", path_of(first), headers=theirs).ended()
        assert (gone.status, never.status) == (410, 404)

    run(play)


def test_a_token_reads_one_stream_and_does_nothing_else(tmp_path: Path) -> None:
    async def play() -> None:
        keys = KeyStore(tmp_path / "keys.json")
        record, secret = keys.create("one")
        mine = {"authorization": f"Bearer {secret}"}
        door = Door(engine_saying(TEXT), keys=keys)
        first = await door.answer(door.post(CHAT, ask(), mine))
        other = await door.answer(door.post(CHAT, ask(), mine))
        token = first.header("x-headrace-stream-token")
        made = json.loads(
            (await door.call("POST", path_of(first, "/token"), headers=mine).ended()).body
        )
        assert made["object"] == "stream.token" and made["url"].startswith(
            path_of(first) + "?token="
        )
        for url in (path_of(first, f"?token={token}"), made["url"]):
            again = await door.call("GET", url).ended()
            assert again.body == first.body
            assert again.header("x-headrace-stream-token") is None
        again = await door.call("GET", path_of(first), headers=mine).ended()
        assert again.header("x-headrace-stream-token") is not None
        page = await door.call("GET", path_of(first, f"/events?token={token}&wait=1")).ended()
        following = json.loads(page.body)["next"]
        assert (await door.call("GET", following).ended()).status == 200
        for method, path in [
            ("GET", path_of(other)),
            ("GET", path_of(other, "/events")),
            ("DELETE", path_of(first)),
            ("POST", path_of(first, "/cancel")),
            ("POST", path_of(first, "/token")),
        ]:
            refused = await door.call(method, f"{path}?token={token}").ended()
            assert code_of(refused) == (401, "invalid_api_key"), path
        keys.revoke(record.id)
        revoked = await door.call("GET", made["url"]).ended()
        assert code_of(revoked) == (401, "invalid_api_key")

    run(play)


def test_an_open_server_needs_no_token() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        first = await door.answer(door.post(CHAT, ask()))
        again = await door.call("GET", path_of(first, "?token=undefined")).ended()
        assert again.status == 200

    run(play)


def test_pages_of_other_origins_read_the_names() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT), cors_origins=("https://app.example",))
        call = await door.answer(door.post(CHAT, ask(), {"origin": "https://app.example"}))
        exposed = call.header("access-control-expose-headers") or ""
        assert {"x-headrace-stream", "x-headrace-stream-token"} <= set(exposed.split(", "))
        again = door.call("GET", path_of(call), headers={"origin": "https://app.example"})
        await again.ended()
        assert again.header("access-control-allow-origin") == "https://app.example"
        foreign = await door.call(
            "GET", path_of(call), headers={"origin": "https://evil.example"}
        ).ended()
        assert foreign.status == 403

    run(play)


def test_tokens_are_counted_once_and_all_of_them() -> None:
    async def play() -> None:
        door = Door(engine_saying(TEXT))
        first = await begin(door)
        first.leave()
        await first.ended()
        assert door.ended == []  # the stream goes on
        other = await door.answer(door.call("GET", path_of(first)))
        assert numbered(other.body)
        facts = {fact.endpoint: fact for fact in door.ended}
        assert set(facts) == {"/chat/completions", "/streams/{id}"}
        assert facts["/chat/completions"].num_completion_tokens == len(TEXT) + 1
        assert facts["/chat/completions"].status == 499
        assert facts["/chat/completions"].total_s < 20
        assert facts["/streams/{id}"].num_completion_tokens == 0

    run(play)


def test_one_failed_choice_ends_the_stream_for_all() -> None:
    async def play() -> None:
        door = Door(engine_saying("x" * 200))
        first = await begin(door, n=2)
        (kept,) = door.serving.streams._live.values()
        failure = kept.pump.tally.failure(0, GenerationFailed("it broke"))
        kept.pump.hear([failure], 0.0)
        await door.answer(first)
        assert numbered(first.body)[-1][1] == "error"
        await door.turn(2)
        over = await door.call("GET", path_of(first, f"?after={len(numbered(first.body))}")).ended()
        assert over.status == 204
        door.assert_nothing_is_held()

    run(play)
