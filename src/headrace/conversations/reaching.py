"""How a database is reached: a file of SQLite, or PostgreSQL by URL.

In: a URL. Out: an engine, and for SQLite a lock. Thread: any; opening blocks. Next: `database.py`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from headrace.errors import SettingsError
from headrace.settings import home

FILE = "conversations.db"
"""In the data folder."""
WRITES = "headrace_writes"
"""An option of a connection: it is going to write."""
MAX_CONNECTIONS = 8
"""At the same time."""

MAX_LOG_PAGES = 8_000
"""Of SQLite's log, 4 KB each, before a writer stops to empty it: see `checkpoints.py`."""

_BUSY_S = 15
"""How long SQLite waits for another process that writes."""
_RETRY_S = 0.02


def database_url(url: str | None) -> URL:
    """What a URL means. Raises `SettingsError`, which never repeats a password."""
    if url is None:
        return URL.create("sqlite", database=str(home() / FILE))
    try:
        parsed = make_url(url)
        name = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError):
        name = ""
    if name == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise SettingsError(
                "`database`: SQLite needs a file, like sqlite:///conversations.db",
                param="database",
            )
        return parsed
    if name in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    raise SettingsError(
        "`database` must be a URL like postgresql://user:password@host/name or sqlite:///FILE",
        param="database",
    )


def open_engine(url: URL, is_synced: bool) -> Engine:
    if url.get_backend_name() == "postgresql":
        return create_engine(url, pool_size=MAX_CONNECTIONS, pool_pre_ping=False)
    assert url.database is not None
    path = Path(url.database)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Others on this machine have no business here. The files beside it take its mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    engine = create_engine(
        url, connect_args={"timeout": _BUSY_S, "isolation_level": None}, pool_size=MAX_CONNECTIONS
    )
    event.listen(engine, "connect", lambda raw, _: _prepare(raw, is_synced))
    event.listen(engine, "begin", _begin)
    return engine


def lock_of(url: URL) -> FileLock | None:
    """Beside SQLite's file, for as long as it is open; None where another process has it."""
    if url.get_backend_name() != "sqlite":
        return None
    lock = FileLock(f"{url.database}.lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def _prepare(raw: Any, is_synced: bool) -> None:
    """A new connection to SQLite."""
    _use_log(raw)
    for pragma in (
        f"wal_autocheckpoint = {MAX_LOG_PAGES}",
        f"synchronous = {'FULL' if is_synced else 'NORMAL'}",
        "foreign_keys = ON",
        # What is deleted is gone from the file, too.
        "secure_delete = ON",
    ):
        raw.execute(f"PRAGMA {pragma}")


def _use_log(raw: Any) -> None:
    """Who makes a new file use a log needs it alone, and is refused at once where another process
    does the same: SQLite waits for nobody there."""
    give_up_at = time.monotonic() + _BUSY_S
    while True:
        try:
            raw.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > give_up_at:
                raise
        time.sleep(_RETRY_S)


def _begin(connection: Connection) -> None:
    """Who is going to write says so first: a reader that becomes a writer cannot wait for one."""
    writes = connection.get_execution_options().get(WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
