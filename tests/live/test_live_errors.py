"""Refusals as the official Python clients meet them: the class to catch, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import groq
import httpx
import openai
import pytest

from support.clients import CLIENTS, MODEL, groq_client, openai_client, use_up, user
from support.servers import Server, running_server

LIBRARIES = {"groq": groq, "openai": openai}
HELLO: dict[str, Any] = {"model": "fake", "messages": user("Hello."), "max_tokens": 2}


@pytest.fixture(params=CLIENTS)
def library(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ask(library: str, fake: Server) -> Callable[..., Any]:
    """Asks the fake server."""
    client = CLIENTS[library](fake)
    return lambda **asked: client.chat.completions.create(**{**HELLO, **asked})


@contextmanager
def refused(library: str, kind: str, status: int) -> Iterator[Any]:
    """Expects one error of this class exactly; afterwards it is what was yielded's `value`."""
    expected = getattr(LIBRARIES[library], kind)
    with pytest.raises(expected) as caught:
        yield caught
    assert type(caught.value) is expected
    assert caught.value.status_code == status
    request_id = caught.value.response.headers["x-request-id"]
    assert request_id.startswith("req_01")
    if library == "openai":
        assert caught.value.request_id == request_id


def envelope(error: Any) -> dict[str, Any]:
    """The inside of the error's body, which OpenAI's client has unwrapped."""
    body = error.body
    return dict(body["error"] if isinstance(error, groq.APIStatusError) else body)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
        ({"n": 0}, "n"),
        ({"stop": [""] * 9}, "stop"),
        ({"max_tokens": 10**9}, "max_completion_tokens"),
        (
            {"tools": [{"type": "function", "function": {"name": "no spaces"}}]},
            "tools[0].function.name",
        ),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ],
)
def test_400_names_the_field(
    library: str, ask: Callable[..., Any], wrong: dict[str, Any], param: str
) -> None:
    with refused(library, "BadRequestError", 400) as caught:
        ask(**wrong)
    said = envelope(caught.value)
    assert said["type"] == "invalid_request_error"
    assert said["param"] == param
    assert param in said["message"]


def test_400_on_a_prompt_that_does_not_fit(library: str, ask: Callable[..., Any]) -> None:
    with refused(library, "BadRequestError", 400) as caught:
        ask(messages=user("word " * 300_000))
    said = envelope(caught.value)
    assert (said["code"], said["param"]) == ("context_length_exceeded", "messages")


def test_401(library: str, locked: tuple[Server, str]) -> None:
    server, secret = locked
    with refused(library, "AuthenticationError", 401) as caught:
        CLIENTS[library](server, api_key="gsk_wrong").chat.completions.create(**HELLO)
    assert envelope(caught.value) == {
        "message": "Invalid API Key",
        "type": "invalid_request_error",
        "code": "invalid_api_key",
    }
    with refused(library, "AuthenticationError", 401):
        CLIENTS[library](server, api_key="gsk_wrong").models.list()
    right = CLIENTS[library](server, api_key=secret)
    assert right.chat.completions.create(**HELLO).choices[0].message.content
    assert right.models.list().data


def test_403_for_a_foreign_page(library: str, fake: Server) -> None:
    page = {"origin": "https://somewhere.example"}
    with refused(library, "PermissionDeniedError", 403) as caught:
        CLIENTS[library](fake, default_headers=page).chat.completions.create(**HELLO)
    assert "--cors-origin" in envelope(caught.value)["message"]


def test_404_for_a_model(library: str, ask: Callable[..., Any], fake: Server) -> None:
    with refused(library, "NotFoundError", 404) as caught:
        ask(model="llama-9")
    assert envelope(caught.value) == {
        "message": "The model `llama-9` does not exist or you do not have access to it.",
        "type": "invalid_request_error",
        "code": "model_not_found",
    }
    with refused(library, "NotFoundError", 404):
        CLIENTS[library](fake).models.retrieve("llama-9")


def test_404_for_what_is_not_offered(library: str, fake: Server) -> None:
    with refused(library, "NotFoundError", 404) as caught:
        CLIENTS[library](fake).files.list()
    assert envelope(caught.value)["code"] == "endpoint_not_offered"


def test_404_for_a_url(library: str, fake: Server) -> None:
    with refused(library, "NotFoundError", 404) as caught:
        CLIENTS[library](fake).get("/openai/v1/nowhere", cast_to=httpx.Response)
    assert envelope(caught.value)["code"] == "unknown_url"
    assert envelope(caught.value)["message"].startswith("Unknown request URL: GET /openai/v1/")


def test_413_for_more_than_the_limit_allows(library: str, ask: Callable[..., Any]) -> None:
    with refused(library, "APIStatusError", 413) as caught:
        ask(model="tiny", max_tokens=100)
    said = envelope(caught.value)
    assert (said["type"], said["code"]) == ("tokens", "rate_limit_exceeded")
    assert "Limit 10, Requested 1" in said["message"]
    assert "retry-after" not in caught.value.response.headers


