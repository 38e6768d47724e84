"""Questions that come piece by piece: computed ahead, answered as if they had been asked whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.engine.engine import EngineConfig
from headrace.engine.scheduler import SchedulerConfig
from headrace.server.keys import KeyStore
from headrace.server.socket import ahead
from headrace.testing import END_ID, FakeModel, ManualEngine, saying
from support.asgi import CHAT, Door, run, settle, streamed_text
from support.sockets import SocketCall, is_last, text_of

SYSTEM = {"role": "system", "content": "You are a patient miller."}
STORY = "Once upon a time a miller lived beside a quick river, and the wheel turned day and night"
ASKED = {"model": "fake", "messages": [SYSTEM], "seed": 1}


class Hall:
    """A door whose model counts what it computes, and one client."""

    def __init__(self, *, step_tokens: int = 512, **settings: Any) -> None:
        self.model = FakeModel(rule=saying(b"Hello.", END_ID))
        config = EngineConfig(scheduler=SchedulerConfig(max_step_tokens=step_tokens, max_running=8))
        self.door = Door(ManualEngine(self.model, config), **settings)
        self.socket = SocketCall.at(self.door)

    def append(self, text: str, answer_id: str = "a", **fields: Any) -> None:
        self.socket.say({"id": answer_id, "type": "input.append", "text": text, **fields})

    def commit(self, answer_id: str = "a", **fields: Any) -> None:
        self.socket.say({"id": answer_id, "type": "input.commit", **fields})

    async def done(self, *answer_ids: str, times: int = 1) -> None:
        for _ in range(300):
            await settle()
            if all(sum(map(is_last, self.socket.of(each))) == times for each in answer_ids):
                return
            await self.door.turn()
        raise AssertionError(self.socket.messages)

    async def leave(self) -> None:
        self.socket.leave()
        for _ in range(10):
            await self.door.turn()
        await self.socket.ended()
        self.door.serving.streams.close()
        await self.door.turn(2)
        self.door.assert_nothing_is_held()


def played(play: Callable[[Hall], Any], **settings: Any) -> Hall:
    halls = []

    async def whole() -> None:
        hall = Hall(**settings)
        halls.append(hall)
        await play(hall)
        await hall.leave()

    run(whole)
    return halls[0]


def pieces(text: str, size: int = 7) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def bare(messages: Sequence[dict[str, Any]]) -> list[Any]:
    """Chunks without what names the answer, or counts what was in the cache."""
    names = ("object", "model", "system_fingerprint", "choices")
    chunks = [message["data"] for message in messages if isinstance(message.get("data"), dict)]
    return [{name: chunk[name] for name in names} for chunk in chunks]


def test_a_question_in_pieces_is_the_question_whole() -> None:
    async def play(hall: Hall) -> None:
        hall.append("", **ASKED)
        for piece in pieces(STORY):
            hall.append(piece)
            await hall.door.turn()
        hall.commit()
        await hall.done("a")
        hall.socket.say({**ASKED, "id": "b", "messages": [SYSTEM, user(STORY)]})
        await hall.done("b")
        assert list(hall.socket.of("a")[0]) == ["id", "headers"]
        assert hall.socket.text("a") == "Hello."
        assert bare(hall.socket.of("a")) == bare(hall.socket.of("b"))

    first, second = played(play).door.ended
    assert first.num_prompt_tokens == second.num_prompt_tokens
    assert (first.endpoint, first.status, first.client_request_id) == (
        "/chat/completions",
        200,
        "a",
    )
    # All but the unsure end and what was not worth a look.
    unsure = len(" night::assistant:") + 16
    assert first.num_prompt_tokens - first.num_cached_tokens <= unsure


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_what_is_known_is_computed_before_it_is_asked() -> None:
    async def play(hall: Hall) -> None:
        hall.append("", **ASKED)
        await hall.door.turn(2)
        # The template's own words, and the system message.
        assert hall.model.num_computed_tokens >= 32
        before = hall.model.num_computed_tokens
        hall.append(STORY)
        await hall.door.turn(2)
        assert hall.model.num_computed_tokens - before >= len(STORY) - 16 - len(" night")
        assert hall.socket.messages == [] and hall.door.ended == []
        hall.socket.say({"id": "a", "type": "cancel"})

    assert played(play).door.ended == []


def test_never_more_work_than_text() -> None:
    async def play(hall: Hall) -> None:
        hall.append("", **ASKED)
        for character in STORY:
            hall.append(character)
            await hall.door.turn()
            assert hall.door.engine.stats().num_pending_requests <= 1
        num_prompt = len("<system:><user:>" + SYSTEM["content"] + STORY)
        assert hall.model.num_computed_tokens <= num_prompt

    played(play)


def test_one_prompt_at_a_time_however_fast_the_text_comes() -> None:
    async def play(hall: Hall) -> None:
        hall.append("", **ASKED)
        for piece in pieces(STORY, 2):
            hall.append(piece)
        await settle(200)
        assert hall.door.engine.stats().num_pending_requests == 1
        await hall.door.turn(4)
        assert hall.door.engine.stats().num_pending_requests == 0
        assert hall.model.num_computed_tokens > len(STORY)

    played(play)


@given(st.text(min_size=1, max_size=60), st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_in_any_pieces(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    async def play(hall: Hall) -> None:
        hall.append(parts[0], **ASKED)
        for part in parts[1:]:
            hall.append(part)
            await hall.door.turn()
        hall.commit()
        hall.socket.say({**ASKED, "id": "b", "messages": [SYSTEM, user(text)]})
        await hall.done("a", "b")
        assert bare(hall.socket.of("a")) == bare(hall.socket.of("b"))

    facts = played(play).door.ended
    assert len({fact.num_prompt_tokens for fact in facts}) == 1


def test_the_body_may_be_given_with_the_commit() -> None:
    async def play(hall: Hall) -> None:
        hall.append("How are")
        hall.append(" you")
        await hall.door.turn()
        hall.commit(text=", miller?", **ASKED, max_tokens=3)
        await hall.done("a")
        assert hall.socket.text("a") == "Hel"
        hall.commit("b", text="alone", **ASKED)
        await hall.done("b")
        assert hall.socket.text("b") == "Hello."

    first, _ = played(play).door.ended
    call = "".join(("user:", "How are you, miller?", "system:", SYSTEM["content"], "assistant:"))
    assert first.num_prompt_tokens == len(call) + 3 + 2


def test_clearing_forgets_the_text_alone() -> None:
    async def play(hall: Hall) -> None:
        hall.append("What nonsense is this?", **ASKED)
        await hall.door.turn()
        hall.socket.say({"id": "a", "type": "input.clear"})
        hall.append("Hi")
        hall.commit()
        hall.socket.say({**ASKED, "id": "b", "messages": [SYSTEM, user("Hi")]})
        await hall.done("a", "b")
        assert bare(hall.socket.of("a")) == bare(hall.socket.of("b"))

    first, second = played(play).door.ended
    assert first.num_prompt_tokens == second.num_prompt_tokens


def test_clearing_stops_what_is_computed() -> None:
    async def play(hall: Hall) -> None:
        hall.append(STORY, **ASKED)
        await hall.door.turn(1)
        assert hall.door.engine.stats().num_pending_requests == 1
        hall.socket.say({"id": "a", "type": "input.clear"})
        await hall.door.turn(1)
        assert hall.door.engine.stats().num_pending_requests == 0
        assert hall.model.num_computed_tokens < 60

    played(play, step_tokens=32)


def test_cleared_before_anything_began_it_is_computed_ahead_later() -> None:
    async def play(hall: Hall) -> None:
        hall.append(STORY, **ASKED)
        hall.socket.say({"id": "a", "type": "input.clear"})
        await hall.door.turn(3)
        hall.append(STORY)
        await hall.door.turn(3)
        assert hall.model.num_computed_tokens >= 64
        hall.socket.say({"id": "a", "type": "cancel"})

    played(play)


def test_what_will_never_fit_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    preparing = ahead.prepare

    async def prepare(serving: Any, exchange: Any, asks: Any) -> Any:
        looked_at.append(len(asks[0].messages[-1]["content"]))
        return await preparing(serving, exchange, asks)

    monkeypatch.setattr(ahead, "prepare", prepare)

    async def play(hall: Hall) -> None:
        hall.append(STORY * 4, **ASKED)
        await hall.door.turn()
        assert looked_at == [len(STORY) * 4]
        for piece in pieces(STORY, 20):
            hall.append(piece)
            await hall.door.turn()
        assert looked_at == [len(STORY) * 4]
        hall.socket.say({"id": "a", "type": "input.clear"})
        hall.append(STORY)
        await hall.door.turn(2)
        assert hall.model.num_computed_tokens >= 64
        hall.append(STORY * 4)
        hall.commit()
        await hall.done("a")
        (refused,) = hall.socket.of("a")
        assert refused["error"]["status_code"] == 400

    played(play)


@pytest.mark.parametrize("how", ["cancel", "leave"])
def test_who_does_not_ask_after_all(how: str) -> None:
    async def play(hall: Hall) -> None:
        hall.append(STORY, **ASKED)
        hall.append(STORY, "b", **ASKED)
        await hall.door.turn(1)
        assert hall.door.engine.stats().num_running == 1  # the other one needs the same
        if how == "leave":
            hall.socket.leave()
        else:
            for answer_id in "ab":
                hall.socket.say({"id": answer_id, "type": "cancel"})
        await hall.door.turn(1)
        hall.door.assert_nothing_is_held()
        assert hall.socket.messages == []

    assert played(play, step_tokens=32).door.ended == []


def test_committed_while_it_is_computed() -> None:
    async def play(hall: Hall) -> None:
        hall.append(STORY, **ASKED)
        await hall.door.turn(1)
        hall.commit()
        await hall.done("a")
        assert hall.socket.text("a") == "Hello."

    hall = played(play, step_tokens=32)
    # Nothing twice: the prompt, a token a step, and at most the bank that one had begun.
    (fact,) = hall.door.ended
    assert hall.model.num_computed_tokens <= fact.num_prompt_tokens + 7 + 16


def test_left_while_it_is_computed_and_answered() -> None:
    async def play(hall: Hall) -> None:
        hall.append(STORY, **ASKED)
        await hall.door.turn(1)
        hall.commit(ignore_eos=True)
        await settle()
        hall.socket.leave()
        await hall.door.turn(1)
        hall.door.assert_nothing_is_held()

    (fact,) = played(play, step_tokens=32).door.ended
    assert fact.status == 499


def test_a_committed_question_may_be_resumable() -> None:
    async def play(hall: Hall) -> None:
        hall.append("Hi", **ASKED, stream_options={"resumable": True})
        hall.commit()
        await hall.done("a")
        assert [message["event"] for message in hall.socket.of("a")[1:]] == list(range(1, 10))

    played(play)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"type": "input.append"}, "text"),
        ({"type": "input.append", "text": 5}, "text"),
        ({"type": "input.commit", "text": None}, "text"),
        ({"type": "input.commit"}, "model"),
        ({"type": "input.commit", **ASKED, "messages": []}, "messages"),
        ({"type": "input.commit", **ASKED, "messages": "no", "text": "Hi"}, "messages"),
        ({"type": "input.commit", **ASKED, "stream": False}, "stream"),
        ({"type": "input.commit", **ASKED, "temperature": 9}, "temperature"),
    ],
)
def test_a_bad_input_is_refused_under_its_id(message: dict[str, Any], param: str) -> None:
    async def play(hall: Hall) -> None:
        hall.socket.say({"id": "x", **message})
        await settle()
        (refused,) = hall.socket.of("x")
        assert (refused["error"]["param"], refused["error"]["status_code"]) == (param, 400)
        hall.socket.say({"id": "x", **ASKED, "messages": [user("Hi")]})  # the id is free
        await hall.done("x", times=2)

    assert [fact.status for fact in played(play).door.ended] == [400, 200]


@pytest.mark.parametrize(
    "message",
    [
        {"type": "input.append"},
        {"type": "input.append", "text": "", "temperature": 1},
        {**ASKED},
        {"type": "resume", "stream": "s"},
    ],
)
def test_an_open_input_outlives_bad_messages_under_its_id(message: dict[str, Any]) -> None:
    async def play(hall: Hall) -> None:
        hall.append("Hi", **ASKED)
        hall.socket.say({"id": "a", **message})
        hall.commit()
        await hall.done("a")
        assert len(hall.socket.of(None)) == 1
        assert hall.socket.text("a") == "Hello."

    assert [fact.status for fact in played(play).door.ended] == [400, 200]


@pytest.mark.parametrize("kind", ["input.append", "input.commit", "input.clear"])
def test_an_id_that_is_being_answered_takes_no_input(kind: str) -> None:
    async def play(hall: Hall) -> None:
        hall.socket.ask("a")
        await hall.door.turn(2)
        hall.socket.say({"id": "a", "type": kind, "text": "more"})
        await hall.done("a")
        assert hall.socket.of(None)[0]["error"]["param"] == "id"
        assert sum(map(is_last, hall.socket.of("a"))) == 1

    played(play)


def test_an_input_that_grows_too_large_is_forgotten() -> None:
    async def play(hall: Hall) -> None:
        hall.append("x" * 300, **ASKED)
        hall.append("x" * 300)
        hall.append("x" * 500)
        await settle()
        (refused,) = hall.socket.of("a")
        assert refused["error"]["status_code"] == 413
        hall.append("Hi", **ASKED)
        hall.commit()
        await hall.done("a", times=2)
        assert text_of(hall.socket.of("a")[1:]) == "Hello."

    assert [fact.status for fact in played(play, max_body_bytes=1000).door.ended] == [413, 200]


def test_what_is_wrong_is_told_when_it_is_asked() -> None:
    """Until then it may become something else."""

    async def play(hall: Hall) -> None:
        hall.append("word " * 200, **{**ASKED, "model": "nobody"})
        hall.append("word " * 200)
        await hall.door.turn(2)
        assert hall.socket.messages == []
        hall.commit(model="fake")
        await hall.done("a")
        assert hall.socket.of("a")[0]["error"]["code"] == "context_length_exceeded"

    played(play)


def test_clearing_what_is_not_there() -> None:
    async def play(hall: Hall) -> None:
        hall.socket.say({"id": "a", "type": "input.clear"})
        await settle()
        assert hall.socket.messages == []

    assert played(play).door.ended == []


def test_a_server_that_drains_computes_nothing_ahead() -> None:
    async def play(hall: Hall) -> None:
        hall.append("", **ASKED)
        await settle()
        hall.door.serving.begin_drain()
        hall.append(STORY)
        await hall.door.turn(2)
        assert hall.door.serving.num_open == 0
        before = hall.model.num_computed_tokens
        hall.append(STORY)
        await hall.door.turn(2)
        assert hall.model.num_computed_tokens == before
        hall.commit()
        await hall.done("a")
        assert hall.socket.of("a")[0]["error"]["code"] == "server_draining"

    played(play)


# --- whose it is ----------------------------------------------------------------------------------


def test_nobody_else_finds_what_was_computed_ahead(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    secrets = [store.create(name)[1] for name in ("one", "two")]

    async def play() -> None:
        hall = Hall(keys=store)
        mine, theirs = (
            SocketCall.at(hall.door, headers={"authorization": f"Bearer {secret}"})
            for secret in secrets
        )
        mine.say({"id": "a", "type": "input.append", "text": STORY, **ASKED})
        await hall.door.turn(3)
        assert hall.model.num_computed_tokens > 60
        for socket, id_ in ((theirs, "z"), (mine, "y")):
            socket.say({**ASKED, "id": id_, "messages": [SYSTEM, user(STORY)]})
        await hall.door.turn(20)
        for socket in (mine, theirs):
            socket.leave()
            await socket.ended()
        cached = {fact.client_request_id: fact.num_cached_tokens for fact in hall.door.ended[-2:]}
        assert cached["z"] == 0 and cached["y"] > 60
        await hall.socket.ended()  # it had no key

    run(play)


def test_a_revoked_key_computes_nothing_ahead(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    record, secret = store.create("tester")

    async def play() -> None:
        hall = Hall(keys=store)
        socket = SocketCall.at(hall.door, headers={"authorization": f"Bearer {secret}"})
        socket.say({"id": "a", "type": "input.append", "text": "", **ASKED})
        await hall.door.turn(2)
        store.revoke(record.id)
        before = hall.model.num_computed_tokens
        socket.say({"id": "a", "type": "input.append", "text": STORY})
        socket.say({"id": "b", "type": "input.append", "text": STORY, **ASKED})
        await hall.door.turn(2)
        assert hall.model.num_computed_tokens == before
        assert socket.of("b")[0]["error"]["status_code"] == 401
        socket.leave()
        await socket.ended()
        await hall.socket.ended()

    run(play)


def test_every_token_is_charged_once_and_one_request(tmp_path: Path) -> None:
    limits = tmp_path / "limits.toml"
    limits.write_text("[default]\nrpm = 10\ntpm = 1000\n")

    async def play(hall: Hall) -> None:
        hall.append("", **ASKED)
        for piece in pieces(STORY):
            hall.append(piece)
            await hall.door.turn()
        hall.commit(max_tokens=10)
        await hall.done("a")
        hall.socket.ask("b", max_tokens=1)
        await hall.done("b")

    hall = played(play, limits=str(limits))
    first, second = hall.door.ended
    told = hall.socket.of("b")[0]["headers"]
    used = 1000 - int(told["x-ratelimit-remaining-tokens"])
    asked_now = second.num_prompt_tokens + 1
    assert abs(used - (first.num_prompt_tokens + first.num_completion_tokens + asked_now)) <= 3


def test_where_the_limits_leave_no_room_nothing_is_computed_ahead(tmp_path: Path) -> None:
    limits = tmp_path / "limits.toml"
    limits.write_text("[default]\ntpm = 60\n")

    async def play(hall: Hall) -> None:
        hall.append(STORY, **ASKED)
        await hall.door.turn(2)
        assert hall.model.num_computed_tokens == 0
        assert hall.door.limit_hits == []

    played(play, limits=str(limits))


def test_over_http_it_is_the_same() -> None:
    async def play(hall: Hall) -> None:
        hall.append(STORY, **ASKED)
        await hall.door.turn(2)
        hall.commit()
        await hall.done("a")
        body = {**ASKED, "messages": [SYSTEM, user(STORY)], "stream": True}
        call = await hall.door.answer(hall.door.post(CHAT, body))
        assert streamed_text(call.body) == hall.socket.text("a")
        assert json.loads(call.body.split(b"\n\n")[0][6:])["model"] == "fake"

    played(play)
