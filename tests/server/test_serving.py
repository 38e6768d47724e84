"""What a server has, and its count of what is being answered."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from headrace.errors import RateLimited, ServerDraining, SettingsError
from headrace.observe.observer import LimitHit
from headrace.server.keys import KeyStore
from support.asgi import CHAT, Door, run, settle
from support.bodies import chat_body


def test_open_questions_are_counted_however_they_end() -> None:
    serving = Door().serving
    with serving.open(), serving.open():
        assert serving.num_open == 2
    with pytest.raises(KeyError), serving.open():
        raise KeyError
    assert serving.num_open == 0


def test_a_server_that_drains_opens_no_more() -> None:
    serving = Door(drain_timeout_s=7).serving
    with serving.open():
        serving.begin_drain()
        with pytest.raises(ServerDraining) as refused, serving.open():
            pass
        assert refused.value.retry_after_s == 7
        assert serving.num_open == 1
    assert serving.num_open == 0


def test_who_meets_a_limit_is_told_of(tmp_path: Path) -> None:
    limits = tmp_path / "limits.toml"
    limits.write_text("[default]\nrpd = 1\n")

    async def play() -> None:
        door = Door(limits=str(limits))
        await door.serving.admit("me", "m", 1, None, "on_demand")
        for _ in range(2):
            with pytest.raises(RateLimited):
                await door.serving.admit("me", "m", 1, None, "on_demand")
        assert door.facts == [LimitHit("me", "m", "RPD")] * 2
        assert dict(door.serving.limit_headers("me", "m"))[b"x-ratelimit-limit-requests"] == b"1"

    run(play)


@pytest.mark.parametrize("settings", [{"limits": "/nowhere.toml"}, {"aliases": {"a": "b"}}])
def test_settings_that_make_no_sense(settings: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        Door(**settings)


EVIL = {"origin": "http://evil.com"}


async def status_of(door: Door, headers: dict[str, str]) -> int:
    return (await door.answer(door.call("GET", "/v1/models", headers=headers))).status


def test_who_may_be_reached_by_web_pages(tmp_path: Path) -> None:
    async def play() -> None:
        keys = KeyStore(tmp_path / "keys.json")
        door = Door(keys=keys)
        assert await status_of(door, EVIL) == 403
        _, secret = keys.create("me")
        assert await status_of(door, {**EVIL, "authorization": f"Bearer {secret}"}) == 200

    asyncio.run(play())


@pytest.mark.parametrize(
    ("host", "headers", "status"),
    [
        ("0.0.0.0", {"host": "box.lan:8000"}, 200),
        ("0.0.0.0", {"host": "box.lan:8000", "origin": "http://box.lan:8000"}, 200),
        ("0.0.0.0", {"host": "box.lan:8000", "origin": "http://box.lan:9000"}, 403),
        ("0.0.0.0", {"host": "box.lan:8000", **EVIL}, 403),
        ("127.0.0.1", {"host": "box.lan:8000"}, 403),
        ("127.0.0.1", {"host": "localhost:8000", **EVIL}, 403),
    ],
)
def test_an_insecure_server_keeps_foreign_pages_away(
    host: str, headers: dict[str, str], status: int
) -> None:
    async def play() -> None:
        door = Door(insecure=True, host=host)
        assert await status_of(door, headers) == status

    asyncio.run(play())


def test_metrics_tell_of_what_is_open_and_what_was_asked() -> None:
    async def play() -> None:
        door = Door()
        call = door.post(CHAT, chat_body(model="fake"))
        await settle()
        text, _ = door.serving.render_metrics("")
        assert b"headrace_requests_open 1.0" in text
        await door.answer(call)
        text, _ = door.serving.render_metrics("")
        assert b"headrace_requests_open 0.0" in text
        labels = b'{endpoint="/chat/completions",model="fake",status="200"}'
        assert b"headrace_requests_total" + labels + b" 1.0" in text
        assert b'headrace_engine_banks{model="fake",state="held"} 0.0' in text

    run(play)
