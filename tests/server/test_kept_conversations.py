"""Conversations over HTTP: turns by every endpoint, OpenAI's objects, and our own beside them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import DatabaseFailed
from headrace.server.keys import KeyStore
from headrace.testing import END_ID
from headrace.testing.asgi import Call
from support.asgi import CHAT, RESPONSES, Door, engine_saying, settle
from support.asgi import run as run_alone
from support.kept_door import drained, kept_door, run, stepped

CONVERSATIONS = "/v1/conversations"
API = "/api/chat"


@pytest.fixture
def door(tmp_path: Path) -> Any:
    door = kept_door(tmp_path)
    yield door
    door.serving.conversations.close()


async def ended(call: Call) -> Any:
    """The JSON of an answer that needs no engine."""
    await asyncio.wait_for(call.ended(), 30)
    return json.loads(call.body)


async def items(door: Door, named: str, **headers: str) -> list[tuple[str, str, str]]:
    """Role, text and status of each, oldest first."""
    call = door.call("GET", f"{CONVERSATIONS}/{named}/items?order=asc&limit=100", headers=headers)
    listed = await ended(call)
    return [
        (item["role"], item["content"][0]["text"], item["status"])
        for item in listed["data"]
        if item["type"] == "message"
    ]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("", {"title": "a\0"}, "title"),
        ("/mill", {"title": "a\0"}, "title"),
        ("/mill/rollback", {"to": "a\0"}, "to"),
        ("/mill/fork", {"at": "a\0"}, "at"),
        ("/import", {"messages": [], "head_id": "a\0"}, "head_id"),
        (CHAT, {"conversation": {"id": "mill", "after": "a\0"}}, "conversation.after"),
        (RESPONSES, {"previous_response_id": "a\0"}, "previous_response_id"),
    ],
)
def test_a_nul_is_refused_by_name(door: Door, path: str, body: Any, param: str) -> None:
    """PostgreSQL would fail, and a whole group of others' work with it."""

    async def play() -> None:
        await ended(door.post(CONVERSATIONS, {"id": "mill"}))
        question = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
        asked = {CHAT: question, RESPONSES: {"model": "fake", "input": "x"}}.get(path, {})
        call = door.post(path if asked else CONVERSATIONS + path, asked | body)
        error = (await ended(call))["error"]
        assert (call.status, error["param"]) == (400, param), error

    run(door, play)


def test_nothing_is_at_a_path_with_a_nul(door: Door) -> None:
    async def play() -> None:
        await ended(door.post(CONVERSATIONS, {"id": "mill"}))
        for path in ("/a%00", "/a%00/items", "/mill/items/a%00"):
            call = door.call("GET", CONVERSATIONS + path)
            error = (await ended(call))["error"]
            assert (call.status, error["code"]) == (404, "conversation_not_found")
            assert "NUL" in error["message"]  # it was not looked for

    run(door, play)


def chat(text: str, conversation: Any, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "fake", "messages": messages, "conversation": conversation, **fields}


def prompt_of(door: Door) -> str:
    """What the engine was told last, as text."""
    voices = list(door.engine._loop._choices)
    return bytes(t for t in voices[-1].submission.prompt if t < 256).decode("utf-8", "replace")


def test_the_guide_s_chat_remembers(door: Door) -> None:
    async def play() -> None:
        for number, spelling in enumerate(("conversation_id", "conversationId")):
            call = door.post(API, {"prompt": f"question {number}", spelling: "my chat/1"})
            await stepped(door, call)
            assert call.status == 200
            assert call.header("content-type") == "text/event-stream"
            assert call.header("cache-control") == "no-cache"
            assert call.header("x-accel-buffering") == "no"
            assert call.header("x-headrace-conversation-id") == "my chat/1"
            *lines, done = call.body.decode().split("\n\n")[:-1]
            assert done == "data: [DONE]"
            tokens = [json.loads(line.removeprefix("data: "))["token"] for line in lines]
            assert "".join(tokens) == "Hello."
        assert await items(door, "my%20chat/1") == [
            ("user", "question 0", "completed"),
            ("assistant", "Hello.", "completed"),
            ("user", "question 1", "completed"),
            ("assistant", "Hello.", "completed"),
        ]

    run(door, play)


