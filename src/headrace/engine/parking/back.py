"""Banks come back from disk, into the sequences that would have computed them.

In: sequences and the names of their next banks. Out: sequences that are further on. Thread: the
engine thread; files are read on another one. Next: `files.py`.

To its sequence a bank that was read is as one that was computed: it is put into the sequence's own
bank and committed. A few a step, so that nobody who is being told tokens waits for long; what is
not on disk after all is computed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from headrace.engine.parking.away import Run
from headrace.engine.parking.files import BankFiles
from headrace.engine.parking.parked import Parked
from headrace.engine.scheduler import Scheduler
from headrace.engine.sequence import Sequence
from headrace.errors import ModelError
from headrace.model.interface import Model

_log = logging.getLogger(__name__)

_AHEAD_BYTES: Final = 16 << 20
"""Read and not yet put into place."""
_STEP_BYTES: Final = 4 << 20
"""Put into place in one step while others are told tokens: about a millisecond."""
_IDLE_STEP_BYTES: Final = 64 << 20
_FIRST_BYTES_PER_S: Final = 300e6
"""A guess, until a bank was read."""
_WEIGHT: Final = 0.2
"""Of the latest bank's time, beside all earlier ones."""


@dataclass(slots=True, eq=False)
class _Load:
    """One sequence's banks on their way."""

    sequence: Sequence
    names: tuple[bytes, ...]
    num_asked: int = 0
    num_done: int = 0
    arrived: dict[int, bytes | None] = field(default_factory=dict)
    is_over: bool = False

    @property
    def has_arrived(self) -> bool:
        return self.num_done in self.arrived


class Back:
    """All loads that are under way."""

    def __init__(
        self,
        model: Model,
        parked: Parked,
        files: BankFiles,
        *,
        run: Run,
        post: Run,
        clock: Callable[[], float],
    ) -> None:
        """`run` has work done on the thread that reads, `post` on the engine's; `clock` tells
        seconds."""
        self._model = model
        self._parked = parked
        self._files = files
        self._run = run
        self._post = post
        self._clock = clock
        self._loads: dict[int, _Load] = {}
        self._bank_bytes = model.spec.bank_bytes
        self.bank_s = self._bank_bytes / _FIRST_BYTES_PER_S
        """How long a bank takes, from the file to its place."""
        self.num_loaded = 0
        """Banks put into place so far."""

    def __len__(self) -> int:
        return len(self._loads)

    @property
    def has_arrived(self) -> bool:
        """Something can be put into place."""
        return any(load.has_arrived for load in self._loads.values())

    def begin(self, sequence: Sequence, names: tuple[bytes, ...]) -> None:
        """Fetch a sequence's next banks, which it has reserved."""
        load = _Load(sequence, names)
        self._loads[sequence.id] = load
        self._ask(load)

    def drop(self, sequence: Sequence) -> None:
        """The sequence wants no banks any more, if it did."""
        load = self._loads.pop(sequence.id, None)
        if load is not None:
            load.is_over = True
            load.arrived.clear()

    def step(self, scheduler: Scheduler, *, is_busy: bool) -> list[Sequence]:
        """Put into place what has arrived; the sequences that have all they can get. `is_busy`:
        somebody else waits for this step."""
        left = (_STEP_BYTES if is_busy else _IDLE_STEP_BYTES) // self._bank_bytes
        ended = []
        for load in list(self._loads.values()):
            num_banks = self._put(load, scheduler, max(1, left))
            left -= num_banks
            if load.is_over:
                del self._loads[load.sequence.id]
                self._touch(load)
                ended.append(load.sequence)
            elif num_banks:
                self._ask(load)
            if left <= 0:
                break
        return ended

    def _put(self, load: _Load, scheduler: Scheduler, most: int) -> int:
        """Put up to that many of a load's banks into place; returns how many."""
        num_banks = 0
        while load.has_arrived and num_banks < most and not load.is_over:
            data = load.arrived.pop(load.num_done)
            if data is None or not self._import(load, data):
                # Deleted by another process, or broken.
                self._parked.discard(load.names[load.num_done :])
                scheduler.end_load(load.sequence)
                load.is_over = True
                break
            scheduler.loaded_bank(load.sequence)
            load.num_done += 1
            num_banks += 1
            load.is_over = load.num_done == len(load.names)
        self.num_loaded += num_banks
        return num_banks

    def _import(self, load: _Load, data: bytes) -> bool:
        sequence = load.sequence
        try:
            self._model.import_bank(sequence.banks[sequence.num_committed_banks], data)
        except ModelError as error:
            _log.warning("a bank from disk does not fit: %s", error)
            return False
        return True

    def _ask(self, load: _Load) -> None:
        """Read on, but not too far ahead."""
        ahead = max(2, _AHEAD_BYTES // (self._bank_bytes * len(self._loads)))
        until = min(len(load.names), load.num_done + ahead)
        while load.num_asked < until:
            self._run(partial(self._read, load, load.num_asked))
            load.num_asked += 1

    def _read(self, load: _Load, index: int) -> None:
        if load.is_over:
            return
        began_at = self._clock()
        try:
            data = self._files.read(load.names[index])
        except Exception:
            _log.exception("a bank could not be read from disk")
            data = None
        self._post(partial(self._arrived, load, index, data, self._clock() - began_at))

    def _arrived(self, load: _Load, index: int, data: bytes | None, read_s: float) -> None:
        self.bank_s += _WEIGHT * (read_s - self.bank_s)
        if not load.is_over:
            load.arrived[index] = data

    def _touch(self, load: _Load) -> None:
        leaf = load.sequence.prefix
        path = [] if leaf is None else list(leaf.path())[::-1]
        self._run(partial(self._files.touch, [self._parked.name_of(node) for node in path]))
