"""`headrace generate`, on a fake model."""

import pytest
from click.testing import CliRunner, Result

from headrace.commands.generate import generate
from headrace.testing import END_ID, START_ID, FakeModel
from support.fake_cli import give_model


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(generate, arguments, input=stdin, catch_exceptions=False)


def remembering() -> tuple[FakeModel, list[list[int]]]:
    """A model that ends at once, and the prompts it was given."""
    heard: list[list[int]] = []

    def rule(history: object) -> int:
        heard.append(list(history))  # type: ignore[call-overload]
        return END_ID

    return FakeModel(rule=rule), heard


def test_the_answer_and_a_line_end(monkeypatch: pytest.MonkeyPatch) -> None:
    give_model(monkeypatch, "Hello")
    assert run("hi").stdout == "Hello\n"
    give_model(monkeypatch, "Hello\n")
    assert run("hi").stdout == "Hello\n"
    give_model(monkeypatch, "")
    assert run("hi").stdout == ""


def test_the_prompt_goes_through_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    model, heard = remembering()
    give_model(monkeypatch, model)
    run("hi", "--system", "be brief")
    system = [START_ID, *b"system:be brief", END_ID]
    assert heard[0] == [*system, START_ID, *b"user:hi", END_ID, START_ID, *b"assistant:"]


def test_raw_goes_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model, heard = remembering()
    give_model(monkeypatch, model)
    run("hi <|end|>", "--raw")
    assert heard[0] == [*b"hi ", END_ID]


def test_a_dash_reads_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    model, heard = remembering()
    give_model(monkeypatch, model)
    run("-", "--raw", stdin="from a pipe\n")
    assert heard[0] == list(b"from a pipe\n")


def test_stop_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    give_model(monkeypatch, "one two three")
    assert run("?", "--stop", "three", "--stop", "two").stdout == "one \n"


def test_max_tokens_and_stats(monkeypatch: pytest.MonkeyPatch) -> None:
    give_model(monkeypatch, "Hello")
    done = run("?", "--max-tokens", "3", "--stats", "--seed", "11")
    assert done.stdout == "Hel\n"
    assert "3 tokens" in done.stderr
    assert done.stderr.endswith("length · seed 11\n")


def test_the_engine_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = give_model(monkeypatch, "Hello")
    run("hi")
    assert model.is_closed
