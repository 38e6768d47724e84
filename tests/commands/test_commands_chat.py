"""`headrace chat`, on a fake model."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest

from headrace.commands.chat import Chat
from headrace.engine.engine import Engine
from headrace.testing import END_ID, START_ID, FakeModel, FakeTemplate, FakeTokenizer, saying

Line = str | type[BaseException]


def reader(lines: Iterable[Line]) -> Callable[[str], str]:
    """Reads `lines`, raising those that are exceptions; then the end."""
    rest = iter([*lines, EOFError])

    def read(_: str) -> str:
        line = next(rest)
        if isinstance(line, str):
            return line
        raise line

    return read


@pytest.fixture
def heard() -> list[list[int]]:
    """The prompts that the model has answered."""
    return []


@pytest.fixture
def engine(heard: list[list[int]]) -> Iterator[Engine]:
    answer = saying(b"yes", then=END_ID)

    def rule(history: Sequence[int]) -> int:
        if history[-1] == ord(":"):
            heard.append(list(history))
        return answer(history)

    model = FakeModel(rule=rule)
    with Engine(model, FakeTokenizer(), FakeTemplate()) as engine:
        yield engine


def talk(engine: Engine, *lines: Line, system: str | None = None, **settings: Any) -> None:
    Chat(engine, settings, system=system, shows_stats=False).run(reader(lines))


def asks(text: str) -> list[int]:
    return [START_ID, *f"user:{text}".encode(), END_ID, START_ID, *b"assistant:"]


def test_answers(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    talk(engine, "hi", "", "  ")
    assert capsys.readouterr().out == "yes\n"


def test_turns_build_on_each_other(engine: Engine, heard: list[list[int]]) -> None:
    talk(engine, "a", "b", system="s")
    first = [START_ID, *b"system:s", END_ID, *asks("a")]
    assert heard == [first, [*first, *b"yes", END_ID, *asks("b")]]


def test_reset_and_system_begin_anew(engine: Engine, heard: list[list[int]]) -> None:
    talk(engine, "a", "/reset", "b", "/system be kind", "c", "/system", "d", system="s")
    assert heard[1:] == [
        [START_ID, *b"system:s", END_ID, *asks("b")],
        [START_ID, *b"system:be kind", END_ID, *asks("c")],
        asks("d"),
    ]


def test_stats_switch(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    talk(engine, "a", "/stats", "b", "/stats", "c")
    told = capsys.readouterr().err
    assert told.count(" prompt tokens (") == 1


def test_help_and_unknown_commands_ask_nothing(
    engine: Engine, heard: list[list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    talk(engine, "/help", "/nonsense")
    captured = capsys.readouterr()
    assert "/reset" in captured.err
    assert "/nonsense is no command" in captured.err
    assert (heard, captured.out) == ([], "")


def test_a_path_is_no_command(engine: Engine, heard: list[list[int]]) -> None:
    talk(engine, "/etc/passwd is a file")
    assert heard == [asks("/etc/passwd is a file")]


def test_quit(engine: Engine, heard: list[list[int]]) -> None:
    talk(engine, "/quit", "not asked")
    assert heard == []


def test_ctrl_c_at_the_prompt_does_not_leave(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(engine, KeyboardInterrupt, "hi")
    captured = capsys.readouterr()
    assert captured.out == "yes\n"
    assert "Ctrl-D" in captured.err


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts: list[list[int]] = []

    def rule(history: Sequence[int]) -> int:
        if history[-1] == ord(":"):
            prompts.append(list(history))
        if len(prompts) > 1:
            return END_ID
        if bytes(history[-6:]) == b":aaaaa":
            os.kill(os.getpid(), signal.SIGINT)
        return ord("a")

    model = FakeModel(rule=rule, step_s=0.002)
    with Engine(model, FakeTokenizer(), FakeTemplate()) as engine:
        talk(engine, "first", "second")
    said = capsys.readouterr().out.splitlines()[0]
    assert said.strip("a") == ""
    assert 5 <= len(said) < 200
    begin = [*asks("first"), *said.encode()]
    # What was said stays part of the conversation, whatever came after the last piece shown.
    assert prompts[1][: len(begin)] == begin
    assert prompts[1][-len(asks("second")) :] == asks("second")


def test_a_conversation_that_is_full(
    engine: Engine, heard: list[list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    talk(engine, "a", "x" * 300, "b")
    captured = capsys.readouterr()
    assert "/reset" in captured.err
    assert captured.out == "yes\nyes\n"
    assert heard[1] == [*asks("a"), *b"yes", END_ID, *asks("b")]


def test_a_wrong_setting_is_told_and_talking_goes_on(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(engine, "a", "b", temperature=-1.0)
    assert capsys.readouterr().err.count("`temperature` must be") == 2
