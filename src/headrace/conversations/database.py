"""The database: SQLite in the data folder, or PostgreSQL by URL; one code path for both.

In: jobs, which are functions of a connection. Out: what they return, once it is kept.
Thread: any event loop; jobs run on threads of the database's own. Next: `store.py`.

Jobs that write are taken by a thread that commits whatever waits for it as one transaction: a
commit costs more than a small job, so a crowd pays for few of them. Each job has its savepoint; one
that raises harms no other. A transaction that fails as a whole is done again, job by job, so a job
may run twice and does nothing but read and write through its connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock, Timeout
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from headrace.conversations.migrations import migrate
from headrace.errors import DatabaseFailed, HeadraceError, SettingsError
from headrace.settings import home

FILE = "conversations.db"
"""In the data folder."""

_MAX_GROUP = 128
"""Jobs in one transaction."""
_NUM_READERS = 4
_BUSY_S = 15
"""How long SQLite waits for another process that writes."""
_RETRY_S = 0.02
_WRITES = "headrace_writes"

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Job(Generic[T]):
    """Work, and who waits for it."""

    work: Callable[[Connection], T]
    future: asyncio.Future[T]
    loop: asyncio.AbstractEventLoop
    result: T | None = None
    error: BaseException | None = None

    def run(self, connection: Connection) -> bool:
        """Whether it could be done; what the work raises is kept. Raises what makes the whole
        transaction fail."""
        self.error = None
        try:
            self.result = self.work(connection)
        except SQLAlchemyError:
            raise
        except Exception as error:
            self.error = error
        return self.error is None

    def run_among_others(self, connection: Connection) -> None:
        """As `run`; what raises leaves nothing."""
        # Past SQLAlchemy, whose own savepoints cost more than a small job.
        execute = connection.connection.driver_connection.execute  # type: ignore[union-attr]
        execute("SAVEPOINT job")
        if not self.run(connection):
            execute("ROLLBACK TO SAVEPOINT job")
        execute("RELEASE SAVEPOINT job")

    def tell(self) -> None:
        """On its loop."""
        if self.future.done():
            return  # who asked has gone
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)  # type: ignore[arg-type]


class Database:
    """Use `Database.open`. Jobs are asked for on event loops; `close` blocks."""

    def __init__(self, engine: Engine, lock: FileLock | None = None) -> None:
        """`engine`: of a database whose tables are up to date. `lock`: held, where no other process
        has this database open."""
        self._engine = engine
        self._lock = lock
        # SQLite has one writer; PostgreSQL's are far away, and wait for its answers.
        num_writers = 4 if self.is_postgresql else 1
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._writers = [
            threading.Thread(target=self._write_all, name="headrace-writer", daemon=True)
            for _ in range(num_writers)
        ]
        for writer in self._writers:
            writer.start()
        self._readers = ThreadPoolExecutor(_NUM_READERS, "headrace-reader")
        self._is_closed = False

    @classmethod
    def open(cls, url: str | None = None, *, is_synced: bool = False) -> Database:
        """The database at `url`, by default SQLite in the data folder, with its tables brought up
        to date. `is_synced`: what is kept survives a loss of power, at the price of a flush for
        each transaction. Blocks. Raises `SettingsError` for a URL that means nothing here, and
        `DatabaseFailed` where there is no database to be had."""
        parsed = database_url(url)
        try:
            engine = _engine(parsed, is_synced)
            with engine.connect().execution_options(**{_WRITES: True}) as connection:
                migrate(connection)
        except ImportError:
            raise SettingsError(
                "`database` names PostgreSQL, whose driver is not installed; "
                "`pip install 'headrace[postgres]'`",
                param="database",
            ) from None
        except (SQLAlchemyError, OSError) as error:
            raise DatabaseFailed(f"the database cannot be opened: {_reason(error)}") from error
        return cls(engine, _lock(parsed))

    @property
    def engine(self) -> Engine:
        """For tests and tools; the server asks through `read` and `write`."""
        return self._engine

    @property
    def is_postgresql(self) -> bool:
        return self._engine.dialect.name == "postgresql"

    @property
    def is_alone(self) -> bool:
        """No other process has it open, as far as can be known: never so of PostgreSQL."""
        return self._lock is not None

    def write_now(self, work: Callable[[Connection], T]) -> T:
        """As `write`, for who has no event loop yet. Blocks."""
        try:
            with (
                self._engine.connect().execution_options(**{_WRITES: True}) as connection,
                connection.begin(),
            ):
                return work(connection)
        except SQLAlchemyError as error:
            raise _failed(error) from error

    async def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, when what it wrote is committed. Raises what it raises, and then
        nothing of it is kept, and `DatabaseFailed`. `work` may run more than once."""
        loop = asyncio.get_running_loop()
        job: _Job[T] = _Job(work, loop.create_future(), loop)
        if self._is_closed:
            raise DatabaseFailed("the database is closed")
        self._jobs.put(job)
        return await job.future

    async def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, of one state of the database. Raises as `write` does."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._readers, self._read, work)
        except RuntimeError:
            if self._is_closed:
                raise DatabaseFailed("the database is closed") from None
            raise

    def _read(self, work: Callable[[Connection], T]) -> T:
        try:
            with self._engine.connect() as connection:
                return work(connection)
        except SQLAlchemyError as error:
            raise _failed(error) from error

    def close(self) -> None:
        """Do what waits, then let go. Blocks."""
        self._is_closed = True
        for _ in self._writers:
            self._jobs.put(None)
        for writer in self._writers:
            writer.join()
        self._readers.shutdown()
        self._engine.dispose()
        if self._lock is not None:
            self._lock.release()

    def _write_all(self) -> None:
        while (first := self._jobs.get()) is not None:
            group, is_last = self._group(first)
            self._commit(group)
            _tell(group)
            if is_last:
                return

    def _group(self, first: _Job[Any]) -> tuple[list[_Job[Any]], bool]:
        """What waits now, and whether there will be no more."""
        group = [first]
        while len(group) < _MAX_GROUP:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return group, True
            group.append(job)
        return group, False

    def _commit(self, group: Sequence[_Job[Any]]) -> None:
        """Each job is done, or has its error. Raises nothing."""
        try:
            self._transact(group)
            return
        except Exception as error:
            if len(group) > 1:
                _log.info("a transaction is done again, job by job: %s", _reason(error))
        for job in group:
            # A second time also where it was alone: a connection may have been lost.
            try:
                self._transact([job])
            except SQLAlchemyError as error:
                job.error = _failed(error)
            except Exception as error:
                job.error = error

    def _transact(self, group: Sequence[_Job[Any]]) -> None:
        with (
            self._engine.connect().execution_options(**{_WRITES: True}) as connection,
            connection.begin() as transaction,
        ):
            if len(group) > 1:
                for job in group:
                    job.run_among_others(connection)
            elif not group[0].run(connection):
                transaction.rollback()


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


