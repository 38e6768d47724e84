"""SQLite's log goes into its file beside the writer, which would stand still for some 20 ms.

In: a word after each transaction. Thread: the writer's; the work is done on a reader's.
Next: `database.py`.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from concurrent.futures import Executor

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

EVERY = 64
"""Transactions, each of some pages."""

_log = logging.getLogger(__name__)


class Checkpoints:
    """Where writers never pause, the log is never quite empty and grows on: then, at
    `reaching.MAX_LOG_PAGES`, the writer moves what little is left, and it begins anew."""

    def __init__(self, engine: Engine, executor: Executor) -> None:
        self._engine = engine
        self._executor = executor
        self._num_waiting = 0
        self._is_free = threading.Lock()

    def count(self) -> None:
        """A transaction was committed."""
        self._num_waiting += 1
        if self._num_waiting >= EVERY and self._is_free.acquire(blocking=False):
            self._num_waiting = 0
            self._executor.submit(self._move)

    def _move(self) -> None:
        try:
            with self._engine.connect() as connection:
                # Past SQLAlchemy, which would begin a transaction first.
                raw = connection.connection.driver_connection
                assert raw is not None
                raw.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except (SQLAlchemyError, sqlite3.Error) as error:
            _log.warning("SQLite's log stays where it is for now: %s", error)
        finally:
            self._is_free.release()
