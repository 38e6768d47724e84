"""Servers and clients that these tests share: one process each, for the whole run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.clients import CLIENTS
from support.node import Node, install
from support.servers import Server, running_server

LIMITS = """
[models.generous]
rpm = 1000
rpd = 14400
tpm = 30000
tpd = 500000

[models.metered]
rpm = 100

[models.metered-too]
rpm = 100

[models.tiny]
tpm = 10
"""


@pytest.fixture(scope="session")
def real(default_model_path: Path) -> Iterator[Server]:
    """`headrace serve`, as it is without a single flag."""
    with running_server(home=default_model_path.parents[1]) as server:
        yield server


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A fake engine in no hurry and with room for one, whose names have limits of all kinds."""
    limits = tmp_path_factory.mktemp("limits") / "limits.toml"
    limits.write_text(LIMITS)
    names = ("generous", "metered", "metered-too", "tiny", "org/with-a-slash")
    aliases = [flag for name in names for flag in ("--alias", f"{name}=fake")]
    settings = ("--fake-text", " ".join(map(str, range(200))), "--fake-rate", "60")
    with running_server(
        "--engine", "fake", *settings, "--max-running", "1", "--limits", str(limits), *aliases
    ) as server:
        yield server


@pytest.fixture(scope="session")
def node() -> Node:
    """Node.js with the clients for it."""
    return install()


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, real: Server) -> Any:
    """Either official client, at the real server. What both can do, both must find working."""
    return CLIENTS[request.param](real)