def _engine(url: URL, is_synced: bool) -> Engine:
    if url.get_backend_name() == "postgresql":
        return create_engine(url, pool_size=_NUM_READERS + 4, pool_pre_ping=False)
    assert url.database is not None
    path = Path(url.database)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Others on this machine have no business here. The files beside it take its mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    engine = create_engine(
        url, connect_args={"timeout": _BUSY_S, "isolation_level": None}, pool_size=_NUM_READERS + 1
    )
    event.listen(engine, "connect", lambda raw, _: _prepare(raw, is_synced))
    event.listen(engine, "begin", _begin)
    return engine


def _lock(url: URL) -> FileLock | None:
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
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _tell(group: Sequence[_Job[Any]]) -> None:
    """One wake-up for each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Job[Any]]] = defaultdict(list)
    for job in group:
        by_loop[job.loop].append(job)
    for loop, jobs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_tell_each, jobs)
        except RuntimeError:  # the loop is closed: nobody waits any more
            continue


def _tell_each(jobs: Sequence[_Job[Any]]) -> None:
    for job in jobs:
        job.tell()


def _failed(error: SQLAlchemyError) -> HeadraceError:
    _log.error("the database failed: %s", _reason(error))
    return DatabaseFailed(
        "the database cannot be used now; ask again in a moment", retry_after_s=1.0
    )


def _reason(error: BaseException) -> str:
    """In one line, without what was asked or written."""
    original = getattr(error, "orig", None) or error
    return str(original).strip().partition("\n")[0][:300]
