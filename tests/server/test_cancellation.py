"""At each station the client leaves; one step later everything is free.

A real server and real sockets; the engine moves when the test steps it, so that every station is
where the test says.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.engine.engine import EngineConfig
from headrace.engine.scheduler import SchedulerConfig
from headrace.observe.observer import RequestEnded
from headrace.server.http import MAX_AHEAD
from headrace.testing import FakeModel, ManualEngine
from support.asgi import CHAT, COMPLETIONS, RESPONSES, engine_saying
from support.bodies import chat_body
from support.live_door import Client, LiveDoor, open_door

LEAVING = pytest.mark.parametrize("at_once", [False, True], ids=["closes", "resets"])
STREAM = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
TPD = 10_000


@pytest.fixture
def door(tmp_path: Path) -> Iterator[LiveDoor]:
    limits = tmp_path / "limits.toml"
    limits.write_text(f"[default]\ntpd = {TPD}\nrpd = 100\n")
    with open_door(engine_saying("Hello.", max_running=1), limits=str(limits)) as door:
        yield door


def endless(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "prompt": "x" * 20, "ignore_eos": True, "max_tokens": 200, **fields}


def assert_free_after_one_step(door: LiveDoor, *, num_used: int) -> None:
    """The cancellation has reached the engine's door when the server knows that the client left;
    then a step is all it takes."""
    door.until(lambda: door.num_cancelled)
    door.step()
    stats = door.engine.stats()
    assert stats.num_pending_requests == stats.num_held_banks == 0
    assert stats.num_running == stats.num_waiting == 0
    door.until(lambda: door.serving.num_open == 0)
    door.assert_nothing_is_held()
    assert_used(door, num_used)


def assert_used(door: LiveDoor, num_tokens: int) -> None:
    """No more than that is gone from the limits, and the rest is back."""
    # `num_open` falls after the permit was settled.
    used = TPD - int(
        dict(door.serving.limit_headers("local", "fake"))[b"x-ratelimit-remaining-tokens"]
    )
    assert used in (num_tokens, num_tokens - 1)  # ten seconds leak one


def left(door: LiveDoor) -> list[RequestEnded]:
    return [fact for fact in door.ended if fact.status == 499]


@LEAVING
@STREAM
def test_queued(door: LiveDoor, stream: bool, at_once: bool) -> None:
    ahead = door.ask(COMPLETIONS, endless())
    door.until(lambda: door.num_pending == 1)
    door.step(2)
    client = door.ask(COMPLETIONS, endless(stream=stream))
    door.until(lambda: door.num_pending == 2)
    door.step()
    assert door.engine.stats().num_waiting == 1
    client.leave(at_once=at_once)
    door.until(lambda: door.num_cancelled)
    door.step()
    assert door.num_pending == 1 and door.engine.stats().num_waiting == 0
    door.until(lambda: len(left(door)) == 1)
    assert door.serving.num_open == 1
    ahead.leave()
    assert_free_after_one_step(door, num_used=20 + 4)


@LEAVING
@STREAM
def test_not_yet_seen_by_the_engine(door: LiveDoor, stream: bool, at_once: bool) -> None:
    client = door.ask(COMPLETIONS, endless(stream=stream))
    door.until(lambda: door.num_pending == 1)
    client.leave(at_once=at_once)
    door.until(lambda: door.num_cancelled)
    assert_free_after_one_step(door, num_used=0)


@LEAVING
@STREAM
def test_in_prefill(tmp_path: Path, stream: bool, at_once: bool) -> None:
    config = EngineConfig(scheduler=SchedulerConfig(max_running=1, max_step_tokens=17))
    limits = tmp_path / "limits.toml"
    limits.write_text(f"[default]\ntpd = {TPD}\n")
    with open_door(ManualEngine(FakeModel(), config), limits=str(limits)) as door:
        client = door.ask(COMPLETIONS, endless(prompt="x" * 100, max_tokens=50, stream=stream))
        door.until(lambda: door.num_pending == 1)
        door.step(2)
        assert door.engine.stats().num_held_banks > 0
        client.leave(at_once=at_once)
        # A prompt that was begun counts as a whole.
        assert_free_after_one_step(door, num_used=100)


@LEAVING
@STREAM
def test_decoding(door: LiveDoor, stream: bool, at_once: bool) -> None:
    client = door.ask(COMPLETIONS, endless(stream=stream))
    door.until(lambda: door.num_pending == 1)
    door.step(5)
    if stream:
        client.read_until(b'"text":"H')
    client.leave(at_once=at_once)
    assert_free_after_one_step(door, num_used=20 + 5)


@LEAVING
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat_body(model="fake", n=4, stream=True)),
        (CHAT, chat_body(model="fake", n=4)),
        (COMPLETIONS, endless(prompt=["a", "b"], n=2, stream=True)),
        (RESPONSES, {"model": "fake", "input": "Hi", "stream": True}),
    ],
)
def test_several_choices_and_other_endpoints(
    door: LiveDoor, path: str, body: dict[str, Any], at_once: bool
) -> None:
    client = door.ask(path, body)
    door.until(lambda: door.num_pending >= 1)
    door.step(3)
    client.leave(at_once=at_once)
    door.until(lambda: door.num_cancelled)
    door.step()
    door.until(lambda: door.serving.num_open == 0)
    door.assert_nothing_is_held()


@LEAVING
def test_while_the_body_is_uploaded(door: LiveDoor, at_once: bool) -> None:
    for part in (b"", b'{"model":"fake",'):
        client = Client(door.port)
        client.send_head(COMPLETIONS, b"x" * 1000)
        client.socket.sendall(part)
        num_before = len(left(door))
        client.leave(at_once=at_once)
        door.until(lambda: len(left(door)) > num_before)  # noqa: B023
    door.assert_nothing_is_held()
    assert_used(door, 0)


@LEAVING
@STREAM
def test_during_a_drain(door: LiveDoor, stream: bool, at_once: bool) -> None:
    client = door.ask(COMPLETIONS, endless(stream=stream))
    door.until(lambda: door.num_pending == 1)
    door.step(3)
    door.runner.stop()
    door.until(lambda: door.serving.is_draining)
    late = door.ask(COMPLETIONS, endless())
    assert late.read_answer()[0] == 503
    client.leave(at_once=at_once)
    assert_free_after_one_step(door, num_used=20 + 3)
    door.thread.join(20)
    assert not door.thread.is_alive()


def test_after_the_last_token_is_not_leaving(door: LiveDoor) -> None:
    """Who has all of the answer and closes is not counted as one that left."""
    for stream in (False, True):
        client = door.ask(CHAT, chat_body(model="fake", stream=stream))
        door.until(lambda: door.num_pending == 1)
        door.until(lambda: door.serving.num_open == 0, stepping=True)
        status, body = client.read_answer()
        assert status == 200 and b"stop" in body
        client.leave()
    door.until(lambda: len(door.ended) == 2)
    assert [fact.status for fact in door.ended] == [200, 200]
    # Nor is the engine woken for what has ended.
    assert not door.engine._inbox.has_commands
    door.assert_nothing_is_held()


def test_a_connection_that_asks_again_is_the_same_client(door: LiveDoor) -> None:
    """Streams and whole answers one after the other on one connection; then it leaves."""
    client = Client(door.port)
    for index in range(6):
        client.ask(CHAT, chat_body(model="fake", stream=index % 2 == 0))
        door.until(lambda: door.num_pending == 1)
        door.until(lambda: door.num_pending == 0, stepping=True)
        status, body = client.read_answer()
        assert status == 200 and body.count(b'"finish_reason":"stop"') == 1
    client.ask(COMPLETIONS, endless(stream=True))
    door.until(lambda: door.num_pending == 1)
    door.step(3)
    client.leave()
    door.until(lambda: door.num_cancelled)
    door.step()
    door.until(lambda: door.serving.num_open == 0)
    door.assert_nothing_is_held()


def test_requests_sent_ahead_wait_for_their_turn(door: LiveDoor) -> None:
    """Pipelined: the second is answered after the first."""
    client = Client(door.port)
    for stream in (True, False, True):
        client.ask(CHAT, chat_body(model="fake", stream=stream))
    door.until(lambda: len(door.ended) == 3, stepping=True)
    for stream in (True, False, True):
        assert (b"[DONE]" in client.read_answer()[1]) == stream
    door.assert_nothing_is_held()


@pytest.mark.parametrize("num_ahead", [1, 3, 40])
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("is_silent", [True, False])
def test_who_leaves_with_requests_sent_ahead_leaves_all_of_them(
    door: LiveDoor, num_ahead: int, at_once: bool, is_silent: bool
) -> None:
    """The one that is being answered hears of it, though others wait behind it."""
    client = Client(door.port)
    client.ask(COMPLETIONS, endless(stream=True))
    door.until(lambda: door.num_pending == 1)
    for _ in range(num_ahead):
        client.ask(CHAT, chat_body(model="fake", stream=True))
    if not is_silent:
        door.step(3)
        client.read_until(b"data: ")
    client.leave(at_once=at_once)
    # Of a client that sent very much ahead, it shows when something is written.
    door.until(lambda: door.num_cancelled, stepping=num_ahead > MAX_AHEAD)
    door.step()
    door.until(lambda: door.serving.num_open == 0)
    assert [fact.status for fact in door.ended] == [499]
    door.assert_nothing_is_held()


@pytest.mark.parametrize("leave", [True, False])
def test_nothing_is_logged_as_an_error(
    door: LiveDoor, leave: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that goes away is everyday life."""
    client = door.ask(COMPLETIONS, endless(stream=True), buffer_size=4096)
    door.until(lambda: door.num_pending == 1)
    door.step(20)
    client.leave(at_once=True) if leave else None
    for _ in range(50):
        door.step()
    client.leave()
    door.until(lambda: door.serving.num_open == 0, stepping=True)
    assert [r.getMessage() for r in caplog.records if r.levelname in ("ERROR", "CRITICAL")] == []
