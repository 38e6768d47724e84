"""Stored responses over HTTP: shown again, their input, deleted; each by its tenant alone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from headrace.server.keys import KeyStore
from support.asgi import RESPONSES, Door, engine_saying, frames
from support.kept_door import kept_door, run, stepped


@pytest.fixture
def door(tmp_path: Path) -> Any:
    door = kept_door(tmp_path)
    yield door
    door.serving.conversations.close()


async def asked(door: Door, text: str, **fields: Any) -> dict[str, Any]:
    """The response."""
    call = await stepped(door, door.post(RESPONSES, {"model": "fake", "input": text, **fields}))
    assert call.status == 200, call.body
    told: dict[str, Any] = json.loads(call.body)
    return told


async def got(door: Door, path: str, method: str = "GET", status: int = 200, **headers: str) -> Any:
    call = await asyncio.wait_for(door.call(method, path, headers=headers).ended(), 30)
    assert call.status == status, call.body
    return json.loads(call.body)


def texts(items: list[dict[str, Any]]) -> list[str]:
    return [item["content"][0]["text"] for item in items]


def num_rows(door: Door, table: str) -> int:
    with door.serving.conversations.store.database.engine.connect() as connection:
        return int(connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one())


def test_a_response_is_shown_again_as_it_was_answered(door: Door) -> None:
    async def play() -> None:
        fields = {
            "instructions": "Be brief.",
            "metadata": {"a": "b"},
            "temperature": 0.25,
            "tools": [{"type": "function", "name": "now"}],
            "tool_choice": "none",
        }
        told = await asked(door, "hi", **fields)
        shown = await got(door, f"{RESPONSES}/{told['id']}")
        (item,) = shown.pop("output")
        (first,) = told.pop("output")
        told.pop("x_headrace", None)
        assert shown == told
        assert list(shown) == list(told)
        assert shown["usage"]["output_tokens"] == 7 and shown["instructions"] == "Be brief."
        assert (item["id"], item["status"], texts([item])) == (first["id"], "completed", ["Hello."])

    run(door, play)


@pytest.mark.parametrize(
    ("fields", "status", "details"),
    [({}, "completed", None), ({"max_output_tokens": 3}, "incomplete", "max_output_tokens")],
)
def test_its_end_is_kept(door: Door, fields: Any, status: str, details: str | None) -> None:
    async def play() -> None:
        call = await stepped(
            door, door.post(RESPONSES, {"model": "fake", "input": "hi", "stream": True, **fields})
        )
        told = json.loads(frames(call.body)[-1].data)["response"]
        shown = await got(door, f"{RESPONSES}/{told['id']}")
        assert shown["status"] == shown["output"][0]["status"] == told["status"] == status
        assert (shown["incomplete_details"] or {}).get("reason") == details
        assert shown["usage"] == told["usage"]

    run(door, play)


def test_one_that_is_being_said_is_in_progress_and_ends_when_deleted(tmp_path: Path) -> None:
    door = kept_door(tmp_path, engine_saying("A long answer that never comes to its end."))

    async def play() -> None:
        call = door.post(RESPONSES, {"model": "fake", "input": "hi", "stream": True})
        while not door.engine.stats().num_pending_requests:
            await asyncio.sleep(0.002)
        await door.turn(3)
        named = json.loads(frames(call.body)[0].data)["response"]["id"]
        shown = await got(door, f"{RESPONSES}/{named}")
        assert (shown["status"], shown["usage"]) == ("in_progress", None)
        gone = await got(door, f"{RESPONSES}/{named}", "DELETE")
        assert gone == {"id": named, "object": "response", "deleted": True}
        await stepped(door, call)
        assert b"comes to its end" not in call.body
        await got(door, f"{RESPONSES}/{named}", status=404)

    run(door, play)
    assert num_rows(door, "messages") == num_rows(door, "conversations") == 0
    door.serving.conversations.close()


@pytest.mark.parametrize("num_steps", [3, 100], ids=["running", "ended"])
def test_its_stream_goes_with_it(door: Door, num_steps: int) -> None:
    async def play() -> None:
        resumable = {"stream": True, "stream_options": {"resumable": True}}
        calls = [
            door.post(RESPONSES, {"model": "fake", "input": text, **resumable})
            for text in ("hi", "another")
        ]
        while door.engine.stats().num_pending_requests < 2:
            await asyncio.sleep(0.002)
        await door.turn(num_steps)
        names = [json.loads(frames(call.body)[0].data)["response"]["id"] for call in calls]
        streams = [str(call.header("x-headrace-stream")) for call in calls]
        await got(door, f"{RESPONSES}/{names[0]}", "DELETE")
        for call in calls:
            await stepped(door, call)
        gone = await got(door, f"/v1/streams/{streams[0]}", status=410)
        assert gone["error"]["code"] == "stream_gone"
        other = await asyncio.wait_for(door.call("GET", f"/v1/streams/{streams[1]}").ended(), 30)
        assert (other.status, b"response.completed" in other.body) == (200, True)
        await got(door, f"{RESPONSES}/{names[1]}")
        door.serving.streams.close()

    run(door, play)


def test_input_items_are_what_was_told_before(door: Door) -> None:
    async def play() -> None:
        first = await asked(door, "one", instructions="for this turn alone")
        second = await asked(door, "two", previous_response_id=first["id"])
        path = f"{RESPONSES}/{second['id']}/input_items"
        listed = await got(door, path + "?order=asc")
        assert (listed["object"], listed["has_more"]) == ("list", False)
        assert texts(listed["data"]) == ["one", "Hello.", "two"]
        assert [item["role"] for item in listed["data"]] == ["user", "assistant", "user"]
        newest = await got(door, path + "?limit=1")
        assert (texts(newest["data"]), newest["has_more"]) == (["two"], True)
        rest = await got(door, f"{path}?after={newest['last_id']}")
        assert texts(rest["data"]) == ["Hello.", "one"]
        await got(door, path + "?limit=0", status=400)

    run(door, play)


def test_what_others_stand_on_stays_until_they_go(door: Door) -> None:
    async def play() -> None:
        first = await asked(door, "one")
        left, right = [
            await asked(door, text, previous_response_id=first["id"]) for text in ("left", "right")
        ]
        assert num_rows(door, "messages") == 6
        await got(door, f"{RESPONSES}/{first['id']}", "DELETE")
        await got(door, f"{RESPONSES}/{first['id']}", status=404)
        followed = {"model": "fake", "input": "x", "previous_response_id": first["id"]}
        assert (await stepped(door, door.post(RESPONSES, followed))).status == 404
        assert num_rows(door, "messages") == 6
        await got(door, f"{RESPONSES}/{left['id']}", "DELETE")
        assert num_rows(door, "messages") == 4
        told = await got(door, f"{RESPONSES}/{right['id']}/input_items?order=asc")
        assert texts(told["data"]) == ["one", "Hello.", "right"]
        await got(door, f"{RESPONSES}/{right['id']}", "DELETE")
        for table in ("messages", "messages_fts", "responses", "conversations"):
            assert num_rows(door, table) == 0

    run(door, play)


def test_in_a_conversation_the_name_goes_and_the_items_stay(door: Door) -> None:
    async def play() -> None:
        await got(door, "/v1/conversations", "POST")
        (made,) = (await got(door, "/v1/conversations"))["data"]
        told = await asked(door, "hi", conversation=made["id"])
        await got(door, f"{RESPONSES}/{told['id']}", "DELETE")
        await got(door, f"{RESPONSES}/{told['id']}", status=404)
        items = (await got(door, f"/v1/conversations/{made['id']}/items"))["data"]
        assert texts(items) == ["Hello.", "hi"]
        # What the conversation forgets is gone from its responses, too.
        again = await asked(door, "again", conversation=made["id"])
        answer_id = again["output"][0]["id"]
        await got(door, f"/v1/conversations/{made['id']}/items/{answer_id}", "DELETE")
        await got(door, f"{RESPONSES}/{again['id']}", status=404)

    run(door, play)


def test_what_is_not_stored_or_another_s_is_not_there(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path / "keys.json")
    mine, other = ({"authorization": f"Bearer {keys.create(name)[1]}"} for name in ("a", "b"))
    door = kept_door(tmp_path, keys=keys)

    async def play() -> None:
        body = {"model": "fake", "input": "hi"}
        told = json.loads((await stepped(door, door.post(RESPONSES, body, mine))).body)
        passing = door.post(RESPONSES, {**body, "store": False}, mine)
        lost = json.loads((await stepped(door, passing)).body)
        for path, headers in (
            (told["id"], other),
            (f"{told['id']}/input_items", other),
            (lost["id"], mine),
            ("resp_x", mine),
            ("resp%00", mine),
        ):
            error = (await got(door, f"{RESPONSES}/{path}", status=404, **headers))["error"]
            assert error["code"] == "conversation_not_found"
        await got(door, f"{RESPONSES}/{told['id']}", "DELETE", 404, **other)
        await got(door, f"{RESPONSES}/{told['id']}", status=401)
        await got(door, f"{RESPONSES}/{told['id']}", **mine)

    run(door, play)
    door.serving.conversations.close()