def test_a_chat_without_a_name_gets_one(door: Door) -> None:
    async def play() -> None:
        call = await stepped(door, door.post(API, {"prompt": "hi"}, {"accept": "application/json"}))
        named = call.header("x-headrace-conversation-id")
        assert named.startswith("conv_")
        assert call.header("content-type") == "text/event-stream"
        assert [role for role, _, _ in await items(door, named)] == ["user", "assistant"]

    run(door, play)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": "hi", "conversation_id": "x" * 129}, 400, "conversation_id"),
        ({"prompt": "hi", "conversation_id": "a\0b"}, 400, "conversation_id"),
        ({"prompt": "hi", "conversation_id": "a", "conversationId": "b"}, 400, "conversationId"),
        ({"prompt": "hi", "max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": "hi", "model": "nobody"}, 404, None),
    ],
)
def test_a_refusal_is_one_line_and_leaves_nothing(
    door: Door, body: dict[str, Any], status: int, param: str | None
) -> None:
    async def play() -> None:
        call = await stepped(door, door.post(API, {"conversation_id": "kept", **body}))
        assert call.status == status
        assert call.header("content-type") == "text/event-stream"
        first, rest = call.body.decode().split("\n\n")
        assert rest == ""
        assert json.loads(first.removeprefix("data: "))["error"].get("param") == param
        assert (await ended(door.call("GET", CONVERSATIONS)))["data"] == []

    run(door, play)


def test_a_chat_s_history_is_told_before_what_is_new(door: Door) -> None:
    async def play() -> None:
        made = await ended(door.post(CONVERSATIONS, {"metadata": {"a": "b"}}))
        for text in ("first", "second"):
            call = door.post(CHAT, chat(text, {"id": made["id"]}))
            while not door.engine.stats().num_pending_requests:
                await asyncio.sleep(0.002)
            await door.turn()
            told = prompt_of(door)
            await stepped(door, call)
            assert call.status == 200
            assert call.header("x-headrace-conversation-id") == made["id"]
        assert told.index("first") < told.index("Hello.") < told.index("second")

    run(door, play)


def test_a_conversation_that_is_not_there(door: Door) -> None:
    async def play() -> None:
        asked = {"model": "fake", "input": "hi"}
        for method, path, body in (
            ("POST", CHAT, chat("hi", "nobody")),
            ("POST", RESPONSES, {**asked, "conversation": "nobody"}),
            ("POST", RESPONSES, {**asked, "previous_response_id": "resp_x"}),
            ("GET", f"{CONVERSATIONS}/nobody", b""),
            ("DELETE", f"{CONVERSATIONS}/nobody", b""),
            ("GET", f"{CONVERSATIONS}/nobody/items", b""),
        ):
            call = await stepped(door, door.call(method, path, body))
            assert (call.status, json.loads(call.body)["error"]["code"]) == (
                404,
                "conversation_not_found",
            )

    run(door, play)


def test_one_turn_at_a_time_or_queued(door: Door) -> None:
    async def play() -> None:
        first = door.post(API, {"prompt": "one", "conversation_id": "c"})
        while not door.engine.stats().num_pending_requests:
            await asyncio.sleep(0.002)
        busy = await ended_any(door.post(API, {"prompt": "two", "conversation_id": "c"}))
        assert busy.status == 409 and b'"code":"conversation_busy"' in busy.body
        change = door.post(f"{CONVERSATIONS}/c/items", {"items": [item("x")]})
        assert (await ended_any(change)).status == 409
        queued = [
            door.post(API, {"prompt": f"queued {n}", "conversation_id": "c", "queue": True})
            for n in range(3)
        ]
        await settle()
        assert not any(call.has_ended for call in queued)
        for call in (first, *queued):
            assert (await stepped(door, call)).status == 200
        said = [text for role, text, _ in await items(door, "c") if role == "user"]
        assert said == ["one", "queued 0", "queued 1", "queued 2"]

    run(door, play)


