"""The command line as a whole: help, errors, exit codes. Each in a process of its own."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from headrace import __version__
from headrace.cli import _COMMANDS, cli
from support.gguf_models import SHAPES, write_model

HEADRACE = [sys.executable, "-c", "from headrace.cli import main; main()"]


def run(
    *arguments: str, stdin: str | bytes = b"", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [*HEADRACE, *arguments],
        input=data,
        capture_output=True,
        timeout=60,
        env={**os.environ, **(env or {})},
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model of no meaning, which never tires of talking."""
    return str(write_model(tmp_path_factory.mktemp("models") / "tiny.gguf", SHAPES["llama"]))


def test_version() -> None:
    assert run("--version").stdout == f"headrace {__version__}\n"


def test_help_lists_every_command_and_teaches() -> None:
    text = run("--help").stdout
    for name, (_, summary) in _COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", text, re.MULTILINE)
    assert "Examples:" in text


def test_help_imports_no_engine() -> None:
    program = (
        "import sys\n"
        "from headrace.cli import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "slow = ('headrace.engine', 'headrace._native', 'tokenizers', 'rich', 'asyncio')\n"
        "print([name for name in slow if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("group", ["bench", "keys"])
def test_commands_of_groups_show_examples_in_80_columns(group: str) -> None:
    context = click.Context(cli)
    commands = cli.get_command(context, group)
    assert isinstance(commands, click.Group)
    for command in (commands, *commands.commands.values()):
        text = CliRunner().invoke(command, ["--help"], terminal_width=80).stdout
        assert "Example" in text, command.name
        assert all(len(line) <= 80 for line in text.splitlines()), command.name


@pytest.mark.parametrize("name", _COMMANDS)
def test_each_command_is_there_and_shows_examples(name: str) -> None:
    context = click.Context(cli)
    command = cli.get_command(context, name)
    assert command is not None
    assert command.name == name
    assert command.help is not None
    assert "Examples:" in command.help or isinstance(command, click.Group)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["generat"], "Did you mean 'generate'?"),
        (["generate"], "Missing argument 'PROMPT'"),
        (["generate", "hi", "--top-p", "2"], "--top-p"),
        (["generate", "hi", "--max-tokens", "0"], "--max-tokens"),
        (["generate", "hi", "--raw", "--system", "x"], "--raw writes no system message"),
        (["generate", "hi", "there"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], told: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stdout == ""


def test_an_error_raised_on_purpose_is_one_line_and_1(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"this is no model")
    done = run("generate", "--model", str(broken), "hi")
    assert done.returncode == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("headrace: ")
    assert "broken.gguf" in line


def test_debugging_shows_where_it_came_from(tmp_path: Path) -> None:
    done = run("generate", "--model", "nobody", "hi", env={"HEADRACE_DEBUG": "1"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_prompt_that_does_not_fit(model: str) -> None:
    done = run("generate", "--model", model, "x " * 2000)
    assert done.returncode == 1
    assert "leave out" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_answers_are_the_same_each_time(model: str) -> None:
    ask = ["generate", "-m", model, "--max-tokens", "20", "--temperature", "1", "--seed", "4", "hi"]
    first = run(*ask, "--stats")
    assert first.returncode == 0
    assert first.stdout.endswith("\n")
    assert re.search(
        r"^\d+ prompt tokens \(0 cached\) · first token after \d+ ms · 20 tokens · "
        r"[\d.]+ tok/s · length · seed 4\n$",
        first.stderr,
    )
    again = run(*ask, stdin="not read")
    assert (again.stdout, again.stderr) == (first.stdout, "")


def test_a_prompt_from_stdin(model: str) -> None:
    ask = ["generate", "-m", model, "--max-tokens", "5"]
    assert run(*ask, "-", stdin="hé").stdout == run(*ask, "hé").stdout
    done = run(*ask, "-", stdin=b"\xff\xfe")
    assert (done.returncode, done.stdout) == (2, "")
    assert "not UTF-8" in done.stderr


def test_a_terminal_without_unicode_loses_characters_not_the_answer(model: str) -> None:
    env = {"PYTHONIOENCODING": "ascii"}
    done = run("generate", "-m", model, "--max-tokens", "20", "--raw", "é", env=env)
    assert (done.returncode, done.stderr) == (0, "")


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*HEADRACE, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def endless(model: str) -> list[str]:
    """An answer long enough to be stopped in the middle."""
    return ["generate", "-m", model, "--max-tokens", "400", "--temperature", "1", "hi"]


def test_ctrl_c_ends_cleanly(model: str) -> None:
    process = start(*endless(model))
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    # It may have been done already; then it was not interrupted.
    assert process.returncode in (130, 0)
    assert b"Traceback" not in stderr


def test_a_reader_that_goes_away_ends_it_cleanly(model: str) -> None:
    process = start(*endless(model))
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(1)
    process.stdout.close()
    stderr = process.stderr.read()
    assert process.wait(60) in (1, 0)
    assert stderr == b""
