"""The database: jobs, groups of them, failures, and migrations; on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, insert, inspect, select, text

from headrace.conversations import migrations
from headrace.conversations.checkpoints import EVERY
from headrace.conversations.database import Database
from headrace.conversations.memory.tables import documents
from headrace.conversations.reaching import FILE, database_url
from headrace.conversations.tables import conversations, messages, metadata
from headrace.errors import DatabaseFailed, HeadraceError, InvalidRequest, SettingsError

URL = Any


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database.open(database_url)
    yield database
    database.close()


def add(name: str) -> Any:
    def work(connection: Connection) -> int:
        values = {"tenant": "t", "id": name, "metadata": {}, "created_at": 1.0, "updated_at": 1.0}
        return connection.execute(insert(conversations).values(values)).inserted_primary_key[0]

    return work


def count(connection: Connection) -> int:
    return connection.scalar(select(func.count()).select_from(conversations)) or 0


def test_what_was_written_is_read(database: Database) -> None:
    async def play() -> None:
        number = await database.write(add("a"))
        assert number == await database.read(
            lambda c: c.scalar(select(conversations.c.number).where(conversations.c.id == "a"))
        )

    asyncio.run(play())


def test_a_job_that_raises_leaves_nothing_and_harms_no_other(database: Database) -> None:
    def refused(connection: Connection) -> None:
        add("refused")(connection)
        raise InvalidRequest("no", param="x")

    async def play() -> None:
        jobs = [database.write(add(f"{i}") if i % 3 else refused) for i in range(30)]
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert [isinstance(r, InvalidRequest) for r in results] == [i % 3 == 0 for i in range(30)]
        assert await database.read(count) == 20

    asyncio.run(play())


def test_a_job_that_breaks_the_transaction_harms_no_other(database: Database) -> None:
    def broken(connection: Connection) -> None:
        connection.execute(text("INSERT INTO there_is_no_such_table VALUES (1)"))

    async def play() -> None:
        jobs = [database.write(broken if i == 7 else add(f"{i}")) for i in range(20)]
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert [i for i, r in enumerate(results) if isinstance(r, DatabaseFailed)] == [7]
        assert await database.read(count) == 19

    asyncio.run(play())


def test_who_waits_in_a_crowd_shares_a_transaction(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/x.db")
    gate = threading.Event()
    threads: set[str] = set()

    def first(connection: Connection) -> None:
        assert gate.wait(10)

    def look(connection: Connection) -> int:
        threads.add(threading.current_thread().name)
        add(f"{count(connection)}")(connection)
        return count(connection)

    async def play() -> None:
        held = asyncio.ensure_future(database.write(first))
        others = [asyncio.ensure_future(database.write(look)) for _ in range(50)]
        await asyncio.sleep(0)
        # Readers see nothing of what is not committed, and wait for nobody.
        assert await database.read(count) == 0
        gate.set()
        assert await asyncio.gather(*others) == list(range(1, 51))
        await held

    asyncio.run(play())
    database.close()
    assert threads == {"headrace-writer"}


def test_who_leaves_is_not_told(database: Database) -> None:
    async def play() -> None:
        waiting = asyncio.ensure_future(database.write(add("a")))
        await asyncio.sleep(0)
        waiting.cancel()
        await database.write(add("b"))
        assert await database.read(count) in (1, 2)

    asyncio.run(play())


def test_closing_does_what_waits(database_url: str) -> None:
    async def play() -> None:
        database = Database.open(database_url)
        jobs = [asyncio.ensure_future(database.write(add(f"{i}"))) for i in range(10)]
        await asyncio.sleep(0)
        database.close()
        await asyncio.gather(*jobs)
        for refused in (database.write(count), database.read(count)):
            with pytest.raises(DatabaseFailed):
                await refused
        again = Database.open(database_url)
        assert await again.read(count) == 10
        again.close()

    asyncio.run(play())


def test_a_lost_connection_is_made_anew(database_url: str, request: Any) -> None:
    if database_url.startswith("sqlite"):
        pytest.skip("SQLite has no connections to lose")
    database = Database.open(database_url)
    end = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )

    async def play() -> None:
        await asyncio.gather(*[database.write(add(f"{i}")) for i in range(8)])
        await database.write(lambda c: c.execute(end).all())
        await asyncio.gather(*[database.write(add(f"more {i}")) for i in range(8)])
        assert await database.write(count) == 16

    asyncio.run(play())
    database.close()


def test_the_default_is_a_private_file_in_the_data_folder(home: Path) -> None:
    before = os.umask(0)
    try:
        database = Database.open()
        asyncio.run(database.write(add("a")))
    finally:
        os.umask(before)
    files = sorted(home.iterdir())
    assert files[0].name == FILE
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    with database.engine.connect() as connection:
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
        has_keys = connection.exec_driver_sql("PRAGMA foreign_keys").scalar()
    assert (mode, has_keys) == ("wal", 1)
    database.close()


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://x/y", "sqlite://", "sqlite:///:memory:"])
def test_urls_that_mean_nothing_here(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        database_url(url)
    assert caught.value.param == "database"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_spelling_of_postgresql(scheme: str) -> None:
    assert database_url(f"{scheme}://me:pw@host/db").drivername == "postgresql+psycopg"


def test_no_server_is_an_error_without_the_password() -> None:
    with pytest.raises(HeadraceError) as caught:
        Database.open("postgresql://me:geheim@127.0.0.1:1/db")
    assert isinstance(caught.value, DatabaseFailed)
    assert "geheim" not in caught.value.message


def test_the_migrations_make_the_tables_as_they_are_declared(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"include_object": _is_declared, "compare_type": False}
        )
        assert compare_metadata(context, metadata) == []
        columns = {c["name"] for c in inspect(connection).get_columns("messages")}
    assert columns == set(messages.c.keys())
    assert documents.metadata is metadata


def _is_declared(thing: Any, name: str, kind: str, is_reflected: bool, other: Any) -> bool:
    """Not what serves searches, which SQLAlchemy has no words for."""
    searches = ("messages_", "chunk_words", "chunks_by_words", "vectors")
    return not (is_reflected and other is None and (name or "").startswith(searches))


def test_the_head_is_the_newest_version() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [migrations.HEAD]


def test_a_later_version_s_database_is_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/c.db"
    Database.open(url).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "c.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
        connection.commit()
    with pytest.raises(DatabaseFailed, match=r"later headrace: it has version 0999.*update"):
        Database.open(url)


def test_the_log_goes_into_the_file_while_others_write(tmp_path: Path) -> None:
    """Long before the writer itself would stop for it."""
    path, alone = tmp_path / "c.db", tmp_path / "without_log.db"
    database = Database.open(f"sqlite:///{path}")

    def num_in_file() -> int:
        shutil.copy(path, alone)
        with contextlib.closing(sqlite3.connect(alone)) as connection:
            try:
                return int(connection.execute("SELECT count(*) FROM conversations").fetchone()[0])
            except sqlite3.OperationalError:
                return 0  # not even the table

    async def play() -> None:
        assert num_in_file() == 0
        for number in range(EVERY + 1):
            await database.write(add(f"{number}"))
        async with asyncio.timeout(10):
            while num_in_file() < EVERY // 2:
                await asyncio.sleep(0.01)

    asyncio.run(play())
    database.close()


def test_what_is_read_after_a_write_sees_it(database: Database) -> None:
    async def play() -> None:
        found = await database.write_and_read(add("a"), lambda c, number: (number, count(c)))
        assert found[0] >= 1 and found[1] == 1

        def broken(connection: Connection, number: int) -> None:
            raise InvalidRequest("no")

        with pytest.raises(InvalidRequest):
            await database.write_and_read(add("b"), broken)
        assert await database.read(count) == 2
        with pytest.raises(InvalidRequest):
            await database.write_and_read(lambda c: broken(c, 1), lambda c, _: count(c))

    asyncio.run(play())


def test_two_servers_may_start_at_once(database_url: str) -> None:
    script = (
        "import sys; from headrace.conversations.database import Database\n"
        "sys.stdin.readline(); Database.open(sys.argv[1]).close(); print('up')"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, database_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (0, "up\n"), err