def test_who_leaves_the_queue_asks_nothing(door: Door) -> None:
    async def play() -> None:
        first = door.post(API, {"prompt": "one", "conversation_id": "c"})
        while not door.engine.stats().num_pending_requests:
            await asyncio.sleep(0.002)
        queued = [
            door.post(API, {"prompt": f"queued {n}", "conversation_id": "c", "queue": True})
            for n in range(2)
        ]
        await settle()
        queued[0].leave()
        await ended_any(queued[0])
        assert not first.has_ended
        for call in (first, queued[1]):
            assert (await stepped(door, call)).status == 200
        said = [text for role, text, _ in await items(door, "c") if role == "user"]
        assert said == ["one", "queued 1"]

    run(door, play)


async def ended_any(call: Call) -> Call:
    return await asyncio.wait_for(call.ended(), 30)


def item(text: str, role: str = "user") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": text}


def test_what_was_said_is_kept_when_the_client_leaves(tmp_path: Path) -> None:
    door = kept_door(tmp_path, engine_saying("A long answer that breaks off."))

    async def play() -> None:
        call = door.post(API, {"prompt": "one", "conversation_id": "c"})
        while not door.engine.stats().num_pending_requests:
            await asyncio.sleep(0.002)
        await door.turn(7)
        call.leave()
        await stepped(door, call)
        await door.turn(2)
        await drained(door)
        (_, (role, text, status)) = await items(door, "c")
        assert (role, status) == ("assistant", "incomplete")
        assert text and "A long answer that breaks off.".startswith(text)
        again = await stepped(door, door.post(API, {"prompt": "two", "conversation_id": "c"}))
        assert again.status == 200
        assert len(await items(door, "c")) == 4

    run(door, play)
    door.serving.conversations.close()


def test_answers_are_saved_while_they_grow(tmp_path: Path) -> None:
    door = kept_door(tmp_path, engine_saying("A long answer that grows."))

    async def play() -> None:
        call = door.post(API, {"prompt": "one", "conversation_id": "c"})
        while not door.engine.stats().num_pending_requests:
            await asyncio.sleep(0.002)
        await door.turn(9)
        while not (found := await items(door, "c"))[1:] or not found[1][1]:
            await asyncio.sleep(0.02)
        assert found[1][2] == "in_progress"
        assert "A long answer that grows.".startswith(found[1][1])
        await stepped(door, call)

    run(door, play)
    door.serving.conversations.close()


def test_the_same_key_again_adds_nothing(door: Door) -> None:
    async def play() -> None:
        for _ in range(2):
            call = door.post(
                API, {"prompt": "one", "conversation_id": "c"}, {"idempotency-key": "k"}
            )
            await stepped(door, call)
            assert call.status == 200 and call.body.endswith(b"data: [DONE]\n\n")
            assert call.header("x-headrace-conversation-id") == "c"
        assert len(await items(door, "c")) == 2

    run(door, play)


def test_responses_follow_each_other(door: Door) -> None:
    async def play() -> None:
        first = json.loads(
            (await stepped(door, door.post(RESPONSES, {"model": "fake", "input": "one"}))).body
        )
        assert first["store"] is True
        for _ in range(2):  # several may follow the same
            body = {"model": "fake", "input": "two", "previous_response_id": first["id"]}
            call = door.post(RESPONSES, body)
            while not door.engine.stats().num_pending_requests:
                await asyncio.sleep(0.002)
            await door.turn()
            assert prompt_of(door).index("one") < prompt_of(door).index("two")
            told = json.loads((await stepped(door, call)).body)
            assert told["previous_response_id"] == first["id"]
        # Nobody listed them, and what was not stored cannot be followed.
        assert (await ended(door.call("GET", CONVERSATIONS)))["data"] == []
        passing = {"model": "fake", "input": "x", "store": False}
        lost = json.loads((await stepped(door, door.post(RESPONSES, passing))).body)
        body = {"model": "fake", "input": "two", "previous_response_id": lost["id"]}
        assert (await stepped(door, door.post(RESPONSES, body))).status == 404

    run(door, play)


def test_a_response_s_items_keep_their_ids_in_its_conversation(door: Door) -> None:
    async def play() -> None:
        made = await ended(door.post(CONVERSATIONS, {"items": [item("Be brief.", "system")]}))
        body = {
            "model": "fake",
            "input": "hi",
            "conversation": made["id"],
            "instructions": "for this turn alone",
        }
        told = json.loads((await stepped(door, door.post(RESPONSES, body))).body)
        await drained(door)
        listed = await ended(door.call("GET", f"{CONVERSATIONS}/{made['id']}/items"))
        assert listed["data"][0]["id"] == told["output"][0]["id"]
        assert [each["role"] for each in listed["data"]] == ["assistant", "user", "system"]

    run(door, play)


