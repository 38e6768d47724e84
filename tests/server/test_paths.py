"""What base URLs get wrong, put right; and nothing else changed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.server.paths import PREFIXES, NormalPaths, normal


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("/openai/v1/models", "/openai/v1/models"),
        ("/v1/models", "/v1/models"),
        ("//openai/v1/chat/completions", "/openai/v1/chat/completions"),
        ("/openai/v1//chat///completions", "/openai/v1/chat/completions"),
        ("/openai/v1/openai/v1/models", "/openai/v1/models"),
        ("/openai/v1/openai/v1/openai/v1/models", "/openai/v1/models"),
        ("/v1/v1/models", "/v1/models"),
        ("/v1/openai/v1/models", "/openai/v1/models"),
        ("/openai/v1/v1/models", "/v1/models"),
        ("/openai/v1/models/", "/openai/v1/models"),
        ("/health/", "/health"),
        ("/", "/"),
        ("", "/"),
        ("///", "/"),
        ("/openai/v1", "/openai/v1"),
        ("/v1/v1", "/v1"),
        # Not prefixes, though they look like them.
        ("/v1/v1x/models", "/v1/v1x/models"),
        ("/v12/v1/models", "/v12/v1/models"),
        ("/v1/models/v1/v1", "/v1/models/v1/v1"),
        ("/openai/openai/v1/models", "/openai/openai/v1/models"),
        ("/V1/models", "/V1/models"),
    ],
)
def test_paths(asked: str, meant: str) -> None:
    assert normal(asked) == meant


PARTS = st.lists(st.sampled_from(["/", "v1", "openai", "models", "a", "/v1", "/openai/v1"]))


@settings(max_examples=200)
@given(PARTS)
def test_a_normal_path_stays_as_it_is(parts: list[str]) -> None:
    path = normal("".join(parts))
    assert normal(path) == path
    assert "//" not in path and (path == "/" or not path.endswith("/"))


@settings(max_examples=50)
@given(st.lists(st.sampled_from(PREFIXES), max_size=3), st.sampled_from(["models", "a/b"]))
def test_prefixes_are_never_needed_twice(more: list[str], rest: str) -> None:
    for prefix in PREFIXES:
        assert normal(f"{''.join(more)}{prefix}/{rest}") == f"{prefix}/{rest}"


def test_only_http_has_paths() -> None:
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope))

    async def play() -> None:
        normal_paths = NormalPaths(app)
        for scope in ({"type": "http", "path": "//v1//models/"}, {"type": "lifespan"}):
            await normal_paths(scope, None, None)  # type: ignore[arg-type]

    asyncio.run(play())
    assert [scope.get("path") for scope in seen] == ["/v1/models", None]
