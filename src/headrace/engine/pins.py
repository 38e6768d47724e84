"""Which conversations keep their banks while nobody talks, and which of them gives way first.

In: the last bank of a turn that ended, and when. Out: banks that are not evicted. Thread: the
engine thread only. Next: `engine/prefix_index.py`.

A pin is a lease. Each turn renews it for `LEASE_S`, and for as long again with every doubling of
the conversation's turns: who has come back often will rather come back than who was here once. The
lease that ends first gives way first, when there are too many; one that has ended gives way anyway.
What gives way stays cached as any bank, until it is evicted. Moments are told, never read.
"""

from __future__ import annotations

from math import inf, log2
from typing import Final, NamedTuple, TypeAlias

from headrace.engine.prefix_index import Node, PrefixIndex

LEASE_S: Final = 600.0
"""How long the first turn of a conversation keeps its banks."""

Owner: TypeAlias = tuple[str, str]
"""Tenant and conversation."""


class TurnEnd(NamedTuple):
    """A turn of a conversation is over."""

    conversation: str
    at: float
    """Seconds, on any clock that is always the same one."""
    is_good: bool = True
    """False where it broke off: what the conversation kept before is kept still."""


class _Pin(NamedTuple):
    leaf: Node
    num_turns: int
    ends_at: float


class Pins:
    """The leases of all conversations, on banks of one index."""

    def __init__(self, index: PrefixIndex, max_banks: int) -> None:
        """Never more than `max_banks` are pinned, nor by more conversations."""
        self._index = index
        self._max_banks = max_banks
        self._pins: dict[Owner, _Pin] = {}
        self._num_banks = 0
        self._none_ends_before = inf

    def __len__(self) -> int:
        return len(self._pins)

    def __contains__(self, owner: Owner) -> bool:
        return owner in self._pins

    @property
    def num_banks(self) -> int:
        """Banks that some conversation pins, whether a sequence holds them now or not."""
        return self._num_banks

    @property
    def leaves(self) -> list[Node]:
        """The last bank of each conversation; the banks before it are pinned with it."""
        return [pin.leaf for pin in self._pins.values()]

    def leaf_of(self, owner: Owner) -> Node | None:
        """The last bank that the owner keeps."""
        pin = self._pins.get(owner)
        return None if pin is None else pin.leaf

    def renew(self, owner: Owner, leaf: Node | None, at: float) -> bool:
        """A turn has ended at this bank: it and those before it are kept, in place of what the
        owner kept before. Others give way to it; False where it is too long to be kept itself."""
        before = self._pins.get(owner)
        num_turns = before.num_turns + 1 if before is not None else 1
        if leaf is None or sum(1 for _ in leaf.path()) > self._max_banks:
            self.drop(owner)
            return False
        self._pin(leaf)
        self.drop(owner)
        ends_at = at + LEASE_S * (1 + log2(num_turns))
        self._pins[owner] = _Pin(leaf, num_turns, ends_at)
        self._none_ends_before = min(self._none_ends_before, ends_at)
        while max(self._num_banks, len(self._pins)) > self._max_banks:
            self._drop_first_but(owner)
        return True

    def drop(self, owner: Owner) -> Node | None:
        """End a lease, if there is one; returns the last bank that it kept."""
        pin = self._pins.pop(owner, None)
        if pin is None:
            return None
        for node in pin.leaf.path():
            self._index.unpin(node)
            self._num_banks -= not node.num_pins
        # Nobody has used these for the whole lease.
        self._index.make_oldest(pin.leaf)
        return pin.leaf

    def drop_first(self) -> bool:
        """End the lease that would end first; False when there is none."""
        if self._pins:
            self._drop_first_but(None)
            return True
        return False

    def drop_ended(self, now: float) -> None:
        """End the leases whose time is over."""
        if now < self._none_ends_before:
            return
        for owner in [owner for owner, pin in self._pins.items() if pin.ends_at <= now]:
            self.drop(owner)
        self._none_ends_before = min((pin.ends_at for pin in self._pins.values()), default=inf)

    def _pin(self, leaf: Node) -> None:
        for node in leaf.path():
            self._index.pin(node)
            self._num_banks += node.num_pins == 1

    def _drop_first_but(self, kept: Owner | None) -> None:
        owners = (owner for owner in self._pins if owner != kept)
        self.drop(min(owners, key=lambda owner: self._pins[owner].ends_at))
