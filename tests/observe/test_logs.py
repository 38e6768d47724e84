"""Log lines: whole, tame, silent about what was said, and nobody else's business."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import structlog

from headrace.observe import logs
from headrace.observe.observer import LimitHit, RequestEnded


def ended(**fields: Any) -> RequestEnded:
    about = {"request_id": "req_1", "endpoint": "/chat/completions", "status": 200, "total_s": 0.4}
    return RequestEnded(**{**about, **fields})


ANSWERED = ended(
    client_request_id="mine",
    tenant="acme",
    model="alias",
    served_by="small",
    is_streamed=True,
    finish_reasons=("length",),
    num_prompt_tokens=160,
    num_cached_tokens=128,
    num_completion_tokens=65,
    decode_s=0.32,
    ttft_s=0.0512,
)


class Written:
    """All that came to stderr so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture(autouse=True)
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Written]:
    """What is written there; and the loggers as they were, afterwards."""
    logger = logging.getLogger("headrace")
    before = logger.level, logger.propagate, list(logger.handlers)
    yield Written(capsys)
    logger.setLevel(before[0])
    logger.propagate, logger.handlers[:] = before[1:]


def lines(stderr: Written) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stderr.getvalue().splitlines()]


def test_a_request_is_one_line_of_json(stderr: Written) -> None:
    logs.configure("json")
    logs.RequestLog().observe(ANSWERED)
    [line] = lines(stderr)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "headrace.requests",
        "message": "request",
        "request_id": "req_1",
        "client_request_id": "mine",
        "tenant": "acme",
        "endpoint": "/chat/completions",
        "status": 200,
        "model": "alias",
        "served_by": "small",
        "stream": True,
        "tokens_in": 160,
        "tokens_cached": 128,
        "tokens_out": 65,
        "ttft_ms": 51.2,
        "tok_s": 200.0,
        "total_ms": 400.0,
        "finish_reason": "length",
    }


def test_prompts_are_told_whole_where_they_are_told(stderr: Written) -> None:
    prompt, answer = "why\n" * 200, "\x1b[31mbecause"
    for log_format in ("json", "pretty"):
        logs.configure(log_format)  # type: ignore[arg-type]
        logs.RequestLog().observe(replace(ANSWERED, prompts=(prompt,), answers=(answer,)))
    as_json, pretty = stderr.getvalue().splitlines()
    assert json.loads(as_json)["prompts"] == [prompt]
    assert json.loads(as_json)["answers"] == [answer]
    assert "because" in pretty and "\x1b" not in pretty


def test_pretty_is_one_line_too(stderr: Written) -> None:
    logs.configure("pretty")
    logs.RequestLog().observe(ANSWERED)
    [line] = stderr.getvalue().splitlines()
    for part in ("request", "req_1", "status=200", "tok_s=200.0", "finish_reason=length"):
        assert part in line


def test_a_met_limit_is_told(stderr: Written) -> None:
    logs.configure("json")
    logs.RequestLog().observe(LimitHit("acme", "small", "TPM"))
    [line] = lines(stderr)
    assert (line["message"], line["tenant"], line["limit"]) == ("limit", "acme", "TPM")


@pytest.mark.parametrize(
    ("status", "level"),
    [(200, "info"), (429, "info"), (499, "info"), (500, "error"), (503, "warning")],
)
def test_levels(stderr: Written, status: int, level: str) -> None:
    logs.configure("json")
    logs.RequestLog().observe(ended(status=status))
    assert lines(stderr)[0]["level"] == level


def test_what_machines_ask_is_for_debugging(stderr: Written) -> None:
    logs.configure("json")
    logs.RequestLog().observe(ended(endpoint="/health"))
    assert not lines(stderr)
    logs.configure("json", "debug")
    logs.RequestLog().observe(ended(endpoint="/health"))
    assert lines(stderr)[0]["level"] == "debug"


def test_refusals_are_told_by_code_alone(stderr: Written) -> None:
    """Their messages may quote the request."""
    logs.configure("json")
    fields = {"error_code": "invalid", "error_message": "`stop` must be …, not 'my secret'"}
    logs.RequestLog().observe(ended(status=400, **fields))
    assert lines(stderr)[0]["error"] == "invalid"
    assert "secret" not in stderr.getvalue()
    logs.RequestLog().observe(ended(status=500, error_code="x", error_message="our fault"))
    assert lines(stderr)[1]["error_message"] == "our fault"


@pytest.mark.parametrize("log_format", ["json", "pretty"])
def test_exceptions_show_no_variables(stderr: Written, log_format: logs.LogFormat) -> None:
    logs.configure(log_format)
    prompt = "my" + " secret"
    try:
        raise ValueError("broken" if prompt else "")
    except ValueError:
        logging.getLogger("headrace.engine").exception("it failed")
    assert "ValueError: broken" in stderr.getvalue() and "it failed" in stderr.getvalue()
    assert "my secret" not in stderr.getvalue()


@pytest.mark.parametrize("log_format", ["json", "pretty"])
def test_values_of_clients_are_tame(stderr: Written, log_format: logs.LogFormat) -> None:
    logs.configure(log_format)
    logs.RequestLog().observe(ended(model="\x1b[2J\nlevel=error", client_request_id="a" * 5000))
    text = stderr.getvalue()
    assert text.count("\n") == 1 and "\x1b" not in text
    assert len(text) < 1000


def test_text_in_other_letters_stays_readable() -> None:
    assert logs.tamed("Zürich 東京") == "Zürich 東京"
    assert logs.tamed("a\u202eb") == "a\\u202eb"


def test_configuring_again_replaces(stderr: Written) -> None:
    for _ in range(3):
        logs.configure("json")
    logs.RequestLog().observe(ANSWERED)
    assert len(lines(stderr)) == 1


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="LOUD"):
        logs.configure("json", "loud")


def test_programs_that_use_us_keep_their_logging(
    stderr: Written, caplog: pytest.LogCaptureFixture
) -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers), structlog.get_config()
    with caplog.at_level(logging.INFO, "headrace"):
        logs.RequestLog().observe(ANSWERED)
    [record] = caplog.records
    assert record.getMessage() == "request"
    assert (record.request_id, record.tokens_out) == ("req_1", 65)  # type: ignore[attr-defined]
    assert not stderr.getvalue()
    logs.configure("pretty")
    assert (root.level, list(root.handlers), structlog.get_config()) == before


def test_speed_needs_more_than_first_tokens() -> None:
    assert logs.tokens_per_second(ended(num_completion_tokens=1, decode_s=0.0)) is None
    two = ended(num_completion_tokens=12, decode_s=0.5, finish_reasons=("stop", "stop"))
    assert logs.tokens_per_second(two) == 20
