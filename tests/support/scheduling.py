"""A model of banks that remembers what was written, and a recount of everything by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from headrace.engine.cost import CostModel, StepRates
from headrace.engine.kv_cache import BankCopy, KVCache
from headrace.engine.scheduler import Plan, Scheduler, SchedulerConfig
from headrace.engine.sequence import Sequence, State
from headrace.engine.shifting import BankMove

RATES = StepRates(base_s=0.003, token_s=0.0003, read_s=1e-6, pair_s=2e-7)
"""A 135M model on two cores, roughly."""


def make_scheduler(
    num_banks: int = 64,
    bank_size: int = 16,
    config: SchedulerConfig | None = None,
    rates: StepRates = RATES,
) -> Scheduler:
    kv = KVCache(num_banks, bank_size, "model")
    return Scheduler(config or SchedulerConfig(), kv, CostModel(rates))


class BankModel:
    """Stands in for the core. A position's content is its tenant and every token up to it, which is
    what real keys and values depend on; equal contents, and only those, have equal numbers."""

    def __init__(self, bank_size: int) -> None:
        self.bank_size = bank_size
        self._contents: dict[int, dict[int, int]] = {}
        self._numbers: dict[tuple[int, str, int], int] = {}

    def step(self, plan: Plan, kv: KVCache) -> None:
        """Read what each span attends to, then write its own positions."""
        indexed = {node.bank for node in kv.index}
        written: set[int] = set()
        for span in plan.spans:
            self.check(span.sequence, span.position)
        for span in plan.spans:
            end = span.position + span.num_tokens
            banks = {span.sequence.banks[p // self.bank_size] for p in range(span.position, end)}
            assert not banks & indexed, "a shared bank was written"
            assert not banks & written, "two spans wrote one bank"
            written |= banks
            for position in range(span.position, end):
                bank = span.sequence.banks[position // self.bank_size]
                content = self._content(span.sequence, position)
                self._contents.setdefault(bank, {})[position % self.bank_size] = content

    def load(self, sequence: Sequence, kv: KVCache) -> None:
        """Put into the sequence's next bank what it would have computed there."""
        bank = sequence.banks[sequence.num_committed_banks]
        assert bank not in {node.bank for node in kv.index}, "a shared bank was written"
        start = sequence.num_computed_tokens
        self.check(sequence, start)
        content = self._content(sequence, start - 1) if start else -1
        self._contents[bank] = {}
        for offset in range(self.bank_size):
            content = self._extend(content, sequence, start + offset)
            self._contents[bank][offset] = content

    def move(self, moves: Iterable[BankMove], sequences: Iterable[Sequence]) -> None:
        """Bring tokens to other positions. There they count as what belongs there, which is what an
        approximation is; that they are the right tokens is checked."""
        owners = {bank: s for s in sequences for bank in s.banks[s.num_committed_banks :]}
        tokens = {number: token for (_, _, token), number in self._numbers.items()}
        for source, first, target, at, num_positions, _ in moves:
            sequence = owners[target]
            start = sequence.banks.index(target) * self.bank_size
            for i in range(num_positions):
                assert tokens[self._contents[source][first + i]] == sequence.tokens[start + at + i]
                content = self._content(sequence, start + at + i)
                self._contents.setdefault(target, {})[at + i] = content

    def check(self, sequence: Sequence, num_positions: int) -> None:
        """The first positions hold exactly what this sequence would have written."""
        content = -1
        for position in range(num_positions):
            content = self._extend(content, sequence, position)
            bank = sequence.banks[position // self.bank_size]
            assert self._contents[bank][position % self.bank_size] == content

    def copy(self, copy: BankCopy | None) -> None:
        if copy is not None:
            self._contents[copy.target] = dict(self._contents[copy.source])

    def _content(self, sequence: Sequence, position: int) -> int:
        """From what is below, as a core would compute it; `check` has compared that."""
        below = -1
        if position:
            bank = sequence.banks[(position - 1) // self.bank_size]
            below = self._contents[bank][(position - 1) % self.bank_size]
        return self._extend(below, sequence, position)

    def _extend(self, below: int, sequence: Sequence, position: int) -> int:
        key = (below, sequence.tenant, sequence.tokens[position])
        return self._numbers.setdefault(key, len(self._numbers))


def audit(kv: KVCache, sequences: Iterable[Sequence]) -> None:
    """Recount every bank and reference from the tables of `sequences`, which are all there are."""
    sequences = list(sequences)
    nodes = {node.bank: node for node in kv.index}
    assert len(nodes) == len(kv.index), "one bank, two contents"
    holders: Counter[int] = Counter()
    private: list[int] = []
    for sequence in sequences:
        _check_table(kv, sequence)
        holders.update(sequence.banks[: sequence.num_committed_banks])
        private += sequence.banks[sequence.num_committed_banks :]
    pins = Counter(node.bank for leaf in kv.pins.leaves for node in leaf.path())

    everywhere = [*kv._free, *nodes, *private]
    assert sorted(everywhere) == list(range(kv.num_banks)), "a bank in two places, or in none"
    assert all(node.num_holders == holders[bank] for bank, node in nodes.items())
    assert all(node.num_pins == pins[bank] for bank, node in nodes.items())
    assert kv.num_free == len(kv._free)
    assert kv.num_cached == sum(not holders[bank] for bank in nodes)
    assert kv.num_held == len(private) + len(holders)
    assert kv.num_free + kv.num_cached + kv.num_held == kv.num_banks
    assert kv.pins.num_banks == len(pins)
    _check_idle(kv)


def _check_table(kv: KVCache, sequence: Sequence) -> None:
    if sequence.state is not State.RUNNING:
        assert not sequence.banks
        assert sequence.prefix is None
    path = [] if sequence.prefix is None else list(sequence.prefix.path())[::-1]
    assert [node.bank for node in path] == list(sequence.banks[: sequence.num_committed_banks])
    data = sequence.tokens[: len(path) * kv.bank_size].tobytes()
    assert b"".join(node.tokens for node in path) == data
    assert all(node.realm == sequence.realm for node in path)
    assert sequence.num_computed_tokens <= len(sequence.banks) * kv.bank_size
    assert sequence.num_computed_tokens <= len(sequence.tokens)
    assert len(set(sequence.banks)) == len(sequence.banks)


def _check_idle(kv: KVCache) -> None:
    """Exactly the idle nodes can be evicted, children before their parents."""
    place = {node: i for i, node in enumerate(kv.index._idle)}
    assert set(place) == {node for node in kv.index if not (node.num_holders or node.num_pins)}
    for node, i in place.items():
        assert all(place[child] < i for child in node.children.values())
