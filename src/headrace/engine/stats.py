"""How busy an engine is, as a value that any thread may make."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.engine.mailbox import Inbox
from headrace.engine.parking.parking import Parking, ParkingStats
from headrace.engine.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class EngineStats:
    """How busy an engine is."""

    num_pending_requests: int
    num_running: int
    num_waiting: int
    num_banks: int
    num_free_banks: int
    num_cached_banks: int
    num_held_banks: int
    num_pinned_banks: int
    """Cached or held, and kept for a conversation."""
    num_evicted_banks: int
    """Since the engine began: cached once, and given away for others."""
    parking: ParkingStats

    @classmethod
    def of(cls, inbox: Inbox, scheduler: Scheduler, parking: Parking) -> EngineStats:
        """Each figure is true by itself at some moment of the call."""
        kv = scheduler.kv
        return cls(
            num_pending_requests=inbox.num_pending,
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_banks=kv.num_banks,
            num_free_banks=kv.num_free,
            num_cached_banks=kv.num_cached,
            num_held_banks=kv.num_held,
            num_pinned_banks=kv.pins.num_banks,
            num_evicted_banks=kv.num_evicted,
            parking=parking.stats(),
        )
