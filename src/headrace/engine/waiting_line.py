"""Who waits, and whose turn it is: fair between tenants, nearest first within one.

In: sequences. Out: the next to admit. Thread: the engine thread only. Next: `engine/scheduler.py`.

A turn is ordered by (tokens its tenant has been served, its rank, its arrival):

- The least-served tenant is first. A tenant that gets in line after a pause starts level with
  whoever was served last, so that a pause earns no credit.
- rank = tokens the tenant had been served at its arrival + tokens it has to catch up. So the
  nearest to its next token is first, and yet a prompt of n tokens is overtaken by at most n tokens
  of later ones; and one that lost its banks, whose tokens count as served, comes before later ones.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TypeAlias

from headrace.engine.sequence import Sequence

Turn: TypeAlias = tuple[int, int, int]
"""(served, rank, arrival): lower goes first; no two are equal."""

_Entry: TypeAlias = tuple[int, int, Sequence]


class WaitingLine:
    """Waiting sequences, and the tokens that each tenant with unfinished sequences was served."""

    def __init__(self) -> None:
        self.served: dict[str, int] = {}
        """Prompt and generated tokens computed, by tenant. Streams add to it without a turn."""
        self._num_unfinished: dict[str, int] = {}
        self._heaps: dict[str, list[_Entry]] = {}
        self._num_arrived = 0
        self._num_waiting = 0
        self._level = 0
        """What the tenant served last had been served before."""

    def __len__(self) -> int:
        return self._num_waiting

    @property
    def num_tokens(self) -> int:
        """Tokens of all waiting sequences, cached or not."""
        return sum(len(entry[2].tokens) for heap in self._heaps.values() for entry in heap)

    def join(self, sequence: Sequence) -> None:
        """Note an arrival, once a sequence. It need not wait."""
        if sequence.arrival:
            raise ValueError(f"{sequence!r} is here already")
        tenant = sequence.tenant
        if tenant not in self._heaps:
            self.served[tenant] = max(self.served.get(tenant, 0), self._level)
        self._num_unfinished[tenant] = self._num_unfinished.get(tenant, 0) + 1
        self._num_arrived += 1
        sequence.arrival = self._num_arrived
        sequence.rank_base = self.served[tenant]

    def leave(self, sequence: Sequence) -> None:
        """Note the end of a sequence that joined and does not wait any more."""
        tenant = sequence.tenant
        self._num_unfinished[tenant] -= 1
        if not self._num_unfinished[tenant]:
            del self._num_unfinished[tenant]
        if not self._num_unfinished:
            # Nobody is left to compare with.
            self.served.clear()
            self._level = 0
        elif len(self.served) > 2 * len(self._num_unfinished) + 64:
            self._forget_the_absent()

    def serve(self, tenant: str, num_tokens: int) -> None:
        """Note that it was the tenant's turn, and for how many tokens."""
        self._level = max(self._level, self.served[tenant])
        self.served[tenant] += num_tokens

    def push(self, sequence: Sequence, distance: int) -> None:
        """Let a sequence wait that has `distance` tokens to catch up."""
        heap = self._heaps.setdefault(sequence.tenant, [])
        heappush(heap, (sequence.rank_base + distance, sequence.arrival, sequence))
        self._num_waiting += 1

    def first(self) -> tuple[Turn, Sequence] | None:
        """Whose turn it is, without taking it out."""
        if not self._heaps:
            return None
        turns = ((self.served[tenant], *heap[0]) for tenant, heap in self._heaps.items())
        served, rank, arrival, sequence = min(turns)
        return (served, rank, arrival), sequence

    def turn(self, sequence: Sequence, distance: int) -> Turn:
        """The turn of a sequence that runs but has to catch up, to compare with `first`."""
        return self.served[sequence.tenant], sequence.rank_base + distance, sequence.arrival

    def _forget_the_absent(self) -> None:
        """Drop tenants without sequences that would start at the level anyway."""
        present, level = self._num_unfinished, self._level
        self.served = {t: n for t, n in self.served.items() if t in present or n > level}

    def remove(self, sequence: Sequence) -> None:
        """Take a waiting sequence out, from wherever it stands."""
        heap = self._heaps[sequence.tenant]
        if heap[0][2] is sequence:
            heappop(heap)
        else:
            heap[:] = [entry for entry in heap if entry[2] is not sequence]
            heapify(heap)
        if not heap:
            del self._heaps[sequence.tenant]
        self._num_waiting -= 1
