"""`headrace serve`: its flags, its check, and a whole life on the fake engine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from headrace.commands import serve as module
from headrace.commands.serve import serve
from headrace.model.catalogue import DEFAULT_MODEL
from headrace.server.run import listen
from headrace.settings import SETTINGS

HEADRACE = [sys.executable, "-c", "from headrace.cli import main; main()", "serve"]


@pytest.fixture(autouse=True)
def _alone(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No keys, no models, no settings but the test's own."""
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        if name != "HEADRACE_HOME":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    # It would take the log away from the tests that come after.
    monkeypatch.setattr("headrace.observe.logs.configure", lambda *_: None)


def run(*arguments: str, env: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(serve, arguments, env=env)


def check(*arguments: str, env: Mapping[str, str] | None = None) -> Result:
    return run("--check", *arguments, env=env)


def test_every_setting_has_its_flag_under_its_heading() -> None:
    text = run("--help").output
    for setting in SETTINGS:
        assert f"{setting.group}:" in text
        assert re.search(rf"{setting.flags[0]}\b", text)
    assert "Examples:" in text
    assert "--check" in text


def test_all_is_well() -> None:
    done = check()
    assert (done.exit_code, done.stderr) == (0, "")
    assert DEFAULT_MODEL in done.stdout
    assert f"llama-3.1-8b-instant means {DEFAULT_MODEL}" in done.stdout
    assert "http://127.0.0.1:8000" in done.stdout


def test_flags_of_every_shape_reach_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(module, "_run", lambda serving: seen.append(serving.settings))
    done = run(
        *("--port", "9", "--model", "a", "-m", "b", "--alias", "x=a", "--alias", "*=b"),
        *("--engine", "fake", "--strict", "--no-insecure", "--cors-origin", "https://a.example"),
        *("--drain-timeout", "0", "--stall-timeout", "never", "--max-body", "1MB"),
        env={"HEADRACE_INSECURE": "true", "HEADRACE_LOG_LEVEL": "debug"},
    )
    assert done.exit_code == 0, done.output
    [settings] = seen
    assert isinstance(settings, module.ServerSettings)
    assert (settings.port, settings.models) == (9, ("a", "b"))
    assert settings.aliases == {"x": "a", "*": "b"}
    assert (settings.strict, settings.insecure, settings.log_level) == (True, False, "debug")
    assert (settings.drain_timeout_s, settings.stall_timeout_s) == (0.0, None)
    assert settings.max_body_bytes == 1_000_000


def test_no_aliases(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text("aliases = { x = 'fake' }\nengine = 'fake'\n")
    assert "x means fake" in check().stdout
    assert "aliases: none" in check("--no-aliases").stdout
    contradiction = check("--no-aliases", "--alias", "y=fake")
    assert contradiction.exit_code == 2
    assert "contradict" in contradiction.stderr


def test_another_file(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text("nonsense = 1\n")
    (tmp_path / "other.toml").write_text("port = 7\n")
    assert ":7," in check("--config", "other.toml").stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port", "x"], "--port: `port` must be a whole number from 0 to 65535, not 'x'"),
        (["--alias", "x=y"], "'x' means 'y', which is not served"),
        (["--limits", "groq-fre"], "limits: 'groq-fre' is neither"),
        (["--limits", "none.toml"], "limits: none.toml cannot be read"),
        (["--host", "0.0.0.0"], "--insecure"),
        (["--model", "hf:x"], "names no repository"),
        (["--model", "nobody"], "no model is called 'nobody'"),
        (["--config", "none.toml"], "none.toml: cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line_and_2(arguments: list[str], told: str) -> None:
    done = check(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("headrace: ")
    assert told in line


def test_each_model_that_is_wrong_has_a_line(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"this is no model")
    done = check("--model", "nobody", "--model", "./broken.gguf")
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 2


def test_flags_click_does_not_know_are_wrong_usage() -> None:
    done = run("--prot", "1")
    assert done.exit_code == 2
    assert "--port" in done.stderr


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("[::1]", "http://[::1]:80"),
        ("me.example", "http://me.example:80"),
    ],
)
def test_urls_that_work_from_here(host: str, url: str) -> None:
    assert module._url(host, 80) == url


@contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own that is ready, and what it said."""
    process = subprocess.Popen(
        [*HEADRACE, "--engine", "fake", "--port", "0", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("Ready"):
                break
        yield process, said
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_whole_life(number: signal.Signals, code: int) -> None:
    text = "Words in a row, one after the other. " * 4
    with started("--fake-text", text, "--fake-rate", "200") as (process, said):
        command = re.search(r"curl -N (\S+) -d '(.*)'\n", said)
        assert command is not None, said
        url, body = command.groups()
        assert json.loads(body)["stream"] is True
        assert json.loads(body)["model"] == "llama-3.1-8b-instant"
        # The very line that was printed, as curl would send it.
        request = urllib.request.Request(url, body.encode())
        with urllib.request.urlopen(request, timeout=20) as response:
            first = response.readline()
            process.send_signal(number)
            stream = (first + response.read()).decode()
        _, stderr = process.communicate(timeout=20)
    pieces = re.findall(r'"delta":\{"content":"([^"]*)"', stream)
    assert "".join(pieces) == text
    assert stream.endswith("data: [DONE]\n\n")
    assert process.returncode == code
    assert "Traceback" not in stderr
    assert "llama-3.1-8b-instant means fake" in said


def test_a_port_in_use_is_one_line_and_1() -> None:
    [taken] = listen("127.0.0.1", 0)
    port = taken.getsockname()[1]
    with taken:
        done = subprocess.run(
            [*HEADRACE, "--engine", "fake", "--port", str(port)], capture_output=True, text=True
        )
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert f"port {port} of 127.0.0.1 is in use" in line


def test_a_model_that_cannot_be_loaded_ends_the_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from headrace.errors import UnsupportedModel
    from headrace.server.models import ModelRegistry

    def load(self: ModelRegistry, settings: object, **_: object) -> None:
        raise UnsupportedModel("not this one")

    monkeypatch.setattr(ModelRegistry, "load", load)
    done = run("--engine", "fake", "--port", "0")
    assert isinstance(done.exception, UnsupportedModel)
    assert "Ready" not in done.output


def test_missing_models_are_fetched_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def ensure(named: str, report: object) -> None:
        fetched.append(named)
        raise click.Abort

    monkeypatch.setattr("headrace.model.pull.ensure", ensure)
    assert run("--port", "0").exit_code == 1
    assert fetched == [DEFAULT_MODEL]
