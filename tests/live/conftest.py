"""Servers and clients that these tests share: one process each, for the whole run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.server.keys import KeyStore
from support.clients import CLIENTS
from support.node import Node, install
from support.servers import Server, running_server

LIMITS = {
    "generous": {"rpm": 1000, "rpd": 14_400, "tpm": 30_000, "tpd": 500_000},
    # One a second, once 60 came at once.
    **{f"metered-for-{name}": {"rpm": 60} for name in ("groq", "openai", "groq-js", "openai-js")},
    "tiny": {"tpm": 10},
}


@pytest.fixture(scope="session")
def real_home(default_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of this process's own, with the models that all share."""
    home = tmp_path_factory.mktemp("home")
    (home / "models").symlink_to(default_model_path.parent, target_is_directory=True)
    return home


@pytest.fixture(scope="session")
def real(real_home: Path) -> Iterator[Server]:
    """`headrace serve`, as it is without a single flag."""
    with running_server(home=real_home) as server:
        yield server


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A fake engine that counts, 400 tokens a second, one answer at a time. Each of its names has
    limits of its own; `fake` has none."""
    limits = tmp_path_factory.mktemp("limits") / "limits.json"
    limits.write_text(json.dumps({"models": LIMITS}))
    flags = [flag for name in (*LIMITS, "org/slash") for flag in ("--alias", f"{name}=fake")]
    flags += ["--limits", str(limits), "--max-running", "1"]
    flags += ["--fake-text", " ".join(map(str, range(2000))), "--fake-rate", "400"]
    with running_server("--engine", "fake", *flags) as server:
        yield server


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A server that wants a key, and the key."""
    home = tmp_path_factory.mktemp("home")
    _, secret = KeyStore(home / "keys.json").create("tester")
    with running_server("--engine", "fake", "--fake-text", "Hello.", home=home) as server:
        yield server, secret


@pytest.fixture(scope="session")
def node() -> Node:
    """Node.js with the clients for it."""
    return install()


@pytest.fixture(scope="session", params=CLIENTS)
def client(request: pytest.FixtureRequest, real: Server) -> Any:
    """Either official client, at the real server. What both can do, both must find working."""
    return CLIENTS[request.param](real)
