"""Questions over a WebSocket: answers, refusals, cancelling, leaving, resuming, closing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.events import Delta, Event
from headrace.server.app import create_app
from headrace.server.keys import KeyStore
from headrace.server.socket import connection
from headrace.testing import FakeModel, ManualEngine
from headrace.wire.chat_answer import ChatStream
from support.asgi import CHAT, COMPLETIONS, Door, engine_saying, run, settle, streamed_text
from support.sockets import SocketCall, is_last, question

RESUMABLE = {"stream_options": {"resumable": True}}


async def done(door: Door, socket: SocketCall, *answer_ids: str) -> None:
    """Step until these have their last message."""
    for _ in range(500):
        await settle()
        if all(any(map(is_last, socket.of(answer_id))) for answer_id in answer_ids):
            return
        await door.turn()
    raise AssertionError(f"no end of {answer_ids}: {socket.messages}")


def played(play: Callable[[Door, SocketCall], Any], **settings: Any) -> Door:
    """A test with a door and a socket, which is left in the end; nothing may be held then."""
    doors = []

    async def whole() -> None:
        door = Door(settings.pop("engine", None), **settings)
        doors.append(door)
        socket = SocketCall.at(door)
        await play(door, socket)
        socket.leave()
        for _ in range(20):
            await door.turn()
        await socket.ended()
        door.serving.streams.close()
        await door.turn()
        door.assert_nothing_is_held()

    run(whole)
    return doors[0]


def test_an_answer_is_the_chunks_of_a_stream() -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        socket.ask("a", seed=1)
        await done(door, socket, "a")
        first, *chunks, last = socket.of("a")
        assert list(first) == ["id", "headers"]
        request_id = first["headers"]["x-request-id"]
        assert first["headers"]["x-headrace-model"] == "fake"
        assert last == {"id": "a", "data": "[DONE]"}
        assert all(list(chunk) == ["id", "data"] for chunk in chunks)
        assert {chunk["data"]["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert chunks[0]["data"]["x_groq"] == {"id": request_id, "seed": 1}
        assert chunks[-1]["data"]["choices"][0]["finish_reason"] == "stop"
        assert socket.text("a") == "Hello."

    door = played(play)
    (fact,) = door.ended
    assert (fact.endpoint, fact.status, fact.is_streamed) == ("/chat/completions", 200, True)
    assert (fact.client_request_id, fact.finish_reasons) == ("a", ("stop",))
    assert fact.num_completion_tokens == 7


def test_chunks_are_those_of_sse() -> None:
    """But for what names the answer."""

    def bare(chunk: Any) -> Any:
        return {name: chunk[name] for name in ("object", "model", "system_fingerprint", "choices")}

    async def play(door: Door, socket: SocketCall) -> None:
        asked = {"n": 2, "logprobs": True, "seed": 1, "max_tokens": 3}
        call = await door.answer(door.post(CHAT, {**question(""), "stream": True, **asked}))
        lines = call.body.decode().split("\n\n")
        socket.ask("a", **asked)
        await done(door, socket, "a")
        over_http = [bare(json.loads(line[6:])) for line in lines[:-2]]
        over_socket = [bare(each["data"]) for each in socket.of("a")[1:-1]]
        for chunks in (over_http, over_socket):  # how choices are interleaved is chance
            chunks.sort(key=lambda chunk: chunk["choices"][0]["index"])
        assert over_socket == over_http

    played(play)


def test_several_at_once_take_turns_in_one_write() -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        for answer_id in "abcd":
            socket.ask(answer_id, ignore_eos=True, max_tokens=20)
        await door.turn(3)
        before = len(socket.writes)
        num_before = len(socket.messages)
        await door.turn()
        assert socket.writes[before:] == [4]
        assert {message["id"] for message in socket.messages[num_before:]} == set("abcd")
        await done(door, socket, *"abcd")
        assert len({socket.text(answer_id) for answer_id in "abcd"}) == 1

    assert [fact.status for fact in played(play).ended] == [200] * 4


def test_without_the_extension_messages_go_one_by_one() -> None:
    async def play() -> None:
        door = Door()
        socket = SocketCall.at(door, takes_many=False)
        socket.ask("a")
        await done(door, socket, "a")
        assert socket.text("a") == "Hello."
        assert set(socket.writes) == {1}
        socket.leave()
        await socket.ended()

    run(play)


@pytest.mark.parametrize(
    ("message", "answer_id", "param"),
    [
        ("{", None, None),
        (b"\xff", None, None),
        ("[]", None, None),
        ("", None, None),
        ({"model": "fake"}, None, "id"),
        ({"id": ""}, None, "id"),
        ({"id": "x" * 129}, None, "id"),
        ({"id": 7}, None, "id"),
        ({"id": "x", "type": "input.stop"}, "x", "type"),
        ({"id": "x", "type": 5}, "x", "type"),
        ({"id": "x"}, "x", "model"),
        (question("x", stream=False), "x", "stream"),
        (question("x", temperature=9), "x", "temperature"),
        (question("x", model="nobody"), "x", None),
        (question("x", max_tokens=10**6), "x", "max_completion_tokens"),
        ({"id": "x", "type": "resume"}, "x", "stream"),
        ({"id": "x", "type": "resume", "stream": "s", "after": -1}, "x", "after"),
        ({"id": "x", "type": "resume", "stream": "s", "after": True}, "x", "after"),
        ({"id": "x", "type": "resume", "stream": "stream_none"}, "x", None),
    ],
)
def test_a_bad_message_is_refused_and_harms_nobody(
    message: Any, answer_id: str | None, param: str | None
) -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        socket.ask("a")
        await door.turn(2)
        socket.say(message)
        await settle()
        (refused,) = socket.of(answer_id)
        assert refused["error"]["message"] and refused["error"]["type"] == "invalid_request_error"
        assert refused["error"].get("param") == param
        assert refused["error"]["status_code"] in (400, 404)
        assert refused["headers"]["x-request-id"].startswith("req_")
        await done(door, socket, "a")
        assert socket.text("a") == "Hello."
        assert len(socket.of(answer_id)) == 1
        socket.ask("y")
        await done(door, socket, "y")
        assert socket.close is None

    statuses = sorted(fact.status for fact in played(play).ended)
    assert statuses in ([200, 200, 400], [200, 200, 404])


def test_binary_messages_are_read_too() -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        socket.say(json.dumps(question("a")).encode())
        await done(door, socket, "a")
        assert socket.text("a") == "Hello."

    played(play)


def test_message_after_message_that_is_nothing_closes() -> None:
    async def play() -> None:
        door = Door()
        socket = SocketCall.at(door)
        for _ in range(connection.MAX_BAD - 1):
            socket.say("{")
        socket.say({"id": ""})  # bad, but an object
        for _ in range(connection.MAX_BAD - 1):
            socket.say("{")
        await settle(40)
        assert not socket.has_ended
        socket.ask("a", ignore_eos=True)
        for _ in range(connection.MAX_BAD):
            socket.say("no")
        await settle(100)
        await door.turn(2)
        await socket.ended()
        assert socket.close is not None and socket.close[0] == 1003
        door.assert_nothing_is_held()

    run(play)


def test_an_id_that_is_in_use_is_refused_under_null() -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        socket.ask("a")
        await door.turn(2)
        socket.ask("a")
        await settle()
        (refused,) = socket.of(None)
        assert "'a'" in refused["error"]["message"] and refused["error"]["param"] == "id"
        await done(door, socket, "a")
        assert sum(map(is_last, socket.of("a"))) == 1
        socket.ask("a")
        await door.turn(20)
        assert sum(map(is_last, socket.of("a"))) == 2

    played(play)


def test_cancelling_ends_as_an_answer_ends() -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        socket.ask("a", ignore_eos=True)
        socket.ask("b", ignore_eos=True)
        await door.turn(4)
        socket.say({"id": "a", "type": "cancel"})
        await done(door, socket, "a")
        assert socket.of("a")[-1]["data"] == "[DONE]"
        socket.say({"id": "a", "type": "cancel"})  # it has ended
        socket.say({"id": "c", "type": "cancel"})  # it never was
        await door.turn(3)
        assert socket.of("c") == [] and not any(map(is_last, socket.of("b")))
        assert door.engine.stats().num_running == 1

    first, second = played(play, engine=ManualEngine()).ended
    assert (first.status, first.finish_reasons) == (200, ("cancelled",))
    assert (second.status, second.finish_reasons) == (499, ("cancelled",))


def test_cancelling_before_anything_runs() -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        socket.ask("a", ignore_eos=True)
        socket.say({"id": "a", "type": "cancel"})
        await done(door, socket, "a")
        assert socket.text("a") == ""

    played(play)


def test_leaving_cancels() -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        for answer_id in "ab":
            socket.ask(answer_id, ignore_eos=True)
        await door.turn(3)
        assert door.engine.stats().num_running == 2
        socket.leave()
        await door.turn(2)
        await socket.ended()
        assert door.engine.stats().num_running == 0

    facts = played(play, engine=ManualEngine()).ended
    assert [(fact.status, fact.finish_reasons) for fact in facts] == [(499, ("cancelled",))] * 2
    assert all(fact.num_completion_tokens for fact in facts)


def test_leaving_at_once() -> None:
    """Whatever was asked in the same breath is not answered, or cancelled."""

    async def play(door: Door, socket: SocketCall) -> None:
        await settle()
        socket.ask("a", ignore_eos=True)
        socket.ask("b", ignore_eos=True, **RESUMABLE)
        socket.leave()
        await door.turn(3)
        await socket.ended()
        await door.turn()
        door.assert_nothing_is_held()

    assert {fact.status for fact in played(play).ended} == {499}


@pytest.mark.parametrize("after", [0, 1, 3, 5, 8, 9, 1000])
@pytest.mark.parametrize("is_live", [True, False])
def test_a_resumable_answer_is_come_back_to(after: int, is_live: bool) -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        socket.ask("a", **RESUMABLE)
        await door.turn(4 if is_live else 20)
        stream = socket.of("a")[0]["headers"]["x-headrace-stream"]
        socket.leave()
        await socket.ended()
        again = SocketCall.at(door)
        again.say({"id": "z", "type": "resume", "stream": stream, "after": after})
        await done(door, again, "z")
        opening, *messages = again.of("z")
        assert opening["headers"]["x-headrace-stream"] == stream
        # Started, six letters, the end, [DONE].
        assert [each["event"] for each in messages] == list(range(min(after, 8) + 1, 10))
        assert again.text("z") == "Hello."[max(0, after - 1) :]
        call = await door.answer(door.call("GET", f"/v1/streams/{stream}"))
        over_http = [
            part
            for part in call.body.decode().removeprefix("retry: 1000\n").split("\n\n")
            if part.startswith("id:")
        ]
        assert len(over_http) == 9
        again.leave()
        await again.ended()

    door = played(play)
    endpoints = [(fact.endpoint, fact.num_completion_tokens) for fact in door.ended]
    assert sorted(endpoints) == [
        ("/chat/completions", 7),
        ("/streams/{id}", 0),
        ("/streams/{id}", 0),
    ]


def test_several_readers_of_one_stream_on_one_socket() -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        socket.ask("a", **RESUMABLE)
        await door.turn(3)
        stream = socket.of("a")[0]["headers"]["x-headrace-stream"]
        for answer_id in "bc":
            socket.say({"id": answer_id, "type": "resume", "stream": stream})
        await done(door, socket, *"abc")
        bodies = [[{**m, "id": ""} for m in socket.of(each)[1:]] for each in "abc"]
        assert bodies[0] == bodies[1] == bodies[2]

    played(play)


def test_cancelling_stops_a_resumable_answer_for_all() -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        socket.ask("a", ignore_eos=True, **RESUMABLE)
        await door.turn(3)
        stream = socket.of("a")[0]["headers"]["x-headrace-stream"]
        socket.say({"id": "b", "type": "resume", "stream": stream})
        await door.turn(2)
        socket.say({"id": "b", "type": "cancel"})
        await done(door, socket, "a", "b")
        assert door.engine.stats().num_running == 0

    played(play, engine=ManualEngine())


def test_a_stream_of_another_endpoint_is_not_told_here() -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        asked = {"model": "fake", "prompt": "x", "stream": True, **RESUMABLE}
        call = await door.answer(door.post(COMPLETIONS, asked))
        stream = call.header("x-headrace-stream")
        socket.say({"id": "z", "type": "resume", "stream": stream})
        await settle()
        assert socket.of("z")[0]["error"]["param"] == "stream"

    played(play)


def test_a_slow_reader_gets_merged_deltas() -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        asked = {"ignore_eos": True, "max_tokens": 200, "seed": 1}
        socket.ask("a", **asked)
        await door.turn(3)
        socket.stop_reading()
        await door.turn(150)
        assert socket.num_waiting == 1
        socket.read_on()
        await done(door, socket, "a")
        assert len(socket.of("a")) < 70
        alone = await door.answer(door.post(CHAT, {**question(""), "stream": True, **asked}))
        assert socket.text("a") == streamed_text(alone.body)

    played(play, engine=ManualEngine())


@pytest.mark.parametrize("num_answers", [1, 3])
def test_a_message_a_token_while_the_reader_keeps_up_also_after_a_pause(num_answers: int) -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        ids = "abc"[:num_answers]
        for answer_id in ids:
            socket.ask(answer_id, ignore_eos=True, max_tokens=120, seed=1)
        await door.turn(4)
        for num_missed in (0, 10, 0):
            if num_missed:
                socket.stop_reading()
                await door.turn(num_missed)
                socket.read_on()
                await door.turn()
            before = len(socket.messages)
            for _ in range(5):
                await door.turn()
            said = [message["id"] for message in socket.messages[before:]]
            assert sorted(said) == sorted(ids * 5)
        await done(door, socket, *ids)
        assert {len(socket.text(answer_id)) for answer_id in ids} == {120}

    played(play, engine=ManualEngine(FakeModel(rule=lambda _: ord("a"))))


def test_an_answer_that_cannot_be_written_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = ChatStream.encode

    def fails_in_the_middle(self: ChatStream, event: Event) -> bytes:
        if isinstance(event, Delta) and event.start == 3 and self._is_bad:  # type: ignore[attr-defined]
            raise ValueError("no")
        return encode(self, event)

    async def play(door: Door, socket: SocketCall) -> None:
        monkeypatch.setattr(ChatStream, "_is_bad", False, raising=False)
        monkeypatch.setattr(ChatStream, "encode", fails_in_the_middle)
        socket.ask("a", n=1)
        await done(door, socket, "a")
        monkeypatch.setattr(ChatStream, "_is_bad", True)
        socket.ask("b")
        await done(door, socket, "b")
        assert socket.of("b")[-1]["error"]["status_code"] == 500
        monkeypatch.setattr(ChatStream, "_is_bad", False)
        socket.ask("c")
        await done(door, socket, "c")
        assert socket.text("a") == socket.text("c") == "Hello."
        assert [sum(map(is_last, socket.of(each))) for each in "abc"] == [1, 1, 1]

    played(play)


def test_who_does_not_read_is_not_listened_to() -> None:
    """What can wait to be sent is bounded."""

    async def play(door: Door, socket: SocketCall) -> None:
        await settle()
        socket.stop_reading()
        for _ in range(1000):
            socket.say({"id": ""})
        await settle(1500)
        assert len(door.ended) < 200
        socket.read_on()
        await settle(1500)
        assert len(socket.of(None)) == 1000

    played(play)


def test_leaving_while_the_last_message_waits() -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        socket.ask("a")
        await door.turn(2)
        socket.stop_reading()
        await door.turn(20)
        socket.leave()
        await settle()
        await socket.ended()

    (fact,) = played(play).ended
    assert fact.status == 499


def test_the_most_at_the_same_time() -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        for number in range(7):
            socket.ask(str(number), ignore_eos=True)
        socket.say({"id": "7", "type": "input.append", "text": "also counts"})
        for number in (8, 9):
            socket.ask(str(number), ignore_eos=True)
        await settle(40)
        refused = [message for message in socket.messages if "error" in message]
        assert [message["id"] for message in refused] == ["8", "9"]
        assert {message["error"]["status_code"] for message in refused} == {429}

    played(play, engine=ManualEngine(), socket_answers=8)


def test_an_engine_s_failure_is_the_last_message() -> None:
    async def play() -> None:
        door = Door(ManualEngine())
        socket = SocketCall.at(door)
        socket.ask("a", ignore_eos=True)
        socket.ask("b", ignore_eos=True, **RESUMABLE)
        await door.turn(3)
        door.engine.close()
        await settle(40)
        for answer_id in "ab":
            *_, last = socket.of(answer_id)
            assert (last["error"]["code"], last["error"]["status_code"]) == ("engine_closed", 503)
            assert sum(map(is_last, socket.of(answer_id))) == 1
        numbers = [message["event"] for message in socket.of("b")[1:]]
        assert numbers == list(range(1, len(numbers) + 1))
        socket.leave()
        await socket.ended()
        assert [fact.status for fact in door.ended] == [200, 200]

    run(play)


def test_draining_answers_what_was_asked_and_takes_no_more() -> None:
    async def play(door: Door, socket: SocketCall) -> None:
        socket.ask("a")
        await door.turn(2)
        door.serving.begin_drain()
        socket.ask("b")
        await settle()
        assert socket.of("b")[0]["error"]["code"] == "server_draining"
        assert socket.of("b")[0]["headers"]["retry-after"] == "25"
        assert door.serving.num_open == 1
        late = await SocketCall.at(door).ended()
        assert late.status == 503 and b"server_draining" in late.refusal
        await done(door, socket, "a")
        assert socket.text("a") == "Hello."
        await settle()
        assert door.serving.num_open == 0

    assert sorted(fact.status for fact in played(play).ended) == [200, 503, 503]


def test_an_idle_socket_is_closed() -> None:
    async def play() -> None:
        door = Door(socket_idle_s=0.05)
        socket = SocketCall.at(door)
        socket.ask("a", ignore_eos=True)
        await door.turn(2)
        await asyncio.sleep(0.12)
        assert socket.close is None  # it is being answered
        socket.say({"id": "a", "type": "cancel"})
        await done(door, socket, "a")
        await socket.ended()
        assert socket.close is not None and socket.close[0] == 1000

    run(play)


# --- who may come ---------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> tuple[KeyStore, str, str]:
    store = KeyStore(tmp_path / "keys.json")
    record, secret = store.create("tester")
    return store, record.id, secret


def test_a_key_by_header_or_by_subprotocol(keys: tuple[KeyStore, str, str]) -> None:
    store, key_id, secret = keys

    async def play() -> None:
        door = Door(keys=store)
        for how in (
            {"headers": {"authorization": f"Bearer {secret}"}},
            {"subprotocols": ["headrace", f"headrace.key.{secret}"]},
            {"subprotocols": [f"headrace.key.{secret}"]},
        ):
            socket = SocketCall.at(door, **how)
            socket.ask("a")
            await done(door, socket, "a")
            assert socket.text("a") == "Hello."
            assert socket.accepted is not None
            wanted = "headrace" if "headrace" in how.get("subprotocols", ()) else None
            assert socket.accepted["subprotocol"] == wanted
            assert secret not in repr(socket.accepted) + repr(socket.messages)
            socket.leave()
            await socket.ended()
        assert [fact.tenant for fact in door.ended] == [key_id] * 3

    run(play)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"headers": {"authorization": "Bearer gsk_wrong"}},
        {"subprotocols": ["headrace", "headrace.key.gsk_wrong"]},
        {"subprotocols": ["headrace.key."]},
        {"subprotocols": ["headrace"]},
    ],
)
def test_without_a_key_the_upgrade_is_refused(
    keys: tuple[KeyStore, str, str], how: dict[str, Any]
) -> None:
    async def play() -> None:
        door = Door(keys=keys[0])
        socket = await SocketCall.at(door, **how).ended()
        assert socket.accepted is None and socket.status == 401
        assert json.loads(socket.refusal)["error"]["code"] == "invalid_api_key"
        (fact,) = door.ended
        assert (fact.status, fact.endpoint) == (401, "/chat/completions")

    run(play)


def test_a_key_that_is_revoked_asks_no_more(keys: tuple[KeyStore, str, str]) -> None:
    store, key_id, secret = keys

    async def play() -> None:
        door = Door(keys=store)
        socket = SocketCall.at(door, headers={"authorization": f"Bearer {secret}"})
        socket.ask("a")
        await door.turn(3)
        store.revoke(key_id)
        socket.ask("b")
        await done(door, socket, "a", "b")
        assert socket.text("a") == "Hello."
        assert socket.of("b")[0]["error"]["status_code"] == 401
        socket.leave()
        await socket.ended()

    run(play)


def test_somebody_else_s_stream_is_not_found(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    secrets = [store.create(name)[1] for name in ("one", "two")]

    async def play() -> None:
        door = Door(keys=store)
        mine, theirs = (
            SocketCall.at(door, headers={"authorization": f"Bearer {secret}"}) for secret in secrets
        )
        mine.ask("a", **RESUMABLE)
        await done(door, mine, "a")
        stream = mine.of("a")[0]["headers"]["x-headrace-stream"]
        theirs.say({"id": "z", "type": "resume", "stream": stream})
        await settle()
        assert theirs.of("z")[0]["error"]["code"] == "stream_not_found"
        for socket in (mine, theirs):
            socket.leave()
            await socket.ended()
        door.serving.streams.close()

    run(play)


def test_a_foreign_page_is_kept_away_from_an_open_server() -> None:
    async def play() -> None:
        door = Door()
        for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
            socket = await SocketCall.at(door, headers=headers).ended()
            assert (socket.accepted, socket.status) == (None, 403)
        assert [fact.status for fact in door.ended] == [403, 403]
        near = SocketCall.at(door, headers={"origin": "http://localhost:3000"})
        await settle()
        assert near.accepted is not None
        near.leave()
        await near.ended()

    run(play)


def test_limits_hold_here_too() -> None:
    async def play() -> None:
        door = Door(engine_saying("Hello."), limits="groq-free")
        app = create_app(door.serving)
        socket = SocketCall(app, "/openai/v1/chat/completions")
        for number in range(32):
            socket.ask(str(number))
        await done(door, socket, *map(str, range(32)))
        refused = [message for message in socket.messages if "error" in message]
        assert refused and {each["error"]["status_code"] for each in refused} == {429}
        assert all("retry-after" in each["headers"] for each in refused)
        opening = socket.of("0")[0]["headers"]
        assert opening["x-ratelimit-remaining-requests"]
        socket.leave()
        await socket.ended()
        assert len(door.limit_hits) == len(refused)

    run(play)
