"""The official Node.js clients; what they must find is written in their own language."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.node import Node
from support.servers import Server

SCRIPTS = Path(__file__).parent / "node"


def check(node: Node, script: str, **environ: str) -> None:
    done = node.run("--test-reporter=spec", SCRIPTS / script, environ=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pass 0" not in done.stdout


@pytest.mark.parametrize("name", ["groq-sdk", "openai"])
def test_both_clients(
    node: Node, name: str, real: Server, fake: Server, locked: tuple[Server, str]
) -> None:
    check(
        node,
        "clients.test.cjs",
        CLIENT=name,
        REAL=real.base_url,
        FAKE=fake.base_url,
        LOCKED=locked[0].base_url,
        KEY=locked[1],
    )


def test_what_openais_has_beyond(node: Node, real: Server) -> None:
    check(node, "openai.test.cjs", REAL=real.base_url)
