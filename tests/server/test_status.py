"""The server about itself: health, readiness, metrics, and its API as JSON and as a page."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from headrace.server.docs_page import page
from headrace.server.status import Status

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "headrace", "version": "9.9", "description": "First.\n\nSecond <b>."},
    "paths": {
        "/v1/chat/completions": {
            "post": {
                "summary": "Answer a conversation",
                "parameters": [
                    {
                        "name": "x-client-request-id",
                        "in": "header",
                        "schema": {"type": "string"},
                        "description": "Echoed.",
                    }
                ],
                "requestBody": {
                    "content": {
                        "application/json": {
                            "schema": {"$ref": "#/components/schemas/Ask"},
                            "example": {"model": "m", "stream": True},
                        }
                    }
                },
                "responses": {"200": {"description": "Whole."}, "429": {"$ref": "#/x/Limited"}},
            }
        },
        "/health": {"get": {"summary": "Is it up?", "responses": {}}},
    },
    "x": {"Limited": {"description": "Too much", "content": {"application/json": {}}}},
    "components": {
        "schemas": {
            "Ask": {
                "type": "object",
                "required": ["model"],
                "properties": {
                    "model": {"type": "string", "description": "Which <model>."},
                    "temperature": {
                        "anyOf": [{"type": "number"}, {"type": "null"}],
                        "default": 0.7,
                        "minimum": 0,
                        "maximum": 2,
                    },
                    "messages": {"type": "array", "items": {"$ref": "#/components/schemas/Msg"}},
                },
            },
            "Msg": {
                "type": "object",
                "properties": {
                    "role": {"enum": ["user", "system"]},
                    "answers": {"type": "array", "items": {"$ref": "#/components/schemas/Msg"}},
                },
            },
        }
    },
}


@dataclass
class State:
    is_ready: bool = True
    is_draining: bool = False
    accepts: list[str] = field(default_factory=list)

    def render_metrics(self, accept: str) -> tuple[bytes, str]:
        self.accepts.append(accept)
        return b"headrace_requests_open 3\n", "text/plain; version=0.0.4; charset=utf-8"


def client(state: State, describe: Any = lambda: DOCUMENT) -> TestClient:
    status = Status(state, describe)
    names = ("health", "ready", "metrics", "docs")
    routes = [Route(f"/{name}", getattr(status, name)) for name in names]
    return TestClient(Starlette(routes=[*routes, Route("/openapi.json", status.openapi)]))


def test_health_says_only_that_it_is_up() -> None:
    for state in (State(), State(is_ready=False), State(is_draining=True)):
        answer = client(state).get("/health")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_ready_once_models_are_loaded() -> None:
    state = State(is_ready=False)
    asking = client(state)
    answer = asking.get("/ready")
    assert (answer.status_code, answer.json()) == (503, {"status": "loading"})
    assert int(answer.headers["retry-after"]) >= 1
    state.is_ready = True
    answer = asking.get("/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
    assert answer.headers["cache-control"] == "no-store"


def test_not_ready_while_draining() -> None:
    answer = client(State(is_draining=True)).get("/ready")
    assert (answer.status_code, answer.json()) == (503, {"status": "draining"})


def test_metrics_are_as_the_asker_wants_them() -> None:
    state = State()
    answer = client(state).get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert answer.text == "headrace_requests_open 3\n"
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert state.accepts == ["application/openmetrics-text"]


def test_the_document_is_made_once() -> None:
    made = []

    def describe() -> dict[str, Any]:
        made.append(1)
        return DOCUMENT

    asking = client(State(), describe)
    assert not made
    for _ in range(2):
        assert asking.get("/openapi.json").json() == DOCUMENT
        assert "headrace" in asking.get("/docs").text
    assert len(made) == 1


class Seen(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not close."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr", "base"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_shows_endpoints_and_parameters() -> None:
    answer = client(State()).get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    text = " ".join(" ".join(Seen(answer.text).text).split())
    for part in (
        "headrace 9.9",
        "POST /v1/chat/completions",
        "Answer a conversation",
        "model required string Which <model>.",
        "temperature number | null default 0.7 at least 0, at most 2",
        "messages array of object",
        'role "user" | "system"',
        "x-client-request-id (header) string Echoed.",
        '"stream": true',
        "429 application/json Too much",
        "GET /health",
    ):
        assert part in text, part


def test_the_page_loads_nothing() -> None:
    answer = client(State()).get("/docs")
    seen = Seen(answer.text)
    assert not {tag for tag, _ in seen.tags} & {"script", "link", "img", "iframe", "base", "object"}
    for _, attributes in seen.tags:
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith(("#", "openapi.json"))
    assert "url(" not in answer.text and "@import" not in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_links_lead_somewhere() -> None:
    seen = Seen(page(DOCUMENT))
    ids = {attributes["id"] for _, attributes in seen.tags if "id" in attributes}
    links = {(attributes.get("href") or "")[1:] for tag, attributes in seen.tags if tag == "a"}
    assert links - {"penapi.json"} == ids


def test_paths_that_do_the_same_are_one_endpoint() -> None:
    operation = {"summary": "Hello", "responses": {}}
    paths = {"/a": {"get": {**operation, "operationId": "1"}}, "/b": {"get": operation}}
    text = " ".join(" ".join(Seen(page({"paths": paths})).text).split())
    assert text.count("Hello") == 1 and "also /b" in text


def test_what_may_be_one_of_several_shows_all_its_fields() -> None:
    def variant(role: str, **fields: Any) -> dict[str, Any]:
        return {"type": "object", "properties": {"role": {"const": role}, **fields}}

    either = {"oneOf": [variant("user"), variant("tool", id={"type": "string"})]}
    body = {"content": {"application/json": {"schema": either}}}
    html = page({"paths": {"/a": {"post": {"requestBody": body}}}})
    text = " ".join(" ".join(Seen(html).text).split())
    assert 'role "user" | "tool" id string' in text


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=40)
@given(st.text(max_size=30), _JSON)
def test_text_is_never_markup(text: str, example: Any) -> None:
    evil = f"<script>{text}</script>"
    schema = {"type": "object", "properties": {evil: {"type": evil, "default": example}}}
    body = {"content": {evil: {"schema": schema, "example": {evil: example}}}}
    operation = {"summary": evil, "requestBody": body, "responses": {evil: {"description": evil}}}
    document = {"info": {"title": evil}, "paths": {f'/{evil}"': {"post": operation}}}
    seen = Seen(page(document))
    assert "script" not in {tag for tag, _ in seen.tags}


@pytest.mark.parametrize(
    "broken", [{}, {"paths": {"/a": {"get": {"requestBody": {"$ref": "#/no"}}}}}]
)
def test_odd_documents_make_a_page(broken: dict[str, Any]) -> None:
    assert page(broken).startswith("<!doctype html>")
    assert orjson.loads(client(State(), lambda: broken).get("/openapi.json").content) == broken
