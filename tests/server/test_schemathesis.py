"""Requests made from our own description of the API, right and wrong ones, against a real server:
no status that is not declared, no answer that is not as described, no 5xx at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from headrace.testing import scripted_engine
from headrace.wire.openapi import openapi
from support.bodies import from_schema, json_values
from support.live_door import Client, LiveDoor, open_door

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
DOCUMENT = openapi()
OPERATIONS = {
    f"{found.ok().method.upper()} {found.ok().path}": found.ok()
    for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()
}
WITH_BODIES = {name: one for name, one in OPERATIONS.items() if one.body}
POSTS = {
    "/v1/chat/completions": "ChatCompletionRequest",
    "/v1/completions": "CompletionRequest",
    "/v1/responses": "ResponseRequest",
    "/api/chat": "ApiChatRequest",
}
QUICK = settings(
    deadline=None,
    max_examples=10,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDoor]:
    # A small context: an answer that ignores its end is not long.
    engine = scripted_engine("A short answer.", context_length=128)
    url = f"sqlite:///{tmp_path_factory.mktemp('kept')}/conversations.db"
    with open_door(engine, max_body_bytes=100_000, database_url=url) as door:
        yield door


def check(door: LiveDoor, case: Any) -> None:
    response = case.call(base_url=f"http://127.0.0.1:{door.port}", timeout=20)
    is_stream = "text/event-stream" in str(response.headers.get("content-type"))
    # It takes the schema of a stream for that of each of its events.
    excluded = [response_schema_conformance] if is_stream else []
    case.validate_response(response, checks=CHECKS, excluded_checks=excluded)


@pytest.mark.parametrize("name", OPERATIONS)
def test_whatever_the_description_allows(door: LiveDoor, name: str) -> None:
    @QUICK
    @given(OPERATIONS[name].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def ask(case: Any) -> None:
        check(door, case)

    ask()


@pytest.mark.parametrize("name", WITH_BODIES)
def test_whatever_the_description_forbids(door: LiveDoor, name: str) -> None:
    @QUICK
    @given(OPERATIONS[name].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def ask(case: Any) -> None:
        check(door, case)

    ask()


# --- our own bodies, which come nearer to being right ---------------------------------------------


@pytest.fixture(scope="module")
def client(door: LiveDoor) -> Iterator[Client]:
    """One connection for all: none of the bodies may close it, or leave anything behind."""
    client = Client(door.port)
    yield client
    client.leave()


def ask(client: Client, path: str, raw: bytes) -> None:
    """What comes is declared, and an answer or an error as a whole."""
    client.send_head(path, raw)
    client.socket.sendall(raw)
    status, body = client.read_answer()
    assert str(status) in DOCUMENT["paths"][path]["post"]["responses"]
    assert status < 500, (raw, body)
    if status == 200:
        assert body.endswith((b"}\n", b"\n\n"))
    else:
        error = json.loads(body.removeprefix(b"data: "))["error"]
        assert error["message"] and error["type"]
        assert "internal" not in error["message"].lower(), (raw, body)


@pytest.mark.parametrize("path", POSTS)
def test_bodies_of_the_right_shape(door: LiveDoor, client: Client, path: str) -> None:
    shape = DOCUMENT["components"]["schemas"][POSTS[path]]

    @settings(QUICK, max_examples=60)
    @given(from_schema(shape), st.sampled_from(["fake", "llama-3.1-8b-instant", None]))
    def play(body: dict[str, Any], model: str | None) -> None:
        ask(client, path, json.dumps(body if model is None else {**body, "model": model}).encode())

    play()
    door.until(lambda: door.serving.num_open == 0)
    door.assert_nothing_is_held()


@pytest.mark.parametrize("path", POSTS)
def test_bodies_of_any_shape(door: LiveDoor, client: Client, path: str) -> None:
    shape = DOCUMENT["components"]["schemas"][POSTS[path]]
    names = st.sampled_from(sorted(shape["properties"]))
    example = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"][
        "example"
    ]

    @settings(QUICK, max_examples=100)
    @given(st.dictionaries(names, json_values, min_size=1, max_size=3))
    def play(changes: dict[str, Any]) -> None:
        ask(client, path, json.dumps({**example, **changes}).encode())

    play()
    door.until(lambda: door.serving.num_open == 0)
    door.assert_nothing_is_held()


@pytest.mark.parametrize("path", POSTS)
def test_bytes_of_any_kind(client: Client, path: str) -> None:
    example = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"][
        "example"
    ]
    raw = json.dumps(example).encode()

    @settings(QUICK, max_examples=60)
    @given(st.integers(0, len(raw)), st.integers(0, 4), st.binary(max_size=8))
    def play(at: int, num_gone: int, more: bytes) -> None:
        ask(client, path, raw[:at] + more + raw[at + num_gone :])

    play()
