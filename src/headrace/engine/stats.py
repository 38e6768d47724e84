"""How busy an engine is, as a value that any thread may make."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.engine.mailbox import Inbox
from headrace.engine.parking.parking import Parking, ParkingStats
from headrace.engine.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class EngineStats:
    """How busy an engine is. Of banks: free + cached + held = all."""

    num_pending_requests: int
    """Requests that were submitted and have not ended."""
    num_running: int
    """Choices that hold banks, at most `SchedulerConfig.max_running`."""
    num_waiting: int
    """Choices that wait for their turn to hold some."""
    num_banks: int
    """Banks of the KV pool, each of `ModelSpec.bank_size` tokens and `bank_bytes` bytes."""
    num_free_banks: int
    """Banks with nothing in them."""
    num_cached_banks: int
    """Banks that no choice uses, kept for prompts that begin like theirs until room is needed."""
    num_held_banks: int
    """Banks that choices use now."""
    num_pinned_banks: int
    """Cached or held, and kept for a conversation."""
    num_evicted_banks: int
    """Since the engine began: cached once, and given away for others."""
    parking: ParkingStats
    """Banks on disk."""

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
