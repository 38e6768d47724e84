"""Banks of conversations on disk, as the engine thread sees it.

In: turns that end, sequences that begin, moments. Out: less to compute. Thread: the engine thread;
files are written and read on two others. Next: `away.py`, `back.py`.

Without a folder it does nothing, so that nobody has to ask whether there is one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Final

from headrace import __version__
from headrace.engine.cost import CostModel
from headrace.engine.kv_cache import KVCache
from headrace.engine.parking.away import Away, Run, Work
from headrace.engine.parking.back import Back
from headrace.engine.parking.files import FORMAT, BankFiles
from headrace.engine.parking.parked import Parked, name_of_owner
from headrace.engine.pins import Owner
from headrace.engine.prefix_index import Node
from headrace.engine.scheduler import Scheduler
from headrace.engine.sequence import Sequence
from headrace.errors import HeadraceError
from headrace.model.digest import digest_of
from headrace.model.interface import Model, ModelSpec

_log = logging.getLogger(__name__)

_OPEN_S: Final = 1.0
"""For looking what is on disk. It takes longer where a large model's file was never read whole, of
which nothing is parked then."""
_LAST_S: Final = 2.0
"""For what is not on disk yet when the engine closes."""


@dataclass(frozen=True, slots=True)
class ParkingConfig:
    """Where banks are parked, and how much that may take."""

    folder: Path
    max_bytes: int
    bytes_per_s: float = 64e6
    """What is written in a second; a quarter of that while sequences run."""

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or not self.bytes_per_s > 0:
            raise ValueError(f"parking needs sizes above 0, not {self}")


@dataclass(frozen=True, slots=True)
class ParkingStats:
    """What was parked and loaded since the engine began, in banks, and what is there."""

    num_parked: int = 0
    num_loaded: int = 0
    num_deleted: int = 0
    """To make room for others."""
    num_on_disk: int = 0
    num_disk_bytes: int = 0
    """As far as this process knows: others may share the folder."""


def own_thread() -> tuple[Run, Work]:
    """A thread that does work in the order in which it comes, from the first on."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="headrace-banks")

    def run(work: Work) -> None:
        # None is taken once the interpreter is going.
        with suppress(RuntimeError):
            pool.submit(work)

    return run, pool.shutdown


class Parking:
    """Banks away to disk, and back."""

    def __init__(
        self,
        config: ParkingConfig | None,
        model: Model,
        kv: KVCache,
        cost: CostModel,
        *,
        post: Run,
        clock: Callable[[], float],
        start: Callable[[], tuple[Run, Work]] = own_thread,
    ) -> None:
        """`post` has work done on the engine thread. `start` makes a place where files are used,
        and says how it ends. None: nothing is parked."""
        self._kv = kv
        self._cost = cost
        self._post = post
        self._clock = clock
        self._is_on = config is not None
        config = config or ParkingConfig(Path(), 1)
        self._files = BankFiles(config.folder, config.max_bytes)
        self._parked = Parked(kv)
        self._run, self._end_writing = start()
        read, self._end_reading = start()
        self._away = Away(
            kv,
            model,
            self._parked,
            self._files,
            bytes_per_s=config.bytes_per_s,
            run=self._run,
            post=post,
        )
        self._back = Back(model, self._parked, self._files, run=read, post=post, clock=clock)
        if self._is_on:
            has_opened = Event()
            self._run(partial(self._open, model.spec, has_opened))
            # Or the first turn after a restart would be cold.
            has_opened.wait(_OPEN_S)

    @property
    def is_loading(self) -> bool:
        return len(self._back) > 0

    @property
    def num_loading(self) -> int:
        """Sequences whose banks are being read."""
        return len(self._back)

    @property
    def has_arrived(self) -> bool:
        """The next step puts banks into place."""
        return self._back.has_arrived

    def find(self, sequence: Sequence) -> tuple[bytes, ...]:
        """The banks that a sequence needs next and that are on disk, if reading them is quicker
        than computing them."""
        names = self._parked.names_after(sequence)
        is_quicker = self._is_quicker(len(names), sequence.num_computed_tokens)
        return tuple(names) if is_quicker else ()

    def _is_quicker(self, num_banks: int, position: int) -> bool:
        compute_s = self._cost.price(num_banks * self._kv.bank_size, position)
        return num_banks * self._back.bank_s < compute_s

    def load(self, sequence: Sequence, names: tuple[bytes, ...]) -> None:
        """Fetch what `find` has found; the sequence computes nothing until then."""
        self._back.begin(sequence, names)

    def drop(self, sequence: Sequence) -> None:
        """A sequence has lost its banks."""
        self._back.drop(sequence)

    def turn_ended(self, owner: Owner, leaf: Node) -> None:
        """Park the banks that a good turn has left, in time."""
        if self._parked.is_open:
            self._away.turn_ended(owner, leaf)

    def forget(self, owner: Owner, is_done: Future[None]) -> None:
        """Delete what is parked for a conversation alone; `is_done` hears of it, on any thread."""
        if self._is_on:
            self._run(partial(self._forget, name_of_owner(owner), is_done))
        else:
            is_done.set_result(None)

    def step(self, scheduler: Scheduler, now: float, *, is_busy: bool) -> list[Sequence]:
        """What there is to do at this moment, for a bounded time; the sequences whose banks are
        all there, as far as they could be had. `is_busy`: others run."""
        self._away.step(now, is_busy=is_busy)
        return self._back.step(scheduler, is_busy=is_busy) if self.is_loading else []

    def is_due(self, now: float) -> bool:
        return self._away.is_due(now)

    def pause_s(self, now: float) -> float | None:
        """How long the engine may sleep; None: until somebody wakes it."""
        return self._away.pause_s(now)

    def stats(self) -> ParkingStats:
        """Any thread."""
        return ParkingStats(
            self._away.num_parked,
            self._back.num_loaded,
            self._away.num_deleted,
            len(self._parked),
            self._files.num_bytes,
        )

    def close(self) -> None:
        """Write what is not on disk yet, for a moment, and end."""
        self._end_reading()
        self._end_writing()
        ends_at = self._clock() + _LAST_S
        self._away.write_rest(lambda: self._clock() >= ends_at)

    def _open(self, spec: ModelSpec, has_opened: Event) -> None:
        try:
            identity = identity_of(spec)
            names = self._files.open()
        except (OSError, HeadraceError) as error:
            _log.warning("banks are not parked on disk: %s", error)
        else:
            self._post(partial(self._parked.open, identity, names))
        finally:
            has_opened.set()

    def _forget(self, owner: bytes, is_done: Future[None]) -> None:
        try:
            names = self._files.forget(owner)
        except OSError as error:
            is_done.set_exception(error)
        else:
            self._post(partial(self._parked.discard, names))
            is_done.set_result(None)


def identity_of(spec: ModelSpec) -> str:
    """All that a bank's content depends on beside tenant and tokens, and how it is written."""
    sha256 = "none" if spec.path is None else digest_of(spec.path)
    return f"{FORMAT}/{__version__}/{sha256}/{spec.identity}/{spec.bank_bytes}"
