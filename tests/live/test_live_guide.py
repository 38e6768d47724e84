"""Every program of the product guide, run as it is printed there, against `headrace serve`.

What the guide leaves out, it is given: imports, a store of conversations, the arguments of `...`.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastapi.testclient
import groq
import httpx
import pytest

from support.clients import MODEL, groq_client, use_up, user
from support.node import Node, program
from support.servers import Server, running_server

GUIDE = Path(__file__).parent / "guide"
QUESTION = "Name three colours."


def run(name: str, **given: Any) -> dict[str, Any]:
    """The module that a program of the guide becomes."""
    module = dict(given)
    exec(compile((GUIDE / name).read_text("utf-8"), name, "exec"), module)
    return module


@pytest.fixture
def at_real(real: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The guide's own clients go to our server: the only thing that a user changes."""
    monkeypatch.setenv("GROQ_BASE_URL", real.base_url)
    monkeypatch.setenv("GROQ_API_KEY", "any")
    return real


def tokens(frames: list[str]) -> list[str]:
    return [json.loads(frame)["token"] for frame in frames]


def frames_of(body: str) -> list[str]:
    """The data of server-sent events of one line each."""
    frames = body.split("\n\n")
    assert frames.pop() == ""
    assert all(frame.startswith("data: ") for frame in frames)
    return [frame.removeprefix("data: ") for frame in frames]


def test_streaming(at_real: Server) -> None:
    *said, end = run("streaming.py")["stream_chat"](QUESTION)
    assert json.loads(end) == {"done": True}
    assert len(tokens(said)) > 3
    assert all(tokens(said))


def test_streaming_begins_before_the_answer_is_whole(at_real: Server) -> None:
    stream = run("streaming.py")["stream_chat"]("Tell me a long story.")
    next(stream)
    assert at_real.metrics()["headrace_requests_open"] >= 1
    stream.close()


def test_retry_with_backoff(real_home: Path, tmp_path: Path) -> None:
    """It sleeps for 0.5 and 1 s; one request in 1.2 s is admitted."""
    limits = tmp_path / "limits.toml"
    limits.write_text(f'[models."{MODEL}"]\nrpm = 50\n')
    with running_server("--limits", str(limits), home=real_home) as server:
        completions = groq_client(server).chat.completions
        statuses: list[int] = []

        def ask() -> Any:
            try:
                return completions.create(model=MODEL, messages=user(QUESTION), max_tokens=1)
            except groq.APIStatusError as error:
                statuses.append(error.status_code)
                raise

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: ask(), range(48)))
        use_up(ask)
        statuses.clear()
        given = SimpleNamespace(create=lambda ellipsis: ask())
        client = SimpleNamespace(chat=SimpleNamespace(completions=given))
        response = run("retry.py", client=client)["response"]
        assert response.choices[0].message.role == "assistant"
        assert statuses
        assert set(statuses) == {429}


class Conversations:
    """What the guide's servers keep between two questions."""

    def __init__(self) -> None:
        self.kept: dict[str, list[dict[str, str]]] = {}
        self.appended: list[tuple[str, str]] = []

    async def get(self, name: str) -> list[dict[str, str]]:
        return self.kept.get(name, [])

    async def append(self, name: str, content: str) -> None:
        self.appended.append((name, content))


def test_fastapi(at_real: Server) -> None:
    store = Conversations()
    store.kept["old"] = [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Hello, Ada!"},
    ]
    app: fastapi.FastAPI = run(
        "fastapi_main.py",
        os=os,
        get_conversation=store.get,
        append_to_conversation=store.append,
    )["app"]
    client = fastapi.testclient.TestClient(app)
    for name in ("old", "new"):
        asked = {"prompt": QUESTION, "conversation_id": name}
        response = client.post("/api/chat", json=asked)
        assert response.headers["content-type"].startswith("text/event-stream")
        *said, end = frames_of(response.text)
        assert end == "[DONE]"
        assert len(said) > 3
        assert [(name, token) for token in tokens(said)] == store.appended
        store.appended.clear()


@contextmanager
def express(node: Node, real: Server) -> Iterator[str]:
    """The guide's Express server; yields its address."""
    environ = node.environment({"GROQ_BASE_URL": real.base_url, "GROQ_API_KEY": "any"})
    harness = Path(__file__).parent / "node" / "express_harness.cjs"
    process = subprocess.Popen(
        [program("node"), str(harness), str(GUIDE / "server.js")],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(10)
        finally:
            process.kill()


def test_express(node: Node, real: Server) -> None:
    with express(node, real) as url:
        asked = {"prompt": QUESTION, "conversationId": "new"}
        response = httpx.post(f"{url}/api/chat", json=asked, timeout=60)
        *said, end = frames_of(response.text)
        assert end == "[DONE]"
        assert len(said) > 3
        assert httpx.get(f"{url}/kept/new").json() == tokens(said)
        response = httpx.post(f"{url}/api/chat", json=asked | {"conversationId": "old"}, timeout=60)
        assert frames_of(response.text)[-1] == "[DONE]"
