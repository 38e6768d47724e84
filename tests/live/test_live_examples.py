"""The programs in examples/, each against a running headrace, by its base URL alone."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fastapi.testclient
import httpx
import pytest

from support.node import Node, program
from support.servers import Server, get, running_server

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ("--engine", "fake", "--fake-text", "Hello, Ada!", "--fake-rate", "inf")
    with running_server(*flags, home=tmp_path_factory.mktemp("home")) as server:
        yield server


def tokens(body: str) -> str:
    """What a whole stream said."""
    *lines, done = body.split("\n\n")[:-1]
    assert done == "data: [DONE]"
    return "".join(json.loads(line.removeprefix("data: "))["token"] for line in lines)


def kept(server: Server, named: str) -> list[str]:
    status, body = get(server.base_url, f"/v1/conversations/{named}/items?order=asc")
    assert status == 200
    return [item["content"][0]["text"] for item in json.loads(body)["data"]]


def test_fastapi(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_BASE_URL", server.base_url)
    monkeypatch.setenv("GROQ_API_KEY", "any")
    app = runpy.run_path(str(EXAMPLES / "fastapi" / "main.py"))["app"]
    with fastapi.testclient.TestClient(app) as client:
        for question in ("My name is Ada.", "What is my name?"):
            asked = {"prompt": question, "conversation_id": "fastapi"}
            response = client.post("/api/chat", json=asked)
            assert response.headers["content-type"].startswith("text/event-stream")
            assert tokens(response.text) == "Hello, Ada!"
        assert client.post("/api/chat", json={"prompt": "x"}).status_code == 422
    hello = "Hello, Ada!"
    assert kept(server, "fastapi") == ["My name is Ada.", hello, "What is my name?", hello]


def test_fastapi_without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("GROQ_API_KEY", "any")
    app = runpy.run_path(str(EXAMPLES / "fastapi" / "main.py"))["app"]
    with fastapi.testclient.TestClient(app) as client:
        asked = {"prompt": "hi", "conversation_id": "x"}
        [line, rest] = client.post("/api/chat", json=asked).text.split("\n\n")
    assert rest == "" and json.loads(line.removeprefix("data: "))["error"]


@contextmanager
def express(node: Node, server: Server) -> Iterator[str]:
    """The Express server; yields its address."""
    environ = {"GROQ_BASE_URL": server.base_url, "GROQ_API_KEY": "any", "PORT": "0"}
    process = subprocess.Popen(
        [program("node"), str(EXAMPLES / "express" / "server.js")],
        env=node.environment(environ),
        stdout=subprocess.PIPE,
        text=True,
        # A wheel's `node` is a script that starts the real one, which must end with it.
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(15)


def test_express(node: Node, server: Server) -> None:
    with express(node, server) as url:
        for question in ("My name is Ada.", "What is my name?"):
            asked = {"prompt": question, "conversationId": "express"}
            response = httpx.post(f"{url}/api/chat", json=asked, timeout=60)
            assert response.headers["content-type"].startswith("text/event-stream")
            assert tokens(response.text) == "Hello, Ada!"
        assert httpx.post(f"{url}/api/chat", json={"prompt": "x"}).status_code == 400
    hello = "Hello, Ada!"
    assert kept(server, "express") == ["My name is Ada.", hello, "What is my name?", hello]