def test_edit_and_retry_is_a_branch(door: Door) -> None:
    async def play() -> None:
        await stepped(door, door.post(API, {"prompt": "one", "conversation_id": "c"}))
        await stepped(door, door.post(API, {"prompt": "two", "conversation_id": "c"}))
        await drained(door)
        listed = await ended(door.call("GET", f"{CONVERSATIONS}/c/items?order=asc"))
        after = listed["data"][1]["id"]
        edited = chat("two, edited", {"id": "c", "after": after})
        assert (await stepped(door, door.post(CHAT, edited))).status == 200
        await drained(door)
        texts = [text for _, text, _ in await items(door, "c")]
        assert texts == ["one", "Hello.", "two, edited", "Hello."]
        back = door.post(f"{CONVERSATIONS}/c/rollback", {"to": listed["last_id"]})
        assert (await ended(back))["head_id"] == listed["last_id"]
        assert [text for _, text, _ in await items(door, "c")][2] == "two"
        afresh = chat("afresh", {"id": "c", "after": "root"})
        await stepped(door, door.post(CHAT, afresh))
        await drained(door)
        assert [text for _, text, _ in await items(door, "c")] == ["afresh", "Hello."]

    run(door, play)


def test_what_is_no_turn_is_refused(door: Door) -> None:
    async def play() -> None:
        await ended(door.post(CONVERSATIONS, {"id": "c"}))
        begun = chat("x", "c")
        begun["messages"].append({"role": "assistant", "content": "I"})
        for body, param in ((chat("x", "c", n=2), "n"), (begun, "messages")):
            call = await ended_any(door.post(CHAT, body))
            assert (call.status, json.loads(call.body)["error"]["param"]) == (400, param)

    run(door, play)


def test_export_and_import(door: Door) -> None:
    async def play() -> None:
        await stepped(door, door.post(API, {"prompt": "Tell me", "conversation_id": "c"}))
        await drained(door)
        exported = await ended(door.call("GET", f"{CONVERSATIONS}/c/export"))
        assert exported["messages"][1]["token_ids"] == [*b"Hello.", END_ID]
        copy = await ended(door.post(f"{CONVERSATIONS}/import", exported))
        assert await items(door, copy["id"]) == await items(door, "c")
        text = await ended_any(door.call("GET", f"{CONVERSATIONS}/c/export?format=markdown"))
        assert text.body.decode() == "# c\n\n## User\n\nTell me\n\n## Assistant\n\nHello.\n"

    run(door, play)


def test_what_is_null_is_cleared(door: Door) -> None:
    async def play() -> None:
        context = {"strategy": "sliding_window", "max_tokens": 300}
        given = {"title": "Mill", "metadata": {"a": "b"}, "context": context}
        await ended(door.post(CONVERSATIONS, {"id": "c", **given}))
        path = f"{CONVERSATIONS}/c"
        cleared = {"title": None, "metadata": {}, "context": None}
        for name, nothing in cleared.items():
            shown = await ended(door.post(path, {name: None}))
            assert shown[name] == nothing
            assert {other: shown[other] for other in given if other != name} == {
                other: given[other] for other in given if other != name
            }
            assert await ended(door.call("GET", path)) == shown
            await ended(door.post(path, {name: given[name]}))
        shown = await ended(door.post(path, dict.fromkeys(cleared)))
        assert {name: shown[name] for name in cleared} == cleared
        refused = await ended_any(door.post(path, {"title": None, "metadata": 7}))
        assert refused.status == 400

    run(door, play)


def test_an_answer_that_its_limit_cut_did_not_break_off(door: Door) -> None:
    async def play() -> None:
        body = {"prompt": "Tell me", "conversation_id": "c", "max_tokens": 3}
        await stepped(door, door.post(API, body))
        await drained(door)
        exported = await ended(door.call("GET", f"{CONVERSATIONS}/c/export"))
        (_, cut) = exported["messages"]
        assert (cut["status"], cut["metadata"]["finish_reason"]) == ("incomplete", "length")
        text = await ended_any(door.call("GET", f"{CONVERSATIONS}/c/export?format=markdown"))
        assert text.body.decode().endswith("Hel\n\n*(cut at its limit of tokens)*\n")

    run(door, play)


