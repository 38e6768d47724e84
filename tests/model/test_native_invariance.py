"""A row's logits and token depend on its own sequence only, bit for bit.

Every test computes a sequence alone in one step, then again under other circumstances: in chunks,
among others, in other banks, behind another sequence's prefix, with other threads and kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import _native
from headrace.errors import ModelError
from headrace.model import native
from headrace.model.interface import Move, SampleRow, SamplingSettings, Span
from headrace.model.native import NativeModel
from support.gguf_models import Q4_K_M, QUANTS, ModelShape, write_model
from support.native_runs import bank_tables, compute, ids, num_banks_for

ISAS = tuple(_native.cpu()["instruction_sets"])
FASTER = tuple(isa for isa in ISAS if isa != "portable") or ISAS
VOCAB_SIZE = 300
POOL_SIZE = 160

TINY = ModelShape(
    hidden_size=64,
    num_kv_heads=2,
    head_dim=16,
    ffn_size=96,
    vocab_size=VOCAB_SIZE,
    context_length=1024,
)
MIX = {
    "default": "Q4_0",
    "attn_q": "Q4_1",
    "attn_k": "F16",
    "attn_v": "Q8_0",
    "ffn_down": "Q5_1",
    "token_embd": "Q8_0",
}
WIDE = ModelShape(
    "qwen3", num_layers=1, num_heads=6, num_kv_heads=1, head_dim=32, vocab_size=VOCAB_SIZE
)
FILES = {
    "tiny": (TINY, MIX),
    "wide": (WIDE, Q4_K_M),
    "floats": (ModelShape("qwen2", hidden_size=96, vocab_size=VOCAB_SIZE, tied_head=False), "BF16"),
}
CASES = [
    *(("tiny", isa, threads) for isa in ISAS for threads in (1, 2, 3)),
    *((file, isa, 2) for file in ("wide", "floats") for isa in FASTER),
]

SAMPLING = SamplingSettings(temperature=1.0, top_p=0.95, seed=11)

# Position -> the logits there, and the token sampled from them.
Outcome = dict[int, tuple[bytes, int | None]]
Models = Callable[..., NativeModel]


@dataclass(frozen=True)
class Plan:
    """How a sequence takes its way: `tokens[start:]` in chunks, from step `delay` on."""

    tokens: tuple[int, ...]
    start: int = 0
    chunks: tuple[int, ...] = ()
    delay: int = 0
    asks_all: bool = True

    def parts(self) -> list[tuple[int, int] | None]:
        """(first, end) of each step; None where the sequence rests."""
        bounds = [min(len(self.tokens), end) for end in np.cumsum([self.start, *self.chunks])]
        pairs = zip(bounds, [*bounds[1:], len(self.tokens)], strict=True)
        return [None] * self.delay + [pair for pair in pairs if pair[0] < pair[1]]


def random_tokens(seed: int, length: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, VOCAB_SIZE, length).tolist())


@st.composite
def plans(draw: st.DrawFn, max_length: int) -> Plan:
    return Plan(
        random_tokens(draw(st.integers(0, 99)), draw(st.integers(1, max_length))),
        chunks=tuple(draw(st.lists(st.integers(1, 70), max_size=8))),
        delay=draw(st.integers(0, 3)),
        asks_all=draw(st.booleans()),
    )


def run(
    model: NativeModel, plans: Sequence[Plan], tables: Sequence[Sequence[int]]
) -> list[Outcome]:
    """All plans together; the rows of each step are sampled together too."""
    sampler = model.make_sampler(SAMPLING)
    outcomes: list[Outcome] = [{} for _ in plans]
    for parts in zip_longest(*(plan.parts() for plan in plans)):
        batch, places = [], []
        for index, part in enumerate(parts):
            if part is None:
                continue
            first, end = part
            plan = plans[index]
            num_logits = end - first if plan.asks_all else int(end == len(plan.tokens))
            batch.append(Span(ids(plan.tokens[first:end]), first, ids(tables[index]), num_logits))
            places += [(index, position) for position in range(end - num_logits, end)]
        model.step(batch)
        rows = [SampleRow(row, sampler, place[1] + 1, None) for row, place in enumerate(places)]
        for row, sampled in enumerate(model.sample(rows)):
            index, position = places[row]
            outcomes[index][position] = (model.logits(row).tobytes(), sampled.token)
    return outcomes


def scattered_tables(model: NativeModel, plans: Sequence[Plan], seed: int) -> list[list[int]]:
    order = np.random.default_rng(seed).permutation(POOL_SIZE)
    tables = bank_tables(model, [len(plan.tokens) for plan in plans])
    return [order[list(table)].tolist() for table in tables]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """Models by file, instruction set and threads, loaded once, each with a pool."""
    folder = tmp_path_factory.mktemp("models")
    for name, (shape, quant) in FILES.items():
        write_model(folder / f"{name}.gguf", shape, quant)

    @cache
    def get(file: str = "tiny", isa: str = ISAS[0], threads: int = 1) -> NativeModel:
        model = native.load(folder / f"{file}.gguf", isa=isa, threads=threads)
        model.allocate(POOL_SIZE)
        return model

    yield get


@pytest.fixture(scope="module")
def alone(models: Models) -> Callable[[str, tuple[int, ...]], Outcome]:
    """A sequence by itself: one step, one thread, the first banks."""

    @cache
    def get(file: str, tokens: tuple[int, ...]) -> Outcome:
        model = models(file)
        [outcome] = run(model, [Plan(tokens)], [range(num_banks_for(model, len(tokens)))])
        assert len(outcome) == len(tokens)
        return outcome

    return get


Alone = Callable[[str, tuple[int, ...]], Outcome]


def check(alone: Alone, file: str, plans: Sequence[Plan], outcomes: Sequence[Outcome]) -> None:
    for plan, outcome in zip(plans, outcomes, strict=True):
        expected = alone(file, plan.tokens)
        assert len(plan.tokens) - 1 in outcome
        assert all(expected[position] == value for position, value in outcome.items())


@pytest.mark.parametrize(("file", "isa", "threads"), CASES)
def test_alone_or_among_others(
    models: Models, alone: Alone, file: str, isa: str, threads: int
) -> None:
    model = models(file, isa, threads)
    max_others, max_length = (32, 70) if file == "tiny" and isa != "portable" else (5, 40)

    @settings(max_examples=12, derandomize=True, deadline=None, database=None)
    @given(
        plan=plans(330 if file == "tiny" else 90),
        others=st.lists(plans(max_length), max_size=max_others),
        seed=st.integers(0, 99),
    )
    def holds(plan: Plan, others: list[Plan], seed: int) -> None:
        together = [*others[::2], plan, *others[1::2]]
        outcomes = run(model, together, scattered_tables(model, together, seed))
        check(alone, file, together, outcomes)

    holds()


@pytest.mark.parametrize("isa", ISAS)
def test_among_32_others(models: Models, alone: Alone, isa: str) -> None:
    """The full house in any case: 33 sequences that decode, one of them over two partitions."""
    model = models("tiny", isa, 2)
    together = [Plan(random_tokens(i, 3 + i), chunks=(1 + i % 3,)) for i in range(32)]
    together.insert(17, Plan(random_tokens(99, 300), chunks=(290, 1, 1, 1)))
    outcomes = run(model, together, scattered_tables(model, together, seed=5))
    check(alone, "tiny", together, outcomes)


@pytest.mark.parametrize("quant", QUANTS)
def test_every_type(tmp_path: Path, quant: str) -> None:
    """Tokens in panels of 16, 8, 4, 2 and 1, with every instruction set."""
    shape = ModelShape(num_layers=1, ffn_size=256, num_kv_heads=1, vocab_size=VOCAB_SIZE)
    path = write_model(tmp_path / "model.gguf", shape, quant)
    tokens = random_tokens(3, 31)
    results = set()
    for isa in ISAS:
        model = native.load(path, isa=isa, threads=2)
        model.allocate(1)
        for chunks in ((), (1,) * 31, (16, 8, 4, 2), (5, 17)):
            results.add(compute(model, tokens, chunks=chunks).tobytes())
    assert len(results) == 1


def test_the_default_model(default_model_path: Path) -> None:
    """Sizes that no tiny model has: 576 inputs, 49,152 rows."""
    tokens = np.random.default_rng(2).integers(0, 49_152, 40).tolist()
    results = set()
    for isa, threads, chunks in (
        (ISAS[0], 1, ()),
        (ISAS[0], 2, (1, 2, 3, 30)),
        (FASTER[-1], 2, (33,)),
    ):
        model = native.load(default_model_path, isa=isa, threads=threads)
        model.allocate(4)
        results.add(compute(model, tokens, [3, 1], chunks=chunks).tobytes())
        model.close()
    assert len(results) == 1


@pytest.mark.parametrize("isa", ISAS)
def test_behind_a_prefix_of_another_sequence(models: Models, alone: Alone, isa: str) -> None:
    model = models("tiny", isa, 2)
    size = model.spec.bank_size

    @settings(max_examples=12, derandomize=True, deadline=None, database=None)
    @given(
        donor=plans(330).filter(lambda plan: len(plan.tokens) > size),
        heirs=st.lists(plans(70), min_size=1, max_size=4),
        data=st.data(),
    )
    def holds(donor: Plan, heirs: list[Plan], data: st.DataObject) -> None:
        shared = data.draw(st.integers(1, (len(donor.tokens) - 1) // size), "shared banks")
        prefix = donor.tokens[: shared * size]
        followers = [
            Plan(prefix + heir.tokens, len(prefix), heir.chunks, heir.delay, heir.asks_all)
            for heir in heirs
        ]
        donor_table, *own = scattered_tables(model, [donor, *heirs], seed=shared)
        run(model, [donor], [donor_table])
        # The donor grows on while its heirs read what it left.
        growing = Plan((*donor.tokens, 7, 8), len(donor.tokens), (1,))
        spare = next(bank for bank in range(POOL_SIZE) if bank not in sum(own, donor_table))
        tables = [[*donor_table, spare], *([*donor_table[:shared], *table] for table in own)]
        together = [growing, *followers]
        check(alone, "tiny", together, run(model, together, tables))

    holds()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("half", [0x7BFF, 0xFBFF, 0x7C00, 0x7E00, 0x8000, 0x0001])
def test_what_a_bank_held_before(models: Models, alone: Alone, isa: str, half: int) -> None:
    """Greatest, infinite, broken and least numbers from an earlier use: masked keys count zero."""
    model = models("tiny", isa, 2)
    stale = np.full(model.spec.bank_bytes // 2, half, np.uint16).tobytes()
    for bank in range(4):
        model.import_bank(bank, stale)
    plan = Plan(random_tokens(8, 70), chunks=(1, 30, 9))
    check(alone, "tiny", [plan], run(model, [plan], [[3, 1, 0]]))


def test_a_broken_neighbour(models: Models, alone: Alone) -> None:
    """Another sequence's keys and values are not numbers; it errs, and nobody else changes."""
    model = models("tiny", ISAS[0], 2)
    broken = np.full(model.spec.bank_bytes // 2, 0x7E00, np.uint16).tobytes()
    model.import_bank(9, broken)
    others = [Plan(random_tokens(i, 20 + i)) for i in range(3)]
    victim = Plan(random_tokens(7, 36), start=32)
    together = [others[0], victim, *others[1:]]
    outcomes = run(model, together, [[0], [9, 10], [1], [2]])
    assert all(token is None for _, token in outcomes.pop(1).values())
    check(alone, "tiny", others, outcomes)


@pytest.mark.parametrize("isa", ISAS)
def test_copied_banks(models: Models, alone: Alone, isa: str) -> None:
    model = models("tiny", isa, 2)
    tokens = random_tokens(21, 80)
    run(model, [Plan(tokens[:75])], [[4, 5, 6]])
    for source, target in ((4, 20), (5, 2), (6, 11)):
        model.copy_bank(source, target)
    run(model, [Plan(random_tokens(22, 90))], [[4, 5, 6]])
    plan = Plan(tokens, start=75)
    check(alone, "tiny", [plan], run(model, [plan], [[20, 2, 11]]))


@pytest.mark.parametrize("isa", ISAS)
def test_banks_move_between_models(models: Models, alone: Alone, isa: str) -> None:
    """Exported from one instruction set and thread count, imported into another."""
    first, second = models("tiny", isa, 1), models("tiny", ISAS[-1], 3)
    tokens = random_tokens(23, 80)
    run(first, [Plan(tokens[:70])], [[7, 8, 9]])
    parked = [first.export_bank(bank) for bank in (7, 8, 9)]
    assert all(len(data) == first.spec.bank_bytes for data in parked)
    for bank, data in zip((30, 1, 12), parked, strict=True):
        second.import_bank(bank, data)
        assert second.export_bank(bank) == data
    plan = Plan(tokens, start=70, chunks=(3,))
    check(alone, "tiny", [plan], run(second, [plan], [[30, 1, 12]]))


def test_copying_a_bank_to_itself_changes_nothing(models: Models) -> None:
    model = models()
    run(model, [Plan(random_tokens(1, 32))], [[3]])
    before = model.export_bank(3)
    model.copy_bank(3, 3)
    assert model.export_bank(3) == before


# A key is rounded to 16 bits when it is written and again after each shift: errors of 2^-11 at
# most of the longest of a rotated pair.
SHIFT_TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> NativeModel:
    """In one layer a key depends on its token and position only, so dropping what came before and
    shifting the rest equals computing it anew. Its float weights add no noise."""
    shape = ModelShape(num_layers=1, vocab_size=VOCAB_SIZE, rope_theta=1000.0)
    model = native.load(write_model(tmp_path_factory.mktemp("shift") / "m.gguf", shape), threads=1)
    model.allocate(8)
    return model


def test_shifting_by_zero_changes_nothing(models: Models) -> None:
    for isa in ISAS:
        model = models("tiny", isa, 1)
        run(model, [Plan(random_tokens(1, 32))], [[3]])
        before = model.export_bank(3)
        model.shift_bank(3, 0)
        assert model.export_bank(3) == before


def test_every_instruction_set_shifts_alike(models: Models) -> None:
    shifted = set()
    for isa in ISAS:
        model = models("tiny", isa, 1)
        run(model, [Plan(random_tokens(1, 64))], [[3, 4]])
        model.shift_bank(4, -32)
        shifted.add(model.export_bank(4))
    assert len(shifted) == 1


@pytest.mark.parametrize("num_dropped", [1, 3])
def test_shifting_equals_computing_at_the_new_positions(
    one_layer: NativeModel, num_dropped: int
) -> None:
    model, size = one_layer, one_layer.spec.bank_size
    kept = random_tokens(5, size)
    compute(model, random_tokens(4, num_dropped * size) + kept)
    whole = (*kept, 17)
    anew = compute(model, whole, [6, 7])[-1]
    unshifted = compute(model, whole, [num_dropped, 7], start=size)[-1]
    model.shift_bank(num_dropped, -num_dropped * size)
    shifted = compute(model, whole, [num_dropped, 7], start=size)[-1]
    assert np.linalg.norm(shifted - anew) < SHIFT_TOLERANCE * np.linalg.norm(anew)
    assert np.linalg.norm(unshifted - anew) > 50 * SHIFT_TOLERANCE * np.linalg.norm(anew)


def test_shifting_there_and_back(one_layer: NativeModel) -> None:
    """Values keep their bits, keys come back but for two roundings."""
    model, size = one_layer, one_layer.spec.bank_size
    compute(model, random_tokens(6, size), [2])
    before = numbers_of(model, 2)
    model.shift_bank(2, 96)
    between = numbers_of(model, 2)
    model.shift_bank(2, -96)
    after = numbers_of(model, 2)
    assert 0.25 < (before != between).mean() <= 0.5
    longest_pair = 2**0.5 * np.abs(before).max()
    assert np.abs(after - before).max() <= 2 * 2**-11 * longest_pair


@pytest.mark.parametrize("delta", [0, -64, 5])
def test_moving_a_whole_bank_is_copying_and_shifting_it(one_layer: NativeModel, delta: int) -> None:
    model, size = one_layer, one_layer.spec.bank_size
    compute(model, random_tokens(8, size), [2])
    model.copy_bank(2, 3)
    model.shift_bank(3, delta)
    model.move([Move(2, 0, 4, 0, size, delta)])
    assert model.export_bank(4) == model.export_bank(3)


def test_moving_by_an_odd_distance_comes_from_two_banks(one_layer: NativeModel) -> None:
    model, size, gone = one_layer, one_layer.spec.bank_size, 11
    tokens = random_tokens(9, 2 * size)
    compute(model, tokens, [0, 1])
    kept = tokens[gone : gone + size]
    anew = compute(model, (*kept, 17), [6, 7])[-1]
    model.move([Move(0, gone, 5, 0, size - gone, -gone), Move(1, 0, 5, size - gone, gone, -gone)])
    moved = compute(model, (*kept, 17), [5, 7], start=size)[-1]
    assert np.linalg.norm(moved - anew) < SHIFT_TOLERANCE * np.linalg.norm(anew)


def test_what_is_not_moved_to_stays(one_layer: NativeModel) -> None:
    model, size = one_layer, one_layer.spec.bank_size
    compute(model, random_tokens(10, 2 * size), [2, 3])
    before = model.export_bank(3)
    model.move([Move(2, 3, 3, 8, 2, 0)])
    assert model.export_bank(3) != before
    model.copy_bank(3, 4)
    compute(model, random_tokens(10, 2 * size), [2, 3])
    model.move([Move(3, 8, 4, 8, 2, 0)])
    assert model.export_bank(4) == before


def test_every_instruction_set_moves_alike(models: Models) -> None:
    moved = set()
    for isa in ISAS:
        for threads in (1, 3):
            model = models("tiny", isa, threads)
            run(model, [Plan(random_tokens(1, 64))], [[3, 4]])
            model.move([Move(3, 7, 9, 0, 25, -7), Move(4, 0, 9, 25, 7, -7)])
            moved.add(model.export_bank(9))
    assert len(moved) == 1


def numbers_of(model: NativeModel, bank: int) -> np.ndarray:
    return np.frombuffer(model.export_bank(bank), np.float16).astype(np.float32)


def test_touching_banks_changes_nothing(one_layer: NativeModel) -> None:
    tokens = random_tokens(5, 40)
    before = compute(one_layer, tokens)
    kept = one_layer.export_bank(0)
    for first, count in ((0, 2), (1, 3), (3, 100), (1000, 1), (0, 0)):
        one_layer.touch(first, count)
    assert one_layer.export_bank(0) == kept
    assert compute(one_layer, tokens).tobytes() == before.tobytes()
    with pytest.raises(ModelError, match="counted from 0"):
        one_layer.touch(-1, 1)
