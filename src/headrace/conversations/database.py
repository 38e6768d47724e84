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
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from filelock import FileLock
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from headrace.conversations.checkpoints import Checkpoints
from headrace.conversations.migrations import migrate
from headrace.conversations.reaching import WRITES, database_url, lock_of, open_engine
from headrace.errors import DatabaseFailed, HeadraceError, SettingsError

_MAX_GROUP = 128
"""Jobs in one transaction."""
_NUM_READERS = 4

_log = logging.getLogger(__name__)
T = TypeVar("T")
U = TypeVar("U")


@dataclass(slots=True, eq=False)
class _Job(Generic[T]):
    """Work, and who waits for it."""

    work: Callable[[Connection], T]
    future: asyncio.Future[T]
    loop: asyncio.AbstractEventLoop
    read: Callable[[Connection, T], Any] | None = None
    """What becomes of the result, once it is kept."""
    result: Any = None
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
            self.future.set_result(self.result)


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
        self._readers = ThreadPoolExecutor(_NUM_READERS, "headrace-reader")
        self._own = threading.local()
        self._checkpoints = None if self.is_postgresql else Checkpoints(engine, self._readers)
        self._is_closed = False
        self._writers = [
            threading.Thread(target=self._write_all, name="headrace-writer", daemon=True)
            for _ in range(num_writers)
        ]
        for writer in self._writers:
            writer.start()

    @classmethod
    def open(cls, url: str | None = None, *, is_synced: bool = False) -> Database:
        """The database at `url`, by default SQLite in the data folder, with its tables brought up
        to date. `is_synced`: what is kept survives a loss of power, at the price of a flush for
        each transaction. Blocks. Raises `SettingsError` for a URL that means nothing here, and
        `DatabaseFailed` where there is no database to be had."""
        parsed = database_url(url)
        try:
            engine = open_engine(parsed, is_synced)
            with engine.connect().execution_options(**{WRITES: True}) as connection:
                migrate(connection)
        except ImportError:
            raise SettingsError(
                "`database` names PostgreSQL, whose driver is not installed; "
                "`pip install 'headrace[postgres]'`",
                param="database",
            ) from None
        except (SQLAlchemyError, OSError) as error:
            raise DatabaseFailed(f"the database cannot be opened: {_reason(error)}") from error
        return cls(engine, lock_of(parsed))

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
                self._engine.connect().execution_options(**{WRITES: True}) as connection,
                connection.begin(),
            ):
                return work(connection)
        except SQLAlchemyError as error:
            raise _failed(error) from error

    async def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, when what it wrote is committed. Raises what it raises, and then
        nothing of it is kept, and `DatabaseFailed`. `work` may run more than once."""
        kept: T = await self._asked(work, None)
        return kept

    async def write_and_read(
        self, work: Callable[[Connection], T], read: Callable[[Connection, T], U]
    ) -> U:
        """What `read` makes of what `work` returned, when that is committed: as `write` and then
        `read`, without the event loop's help in between. What `read` raises undoes nothing."""
        found: U = await self._asked(work, read)
        return found

    async def _asked(
        self, work: Callable[[Connection], T], read: Callable[[Connection, T], Any] | None
    ) -> Any:
        loop = asyncio.get_running_loop()
        job: _Job[T] = _Job(work, loop.create_future(), loop, read)
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
        is_last = False
        while not is_last and (first := self._jobs.get()) is not None:
            group, is_last = self._group(first)
            self._commit(group)
            if self._checkpoints is not None:
                self._checkpoints.count()
            self._read_on([job for job in group if job.read is not None and job.error is None])
            _tell([job for job in group if job.read is None or job.error is not None])
        self._let_go()

    def _read_on(self, jobs: Sequence[_Job[Any]]) -> None:
        """What they wrote is kept; readers do the rest."""
        for job in jobs:
            self._readers.submit(self._read_after, job)

    def _read_after(self, job: _Job[Any]) -> None:
        read, kept = job.read, job.result
        assert read is not None
        try:
            job.result = self._read(lambda connection: read(connection, kept))
        except Exception as error:
            job.error = error
        _tell([job])

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
        try:
            connection = self._connection()
            with connection.begin() as transaction:
                if len(group) > 1:
                    for job in group:
                        job.run_among_others(connection)
                elif not group[0].run(connection):
                    transaction.rollback()
        except BaseException:
            self._let_go()
            raise

    def _connection(self) -> Connection:
        """This writer's own: to get one for each transaction costs as much as a small job."""
        own: Connection | None = getattr(self._own, "connection", None)
        if own is None:
            own = self._engine.connect().execution_options(**{WRITES: True})
            self._own.connection = own
        return own

    def _let_go(self) -> None:
        """Of this writer's connection, which may be lost."""
        own: Connection | None = getattr(self._own, "connection", None)
        self._own.connection = None
        if own is not None:
            own.close()


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