def test_a_part_of_a_message_is_deleted_once(door: Door) -> None:
    async def play() -> None:
        told = {"role": "assistant", "reasoning": "Hm.", "content": "Yes."}
        messages = [{"id": "m", "parent_id": None, "message": told}]
        made = await ended(door.post(f"{CONVERSATIONS}/import", {"messages": messages}))
        path = f"{CONVERSATIONS}/{made['id']}/items"
        thought = (await ended(door.call("GET", path + "?order=asc")))["data"][0]
        assert thought["type"] == "reasoning"
        for status in (200, 404):
            call = await ended_any(door.call("DELETE", f"{path}/{thought['id']}"))
            assert call.status == status
        (left,) = (await ended(door.call("GET", path)))["data"]
        assert left["content"][0]["text"] == "Yes."

    run(door, play)


def test_deleting_stops_the_turn_and_leaves_nothing(door: Door) -> None:
    async def play() -> None:
        call = door.post(API, {"prompt": "one", "conversation_id": "c"})
        while not door.engine.stats().num_pending_requests:
            await asyncio.sleep(0.002)
        await door.turn(2)
        gone = await ended(door.call("DELETE", f"{CONVERSATIONS}/c"))
        assert gone == {"id": "c", "object": "conversation.deleted", "deleted": True}
        await stepped(door, call)
        await drained(door)
        with door.serving.conversations.store.database.engine.connect() as connection:
            for table in ("conversations", "messages", "messages_fts"):
                assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() == 0

    run(door, play)


def test_its_streams_go_with_it(door: Door) -> None:
    async def play() -> None:
        streams = []
        for named in ("c", "d"):
            body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
            kept = {"conversation": named, "stream": True, "stream_options": {"resumable": True}}
            await ended(door.post(CONVERSATIONS, {"id": named}))
            call = await stepped(door, door.post(CHAT, {**body, **kept}))
            streams.append(str(call.header("x-headrace-stream")))
        await ended(door.call("DELETE", f"{CONVERSATIONS}/c"))
        reads = [await door.call("GET", f"/v1/streams/{one}").ended() for one in streams]
        assert [read.status for read in reads] == [410, 200]
        door.serving.streams.close()

    run(door, play)


def test_tenants_have_conversations_of_their_own(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path / "keys.json")
    tokens = [keys.create(name)[1] for name in ("a", "b")]
    door = kept_door(tmp_path, keys=keys)

    async def play() -> None:
        for number, token in enumerate(tokens):
            headers = {"authorization": f"Bearer {token}"}
            body = {"prompt": f"secret {number}", "conversation_id": "same"}
            await stepped(door, door.post(API, body, headers))
            await drained(door)
            found = await items(door, "same", **headers)
            assert [text for _, text, _ in found] == [f"secret {number}", "Hello."]
            search = door.call("GET", f"{CONVERSATIONS}?query=secret", headers=headers)
            assert len((await ended(search))["data"]) == 1

    run(door, play)
    door.serving.conversations.close()


def test_where_no_database_is_to_be_had_it_is_said_why() -> None:
    """And not that waiting would help."""
    door = Door()
    with pytest.raises(DatabaseFailed):
        door.serving.conversations.open("sqlite:////proc/nobody/c.db")

    async def play() -> None:
        refused = await door.answer(door.post(API, {"prompt": "one"}))
        assert refused.status == 503 and b"not kept on this server: the database" in refused.body
        assert refused.header("retry-after") is None

    run_alone(play)


def test_without_a_database_only_what_needs_one_is_refused() -> None:
    door = Door()

    async def play() -> None:
        call = await door.answer(door.post(RESPONSES, {"model": "fake", "input": "one"}))
        assert call.status == 200
        refused = await door.answer(door.post(API, {"prompt": "one"}))
        assert refused.status == 503 and b"database_failed" in refused.body

    run_alone(play)
