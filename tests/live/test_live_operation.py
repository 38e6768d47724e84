"""`headrace serve` as an operator meets it: its words, its settings, its end."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import groq
import httpx
import pytest

from support.clients import MODEL, groq_client, user
from support.servers import Server, command, environment, eventually, get, running_server

FAKE = ("--engine", "fake", "--fake-rate", "25", "--fake-text", "word " * 50)
ASKED: dict[str, Any] = {"model": "fake", "messages": user("Hello."), "max_tokens": 100}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_line_that_it_prints_works(real: Server) -> None:
    [line] = [line.strip() for line in real.welcome.splitlines() if line.strip().startswith("curl")]
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *frames, done_frame, rest = done.stdout.split("\n\n")
    assert (done_frame, rest) == ("data: [DONE]", "")
    chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")


def test_it_says_what_it_serves(real: Server) -> None:
    assert f"{MODEL} means smollm2-135m-instruct" in real.welcome
    assert f"serves at {real.openai_url} and {real.base_url}/v1" in real.welcome


def test_one_line_of_json_for_each_request(real: Server) -> None:
    answer = groq_client(real).chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "My secret."}], max_tokens=3
    )
    lines = [json.loads(line) for line in real.log.splitlines()]
    [line] = [line for line in lines if line.get("request_id") == answer.x_groq.id]
    assert (line["status"], line["tokens_out"], line["finish_reason"]) == (200, 3, "length")
    assert "secret" not in real.log


def test_settings_of_all_places(tmp_path: Path) -> None:
    """Flags before the environment before the file."""
    port = free_port()
    config = tmp_path / "headrace.toml"
    config.write_text(
        'engine = "fake"\nfake_text = "from the file"\nmodels = ["a", "b"]\n'
        'port = 1\n[aliases]\n"*" = "b"\n'
    )
    environ = {"HEADRACE_PORT": str(port), "HEADRACE_FAKE_TEXT": "from the environment"}
    with running_server(
        "--config", str(config), "--fake-text", "from a flag", environ=environ
    ) as server:
        assert server.base_url == f"http://127.0.0.1:{port}"
        answer = groq_client(server).chat.completions.create(**{**ASKED, "model": "whatever"})
        assert answer.choices[0].message.content == "from a flag"
        served = groq_client(server).models.list().data
        assert [model.id for model in served] == ["a", "b", "all-minilm-l6-v2"]


def test_the_file_in_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text('engine = "fake"\nport = 0\nmax_pending = 7\n')
    done = subprocess.run(
        command("serve", "--check"),
        cwd=tmp_path,
        env=environment(tmp_path, {}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "fake" in done.stdout
    (tmp_path / "headrace.toml").write_text("max_pendin = 7\n")
    done = subprocess.run(
        command("serve"),
        cwd=tmp_path,
        env=environment(tmp_path, {}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "did you mean `max_pending`?" in done.stderr


@pytest.fixture
def draining() -> Iterator[tuple[Server, Any, Any]]:
    """A server that was told to stop in the middle of a stream: the server, what the stream says
    next, and its first chunk."""
    with running_server(*FAKE) as server:
        stream = groq_client(server).chat.completions.create(**ASKED, stream=True)
        first = next(stream)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: get(server.base_url, "/ready")[0] == 503)
        yield server, stream, first


def test_what_was_begun_ends_and_what_comes_late_comes_again(
    draining: tuple[Server, Any, Any],
) -> None:
    server, stream, _ = draining
    with pytest.raises(groq.InternalServerError) as caught:
        groq_client(server).chat.completions.create(**ASKED)
    assert caught.value.status_code == 503
    assert caught.value.body["error"]["code"] == "server_draining"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    assert server.process.poll() is None
    chunks = list(stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said.split() == ["word"] * 50
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert server.process.wait(15) == 0


def test_the_end_of_patience() -> None:
    """Who is not done when the time is over is told so, in the words that clients understand."""
    with running_server(*FAKE, "--drain-timeout", "0.1") as server:
        stream = groq_client(server).chat.completions.create(**ASKED, stream=True)
        next(stream)
        server.process.terminate()
        with pytest.raises(groq.APIError) as caught:
            list(stream)
        assert caught.value.body["status_code"] == 503
        assert server.process.wait(15) == 0


def test_a_second_signal_ends_it_at_once() -> None:
    with running_server(*FAKE, "--fake-rate", "5") as server:
        stream = groq_client(server).chat.completions.create(**ASKED, stream=True)
        next(stream)
        server.process.send_signal(signal.SIGINT)
        eventually(lambda: get(server.base_url, "/ready")[0] == 503)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 130
        with pytest.raises((groq.APIError, httpx.HTTPError)):
            list(stream)