def test_413_for_a_long_body(library: str, ask: Callable[..., Any]) -> None:
    with refused(library, "APIStatusError", 413) as caught:
        ask(messages=user("x" * 4_000_001))
    assert envelope(caught.value)["code"] == "request_too_large"


def test_429_then_the_client_comes_again_by_itself(library: str, fake: Server) -> None:
    asked = {**HELLO, "model": f"metered-for-{library}", "max_tokens": 1}
    client = CLIENTS[library](fake)
    use_up(lambda: client.chat.completions.create(**asked))
    with refused(library, "RateLimitError", 429) as caught:
        client.chat.completions.create(**asked)
    headers = caught.value.response.headers
    assert headers["retry-after"] == "1"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    said = envelope(caught.value)
    assert (said["type"], said["code"]) == ("requests", "rate_limit_exceeded")
    assert "on requests per minute (RPM): Limit 60, Used 60, Requested 1." in said["message"]
    patient = client.with_options(max_retries=2)
    raw = patient.chat.completions.with_raw_response.create(**asked)
    assert raw.parse().choices
    assert raw.retries_taken == 1


def test_498_where_flex_finds_no_room(library: str, ask: Callable[..., Any]) -> None:
    running = ask(stream=True, max_tokens=1000)
    next(running)
    with refused(library, "APIStatusError", 498) as caught:
        ask(service_tier="flex")
    assert envelope(caught.value)["code"] == "capacity_exceeded"
    running.close()


def test_headers_tell_what_is_left(library: str, fake: Server) -> None:
    create = CLIENTS[library](fake).chat.completions.with_raw_response.create
    headers = create(**{**HELLO, "model": "generous"}).headers
    assert headers["x-ratelimit-limit-requests"] == "14400"
    assert headers["x-ratelimit-limit-tokens"] == "30000"
    assert 0 < int(headers["x-ratelimit-remaining-requests"]) < 14400
    assert 0 < int(headers["x-ratelimit-remaining-tokens"]) < 30000
    assert headers["x-ratelimit-reset-requests"].endswith("s")
    assert headers["x-ratelimit-reset-tokens"].endswith("s")
    streamed = create(**{**HELLO, "model": "generous"}, stream=True).headers
    assert "x-ratelimit-remaining-tokens" in streamed


@pytest.fixture(scope="module")
def impatient() -> Iterator[Server]:
    """A server whose answers may take half a second, and never end by then."""
    words = ("--fake-text", "word " * 1000, "--fake-rate", "40")
    with running_server("--engine", "fake", *words, "--total-timeout", "0.5") as server:
        yield server


def test_504_when_an_answer_takes_too_long(library: str, impatient: Server) -> None:
    with refused(library, "InternalServerError", 504) as caught:
        CLIENTS[library](impatient).chat.completions.create(**{**HELLO, "max_tokens": 900})
    assert envelope(caught.value)["code"] == "generation_timeout"


def test_an_error_in_mid_stream(library: str, impatient: Server) -> None:
    asked = {**HELLO, "max_tokens": 900, "stream": True}
    said = ""
    with pytest.raises(LIBRARIES[library].APIError) as caught:
        for chunk in CLIENTS[library](impatient).chat.completions.create(**asked):
            said += chunk.choices[0].delta.content or ""
    assert said.startswith("word")
    assert caught.value.body["code"] == "generation_timeout"
    assert caught.value.body["status_code"] == 504


def test_clients_that_give_up_first(library: str, fake: Server) -> None:
    client = CLIENTS[library](fake, timeout=0.3)
    with pytest.raises(LIBRARIES[library].APITimeoutError):
        client.chat.completions.create(**{**HELLO, "max_tokens": 2000})
    # What nobody waits for any more does not keep the next one waiting.
    assert CLIENTS[library](fake).chat.completions.create(**HELLO).choices


def test_a_doubled_prefix_is_forgiven(fake: Server) -> None:
    """What becomes of Groq's client with the base URL for OpenAI's."""
    client = groq_client(fake, base_url=fake.openai_url)
    assert client.chat.completions.create(**HELLO).choices
    with pytest.raises(groq.NotFoundError):
        client.chat.completions.create(**{**HELLO, "model": MODEL})


@pytest.mark.parametrize("path", ["", "/v1", "/openai/v1", "/openai/v1/"])
def test_base_urls(fake: Server, path: str) -> None:
    client = openai_client(fake, base_url=fake.base_url + path)
    if path:
        assert client.chat.completions.create(**HELLO).choices
    else:
        with pytest.raises(openai.NotFoundError, match="Unknown request URL: POST /chat"):
            client.chat.completions.create(**HELLO)


def test_a_model_with_a_slash_in_its_name(library: str, fake: Server) -> None:
    client = CLIENTS[library](fake)
    assert client.models.retrieve("org/slash").id == "org/slash"
    assert httpx.get(f"{fake.openai_url}/models/org/slash").json()["id"] == "org/slash"
    assert "org/slash" in [model.id for model in client.models.list().data]
    answer = client.chat.completions.create(**{**HELLO, "model": "org/slash"})
    assert answer.model == "org/slash"
