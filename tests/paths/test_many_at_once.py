"""Many clients, several owners, one engine that notices every wrong bank: each hears what it would
hear alone, pays for its own, and nothing is left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from headrace.engine.engine import Engine, EngineConfig
from headrace.engine.scheduler import SchedulerConfig
from headrace.server.keys import KeyStore
from headrace.testing import FakeModel, FakeTemplate, FakeTokenizer
from support.asgi import frames
from support.live_door import Client, LiveDoor, open_door

NUM_QUESTIONS = 24
LIMIT = 1_000_000


def threaded_engine(*, max_running: int, pool_banks: int | None = None) -> Engine:
    model = FakeModel()
    pool_bytes = None if pool_banks is None else pool_banks * model.spec.bank_bytes
    config = EngineConfig(pool_bytes=pool_bytes, scheduler=SchedulerConfig(max_running=max_running))
    return Engine(model, FakeTokenizer(), FakeTemplate(), config)


def question(number: int) -> dict[str, Any]:
    """Prompts that share beginnings, different seeds, any way to answer."""
    return {
        "model": "fake",
        "prompt": "ab" * (number % 7) + str(number % 5),
        "max_tokens": 5 + number % 40,
        "n": 1 + number % 3,
        "seed": number,
        "temperature": 1.0,
        "ignore_eos": True,
        "stream": number % 2 == 0,
    }


def ask(door: LiveDoor, body: dict[str, Any], secret: str) -> list[str]:
    """The texts of an answer's choices."""
    client = Client(door.port)
    raw = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {secret}\r\n"
        f"content-length: {len(raw)}\r\n\r\n"
    )
    client.socket.sendall(head.encode() + raw)
    status, answer = client.read_answer()
    client.leave()
    assert status == 200, answer
    texts = [""] * body["n"]
    if not body["stream"]:
        for choice in json.loads(answer)["choices"]:
            texts[choice["index"]] = choice["text"]
        return texts
    *chunks, done = frames(answer)
    assert done.data == "[DONE]"
    for chunk in chunks:
        for choice in json.loads(chunk.data)["choices"]:
            texts[choice["index"]] += choice["text"]
    return texts


@pytest.fixture
def keys(tmp_path: Path) -> tuple[KeyStore, list[str]]:
    keys = KeyStore(tmp_path / "keys.json")
    return keys, [keys.create(name)[1] for name in ("a", "b", "c")]


@pytest.fixture
def limits(tmp_path: Path) -> str:
    path = tmp_path / "limits.toml"
    path.write_text(f"[default]\ntpd = {LIMIT}\n")
    return str(path)


@pytest.fixture
def alone() -> Iterator[list[list[str]]]:
    """What each question is answered where nobody else asks."""
    with open_door(threaded_engine(max_running=4)) as door:
        yield [ask(door, question(number), "any") for number in range(NUM_QUESTIONS)]


@pytest.mark.parametrize("pool_banks", [None, 16], ids=["room for all", "too little room"])
def test_nobody_notices_the_others(
    alone: list[list[str]],
    keys: tuple[KeyStore, list[str]],
    limits: str,
    pool_banks: int | None,
) -> None:
    store, secrets = keys
    engine = threaded_engine(max_running=8, pool_banks=pool_banks)
    with open_door(engine, keys=store, limits=limits) as door:
        with ThreadPoolExecutor(16) as pool:
            answers = [
                pool.submit(ask, door, question(number), secrets[number % 3])
                for number in range(NUM_QUESTIONS)
            ]
            assert [answer.result(60) for answer in answers] == alone
        door.until(lambda: door.serving.num_open == 0)
        door.until(lambda: len(door.ended) == NUM_QUESTIONS)
        door.assert_nothing_is_held()
        tenants = {fact.tenant for fact in door.ended}
        assert len(tenants) == 3
        for tenant in tenants:
            used = sum(
                fact.num_prompt_tokens - fact.num_cached_tokens + fact.num_completion_tokens
                for fact in door.ended
                if fact.tenant == tenant
            )
            headers = dict(door.serving.limit_headers(tenant, "fake"))
            counted = LIMIT - int(headers[b"x-ratelimit-remaining-tokens"])
            assert used - 60 <= counted <= used  # 12 a second leak
