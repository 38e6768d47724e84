"""The banks of a turn that has ended go to disk, one at a time, when the engine has a moment.

In: turns that ended. Out: files. Thread: the engine thread copies banks out; another one writes.
Next: `files.py`.

A rate bounds what that costs the disk and the processor, and is lower while somebody waits for
tokens. First banks go first: a bank without those before it is of no use.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from headrace.engine.kv_cache import KVCache
from headrace.engine.parking.files import BankFiles
from headrace.engine.parking.parked import Parked, name_of_owner
from headrace.engine.pins import Owner
from headrace.engine.prefix_index import Node
from headrace.model.interface import Model

_log = logging.getLogger(__name__)

Work: TypeAlias = Callable[[], None]
Run: TypeAlias = Callable[[Work], object]
"""Has work done somewhere, in the order in which it comes."""

_MAX_WRITING: Final = 4
"""Banks in memory that are on their way to the disk."""
_MAX_QUEUED: Final = 10_000
_BUSY_SHARE: Final = 0.25
"""Of the rate, while sequences run."""
_PAUSE_S: Final = 60.0
"""After a file that could not be written: the disk is full, as a rule."""


class _Job(NamedTuple):
    node: Node
    name: bytes
    used_ns: int
    """Unix time: the order in which files are deleted."""
    owner: bytes


class Away:
    """The queue of banks to be written."""

    def __init__(
        self,
        kv: KVCache,
        model: Model,
        parked: Parked,
        files: BankFiles,
        *,
        bytes_per_s: float,
        run: Run,
        post: Run,
    ) -> None:
        """`run` has work done on the thread that writes, `post` on the engine's."""
        self._kv = kv
        self._model = model
        self._parked = parked
        self._files = files
        self._bytes_per_s = bytes_per_s
        self._run = run
        self._post = post
        self._queue: deque[_Job] = deque()
        self._on_way: set[bytes] = set()
        """Names that are in the queue or being written."""
        self._num_writing = 0
        self._next_at = 0.0
        self._has_failed = False
        self.num_parked = 0
        """Banks written so far."""
        self.num_deleted = 0
        """Banks deleted so far to make room for others."""

    def turn_ended(self, owner: Owner, leaf: Node) -> None:
        """Keep these banks, in their own time, and note whose they are."""
        path = list(leaf.path())[::-1]
        if len(self._queue) + len(path) > _MAX_QUEUED:
            return
        names = [self._parked.name_of(node) for node in path]
        used_ns, whose = time.time_ns(), name_of_owner(owner)
        for depth, (node, name) in enumerate(zip(path, names, strict=True)):
            if name not in self._parked and name not in self._on_way:
                self._queue.append(_Job(node, name, used_ns - depth, whose))
                self._on_way.add(name)
        self._run(partial(self._note, whose, names))

    def step(self, now: float, *, is_busy: bool) -> None:
        """Copy out the next bank, if it is time. Costs what copying one bank costs."""
        if self._has_failed:
            self._has_failed = False
            self._next_at = now + _PAUSE_S
        job = self._next() if self.is_due(now) else None
        if job is not None:
            data = self._model.export_bank(job.node.bank)
            rate = self._bytes_per_s * (_BUSY_SHARE if is_busy else 1.0)
            self._next_at = now + len(data) / rate
            self._num_writing += 1
            self._run(partial(self._write, job, data))

    def is_due(self, now: float) -> bool:
        return self.pause_s(now) == 0

    def pause_s(self, now: float) -> float | None:
        """How long nothing is to be done; None until something has happened."""
        if not self._queue or self._num_writing >= _MAX_WRITING:
            return None
        return max(0.0, self._next_at - now)

    def write_rest(self, until: Callable[[], bool]) -> None:
        """The end: write what is left, here and now, until `until` says so."""
        while not until() and (job := self._next()) is not None:
            if not self._files.knows(job.owner):
                continue
            try:
                self._files.write(job.name, self._model.export_bank(job.node.bank), job.used_ns)
            except OSError:
                return

    def _next(self) -> _Job | None:
        """The first in the queue that is still there, and of use."""
        while self._queue:
            job = self._queue.popleft()
            parent = job.node.parent
            is_of_use = parent is None or self._has(self._parked.name_of(parent))
            if is_of_use and self._kv.index.has(job.node):
                return job
            self._on_way.discard(job.name)
        return None

    def _has(self, name: bytes) -> bool:
        return name in self._parked or name in self._on_way

    def _note(self, owner: bytes, names: list[bytes]) -> None:
        try:
            self._files.belong(owner, names)
            self._files.touch(names)
        except Exception as error:
            self._post(partial(self._failed, error))

    def _write(self, job: _Job, data: bytes) -> None:
        if not self._files.knows(job.owner):
            self._post(partial(self._not_wanted, job))  # forgotten meanwhile
            return
        try:
            deleted = self._files.write(job.name, data, job.used_ns)
        except Exception as error:
            self._post(partial(self._not_written, job, error))
        else:
            self._post(partial(self._written, job, deleted))

    def _written(self, job: _Job, deleted: list[bytes]) -> None:
        self._num_writing -= 1
        self._on_way.discard(job.name)
        self._parked.add(job.name)
        self._parked.discard(deleted)
        self.num_parked += 1
        self.num_deleted += len(deleted)

    def _not_wanted(self, job: _Job) -> None:
        self._num_writing -= 1
        self._on_way.discard(job.name)

    def _not_written(self, job: _Job, error: Exception) -> None:
        self._not_wanted(job)
        self._failed(error)

    def _failed(self, error: Exception) -> None:
        _log.warning("banks cannot be parked on disk: %s", error)
        self._has_failed = True
        self._queue.clear()
        self._on_way.clear()
