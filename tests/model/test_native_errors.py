"""What the native core refuses: with a clear error from the tree, and with nothing broken after it.

Each refusal is followed by a step that continues a sequence from before it, bit for bit.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from headrace import _native
from headrace.errors import InvalidModelFile, InvalidRequest, ModelError, UnsupportedModel
from headrace.model import gguf, native
from headrace.model.interface import Move, SampleRow, SamplingSettings, Span
from headrace.model.native import NativeModel
from support.gguf_models import ModelShape, write_model
from support.native_runs import ids

VOCAB_SIZE = 300
CONTEXT_LENGTH = 128
POOL_SIZE = 6
SHAPE = ModelShape(
    num_layers=1,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    ffn_size=96,
    vocab_size=VOCAB_SIZE,
    context_length=CONTEXT_LENGTH,
)
PROMPT = ids(range(10, 50))
INT32_MAX = 2**31 - 1


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("errors") / "tiny.gguf", SHAPE, "Q8_0")


@pytest.fixture(scope="module")
def shared(path: Path) -> NativeModel:
    """A model whose banks 4 and 5 hold `PROMPT`."""
    model = native.load(path, threads=2)
    model.allocate(POOL_SIZE)
    model.step([Span(PROMPT, 0, ids([4, 5]), 1)])
    return model


def next_logits(model: NativeModel) -> bytes:
    model.step([Span(ids([7]), len(PROMPT), ids([4, 5]), 1)])
    return model.logits(0).tobytes()


@pytest.fixture
def model(shared: NativeModel) -> Iterator[NativeModel]:
    before = next_logits(shared)
    yield shared
    assert next_logits(shared) == before


def span(
    tokens: object = ids([1]),
    position: object = 0,
    banks: object = ids([0]),
    num_logits: object = 1,
) -> Span:
    return Span(tokens, position, banks, num_logits)  # type: ignore[arg-type]


# Steps.

BAD_SPANS = [
    ("token outside", span(ids([VOCAB_SIZE]))),
    ("token outside", span(ids([-1]))),
    ("token outside", span(ids([1, 2, INT32_MAX]))),
    ("past the model's context", span(position=CONTEXT_LENGTH, banks=ids([0, 1, 2, 3, 0]))),
    ("past the model's context", span(position=-1)),
    ("past the model's context", span(position=INT32_MAX)),
    ("past the model's context", span(ids([1] * (CONTEXT_LENGTH + 1)), banks=ids([0] * 5))),
    ("too few banks", span(position=32)),
    ("too few banks", span(ids([1] * 33))),
    ("too few banks", span(banks=ids([]))),
    ("bank outside the pool", span(banks=ids([POOL_SIZE]))),
    ("bank outside the pool", span(banks=ids([-1]))),
    ("bank outside the pool", span(position=32, banks=ids([INT32_MAX, 0]))),
    ("more logits than tokens", span(num_logits=2)),
    ("more logits than tokens", span(num_logits=-1)),
    ("no tokens", span(ids([]), num_logits=0)),
]
NO_SPANS = [
    span(array("q", [1])),
    span(array("I", [1])),
    span(array("f", [1])),
    span([1]),
    span((1,)),
    span(b"abcd"),
    span(None),
    span(np.zeros((1, 1), np.int32)),
    span(banks=array("q", [0])),
    span(banks=[0]),
    span(banks=None),
    span(position=0.5),
    span(position=None),
    span(position=2**31),
    span(position=2**70),
    span(num_logits="1"),
]


@pytest.mark.parametrize(("message", "bad"), BAD_SPANS)
def test_a_span_that_does_not_fit(model: NativeModel, message: str, bad: Span) -> None:
    good = span(ids([3]), banks=ids([1]))
    for batch, index in (([bad], 0), ([good, bad], 1)):
        with pytest.raises(ModelError, match=f"does not fit the model: span {index}: .*{message}"):
            model.step(batch)


@pytest.mark.parametrize("bad", NO_SPANS)
def test_a_span_of_other_types(model: NativeModel, bad: Span) -> None:
    with pytest.raises(ModelError, match=r"expected spans of \(array\('i'\) of tokens"):
        model.step([span(ids([3]), banks=ids([1])), bad])


def test_nothing_is_computed_before_all_of_a_batch_is_checked(model: NativeModel) -> None:
    before = model.export_bank(1)
    with pytest.raises(ModelError):
        model.step([span(ids([3]), banks=ids([1])), span(ids([VOCAB_SIZE]))])
    assert model.export_bank(1) == before


def test_an_empty_batch_leaves_no_logits(model: NativeModel) -> None:
    model.step([])
    with pytest.raises(ModelError, match="row 0 of 0"):
        model.logits(0)
    assert model.sample([]) == []


# Rows.


@pytest.mark.parametrize("row", [1, -1, INT32_MAX])
def test_a_row_that_the_last_step_did_not_leave(model: NativeModel, row: int) -> None:
    sampler = model.make_sampler(SamplingSettings())
    with pytest.raises(ModelError, match=f"logits row {row} of 1"):
        model.logits(row)
    with pytest.raises(ModelError, match=f"cannot be sampled: logits row {row} of 1"):
        model.sample([SampleRow(0, sampler, 0, None), SampleRow(row, sampler, 0, None)])


@pytest.mark.parametrize("row", [2**40, "0", None, 0.5])
def test_a_row_of_another_type(model: NativeModel, row: object) -> None:
    sampler = model.make_sampler(SamplingSettings())
    with pytest.raises(ModelError, match="expected the number of a row"):
        model.logits(row)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="expected rows of"):
        model.sample([SampleRow(row, sampler, 0, None)])  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", [None, "greedy", SamplingSettings()])
def test_a_sampler_of_another_type(model: NativeModel, sampler: object) -> None:
    with pytest.raises(ModelError, match="expected rows of"):
        model.sample([SampleRow(0, sampler, 0, None)])  # type: ignore[arg-type]


def test_a_negative_position(model: NativeModel) -> None:
    sampler = model.make_sampler(SamplingSettings(1.0))
    with pytest.raises(ModelError, match="expected rows of"):
        model.sample([SampleRow(0, sampler, -1, None)])


NUM_WORDS = (VOCAB_SIZE + 31) // 32


@pytest.mark.parametrize("num_words", [0, 1, NUM_WORDS - 1])
def test_a_mask_shorter_than_the_vocabulary(model: NativeModel, num_words: int) -> None:
    mask = memoryview(array("I", [2**32 - 1] * num_words))
    sampler = model.make_sampler(SamplingSettings())
    with pytest.raises(ModelError, match="mask is shorter than the vocabulary"):
        model.sample([SampleRow(0, sampler, 0, mask)])


def test_a_mask_longer_than_the_vocabulary_is_as_good(model: NativeModel) -> None:
    """Grammars round their masks up as they like."""
    sampler = model.make_sampler(SamplingSettings())
    for num_words in (NUM_WORDS, NUM_WORDS + 3):
        mask = memoryview(array("I", [1 << 9, *[0] * (num_words - 1)]))
        assert model.sample([SampleRow(0, sampler, 0, mask)])[0].token == 9


@pytest.mark.parametrize(
    "mask",
    [
        memoryview(array("i", [-1] * NUM_WORDS)),
        memoryview(array("Q", [1] * NUM_WORDS)),
        memoryview(bytes(4 * NUM_WORDS)),
        [1] * NUM_WORDS,
        7,
    ],
    ids=["signed", "64-bit", "bytes", "list", "number"],
)
def test_a_mask_of_another_type(model: NativeModel, mask: object) -> None:
    sampler = model.make_sampler(SamplingSettings())
    with pytest.raises(ModelError, match="mask of 32-bit words in format 'I'"):
        model.sample([SampleRow(0, sampler, 0, mask)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        SamplingSettings(choice=-1),
        SamplingSettings(choice=2**32),
        SamplingSettings(top_k=2**31),
        SamplingSettings(num_logprobs=2**31),
        SamplingSettings(temperature="hot"),  # type: ignore[arg-type]
        SamplingSettings(logit_bias=((2**31, 1.0),)),
        SamplingSettings(logit_bias=(("a", 1.0),)),  # type: ignore[arg-type]
        SamplingSettings(logit_bias=(5,)),  # type: ignore[arg-type]
        SamplingSettings(logit_bias=((5,),)),  # type: ignore[arg-type]
    ],
)
def test_settings_out_of_range(model: NativeModel, settings: SamplingSettings) -> None:
    with pytest.raises(ModelError, match="sampling settings cannot be used"):
        model.make_sampler(settings)


def test_a_seed_keeps_its_last_64_bits(model: NativeModel) -> None:
    def tokens(seed: int) -> list[int | None]:
        sampler = model.make_sampler(SamplingSettings(1.0, seed=seed))
        return [model.sample([SampleRow(0, sampler, i, None)])[0].token for i in range(30)]

    assert tokens(-5) == tokens(2**64 - 5) == tokens(2**65 - 5) != tokens(5)


# Banks.

NO_BANKS = (POOL_SIZE, -1, INT32_MAX)


@pytest.mark.parametrize("bank", NO_BANKS)
@pytest.mark.parametrize(
    "use",
    [
        lambda model, bank: model.copy_bank(bank, 0),
        lambda model, bank: model.copy_bank(0, bank),
        lambda model, bank: model.shift_bank(bank, 1),
        lambda model, bank: model.move([Move(bank, 0, 0, 0, 1, 0)]),
        lambda model, bank: model.move([Move(0, 0, 1, 0, 1, 0), Move(0, 0, bank, 0, 1, 0)]),
        lambda model, bank: model.export_bank(bank),
        lambda model, bank: model.import_bank(bank, bytes(model.spec.bank_bytes)),
    ],
    ids=["copy from", "copy to", "shift", "move from", "move to", "export", "import"],
)
def test_a_bank_outside_the_pool(
    model: NativeModel, use: Callable[[NativeModel, int], object], bank: int
) -> None:
    with pytest.raises(ModelError, match=f"bank {bank} is not in the pool of {POOL_SIZE}"):
        use(model, bank)


@pytest.mark.parametrize(
    ("first", "at", "num_positions"),
    [(0, 0, 0), (0, 0, -1), (-1, 0, 1), (0, -1, 1), (32, 0, 1), (1, 0, 32), (0, 20, 13)],
)
def test_a_move_that_does_not_fit(
    model: NativeModel, first: int, at: int, num_positions: int
) -> None:
    with pytest.raises(ModelError, match="does not fit into banks of 32"):
        model.move([Move(0, first, 1, at, num_positions, 3)])


def test_a_move_of_another_type(model: NativeModel) -> None:
    for wrong in ([(0, 0, 1, 0, 1)], [5], [(0, 0, 1, 0, 1, 2**31)], [(0, 0, 1, 0, 1, "x")]):
        with pytest.raises(ModelError, match="positions cannot be moved"):
            model.move(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("use", [NativeModel.copy_bank, NativeModel.shift_bank])
@pytest.mark.parametrize("argument", [2**31, None, "0", 0.5])
def test_numbers_of_another_type(
    model: NativeModel, use: Callable[[NativeModel, int, object], None], argument: object
) -> None:
    with pytest.raises(ModelError, match="expected numbers of banks"):
        use(model, 0, argument)


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_bank_of_another_size(model: NativeModel, difference: int) -> None:
    """Such as one parked by a model of other sizes: refused whole, the bank is as it was."""
    right = model.spec.bank_bytes
    before = model.export_bank(4)
    with pytest.raises(ModelError, match=f"has {right} bytes, not {right + difference}"):
        model.import_bank(4, bytes(right + difference))
    with pytest.raises(ModelError, match="expected numbers of banks in the pool, 32-bit, and byte"):
        model.import_bank(4, None)  # type: ignore[arg-type]
    assert model.export_bank(4) == before


def test_a_shift_by_the_greatest_distance_is_a_shift(model: NativeModel) -> None:
    for delta in (INT32_MAX, -INT32_MAX - 1):
        model.step([span(ids([3] * 32), banks=ids([0]))])
        model.shift_bank(0, delta)
        assert np.isfinite(np.frombuffer(model.export_bank(0), np.float16)).all()


# The pool.


def test_no_bank_before_a_pool(path: Path) -> None:
    model = native.load(path, threads=1)
    with pytest.raises(ModelError, match="bank outside the pool"):
        model.step([span()])
    with pytest.raises(ModelError, match="bank 0 is not in the pool of 0"):
        model.export_bank(0)


@pytest.mark.parametrize("num_banks", [-1, 2**31, None, "4"])
def test_a_pool_of_no_number(model: NativeModel, num_banks: object) -> None:
    with pytest.raises(ModelError, match="pool cannot"):
        model.allocate(num_banks)  # type: ignore[arg-type]


def test_a_pool_larger_than_an_address_space(tmp_path: Path) -> None:
    shape = ModelShape(num_layers=1, num_kv_heads=4, head_dim=256, vocab_size=VOCAB_SIZE)
    model = native.load(write_model(tmp_path / "m.gguf", shape, "Q8_0"), threads=1)
    assert model.spec.bank_bytes * INT32_MAX > 2**47
    model.allocate(2)
    model.step([span(ids([1, 2]))])
    before = model.logits(0).tobytes()
    with pytest.raises(ModelError, match=r"no memory for a KV pool of [\d,]+ bytes"):
        model.allocate(INT32_MAX)
    model.step([span(ids([1, 2]))])
    assert model.logits(0).tobytes() == before


# Loading.


@pytest.mark.parametrize("isa", ["neon", "AVX512", " ", "avx512\0"])
def test_an_unknown_instruction_set(path: Path, isa: str) -> None:
    with pytest.raises(InvalidRequest, match=r"this processor has: .*portable") as caught:
        native.load(path, isa=isa)
    assert caught.value.param == "isa"


def test_an_unknown_instruction_set_in_the_environment(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_ISA", "mmx")
    with pytest.raises(InvalidRequest, match="instruction set 'mmx' cannot run here"):
        native.load(path)
    assert native.load(path, isa="portable").spec.isa == "portable"


@pytest.mark.parametrize("isa", _native.cpu()["instruction_sets"])
def test_the_environment_chooses(path: Path, monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    monkeypatch.setenv("HEADRACE_ISA", isa)
    assert native.load(path).spec.isa == isa


@pytest.mark.parametrize("threads", [0, -1, 1025, 2**40])
def test_threads_that_cannot_be(path: Path, threads: int) -> None:
    with pytest.raises(InvalidRequest, match=f"{threads} threads") as caught:
        native.load(path, threads=threads)
    assert caught.value.param == "threads"


def test_no_more_threads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError(os.strerror(errno.EAGAIN))

    monkeypatch.setattr(_native, "Core", refuse)
    with pytest.raises(ModelError, match="no more threads; ask for fewer"):
        native.load(path)


@pytest.mark.parametrize("failure", ["cannot open m.gguf: no", "cannot read tensor"])
def test_a_failure_to_read_says_nothing_about_the_model(
    path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(failure)

    monkeypatch.setattr(_native, "Core", fail)
    with pytest.raises(ModelError, match=f"tiny.gguf: {failure}") as caught:
        native.load(path)
    assert type(caught.value) is ModelError


@pytest.fixture
def parsed(tmp_path: Path) -> gguf.GGUFFile:
    return gguf.read(write_model(tmp_path / "short.gguf", SHAPE, "Q8_0"))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_file_cut_between_parsing_and_loading(parsed: gguf.GGUFFile, share: float) -> None:
    os.truncate(parsed.path, int(parsed.num_bytes * share))
    with pytest.raises(InvalidModelFile, match=r"short\.gguf: changed while it was loading"):
        native.load(parsed)


def test_a_file_gone_between_parsing_and_loading(parsed: gguf.GGUFFile) -> None:
    parsed.path.unlink()
    with pytest.raises(ModelError, match=r"short\.gguf: cannot be read any more: No such file"):
        native.load(parsed)


def test_sizes_that_the_kernels_do_not_have(tmp_path: Path) -> None:
    shape = ModelShape(hidden_size=48, num_heads=3, num_kv_heads=3, head_dim=16, ffn_size=64)
    path = write_model(tmp_path / "odd.gguf", shape, "F32")
    with pytest.raises(UnsupportedModel, match=r"odd\.gguf: hidden size must be a multiple of 32"):
        native.load(path)


# After the end.


@pytest.mark.parametrize(
    "use",
    [
        lambda model, _: model.allocate(2),
        lambda model, _: model.step([span()]),
        lambda model, _: model.step([]),
        lambda model, row: model.sample([row]),
        lambda model, _: model.logits(0),
        lambda model, _: model.copy_bank(0, 1),
        lambda model, _: model.shift_bank(0, 1),
        lambda model, _: model.move([Move(0, 0, 1, 0, 1, 0)]),
        lambda model, _: model.export_bank(0),
        lambda model, _: model.import_bank(0, bytes(model.spec.bank_bytes)),
    ],
)
def test_use_after_close(path: Path, use: Callable[[NativeModel, SampleRow], object]) -> None:
    model = native.load(path, threads=2)
    model.allocate(2)
    model.step([span()])
    row = SampleRow(0, model.make_sampler(SamplingSettings()), 0, None)
    last = model.logits(0)
    before = last.tobytes()
    model.close()
    model.close()
    with pytest.raises(ModelError, match="the model is closed"):
        use(model, row)
    assert model.spec.vocab_size == VOCAB_SIZE
    assert last.tobytes() == before


# In a process of their own: what would end it, were it not refused.

_SCRIPT = """
import json, resource, sys
from array import array
from headrace.errors import HeadraceError
from headrace.model import native
from headrace.model.interface import SampleRow, SamplingSettings, Span

model = native.load(sys.argv[1], threads=2)
model.allocate(2)
good = Span(array("i", [1]), 0, array("i", [0]), 1)
model.step([good])
before = model.logits(0).tobytes()
sampler = model.make_sampler(SamplingSettings())
outcomes = []

def attempt(call, *arguments, **named):
    try:
        call(*arguments, **named)
        outcomes.append("done")
    except HeadraceError as error:
        outcomes.append(type(error).__name__)

{body}
model.step([good])
assert model.logits(0).tobytes() == before
print(json.dumps(outcomes))
"""


def outcomes_of(path: Path, body: str) -> list[str]:
    process = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", _SCRIPT.replace("{body}", body), str(path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    outcomes: list[str] = json.loads(process.stdout)
    return outcomes


def test_spans_and_rows_that_are_no_tuples(path: Path) -> None:
    """The core reads a tuple's parts where they must be; nothing else may reach it."""
    body = """
for bad in (5, None, "span", (array("i", [1]), 0), good[:3], (*good, 1), {}, object()):
    attempt(model.step, [bad])
    attempt(model.step, [good, bad])
    attempt(model.sample, [bad])
for bad in (5, None, object()):
    attempt(model.step, bad)
    attempt(model.sample, bad)
for bad in (5, None, (5,), ((5,),), ((1, 2, 3),), object()):
    attempt(model.make_sampler, SamplingSettings(logit_bias=bad))
"""
    assert set(outcomes_of(path, body)) == {"ModelError"}


def test_lists_in_place_of_tuples(path: Path) -> None:
    body = """
attempt(model.step, [list(good)])
attempt(model.sample, [[0, sampler, 0, None]])
attempt(model.make_sampler, SamplingSettings(logit_bias=[[1, 2.0]]))
"""
    assert outcomes_of(path, body) == ["done"] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space as Linux keeps them")
def test_no_memory_left(path: Path, tmp_path: Path) -> None:
    """Neither for a pool nor for another model's weights; the model that runs runs on."""
    shape = ModelShape(num_layers=1, hidden_size=512, ffn_size=8192)
    large = write_model(tmp_path / "large.gguf", shape)
    body = f"""
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, resource.RLIM_INFINITY))
attempt(model.allocate, 2**25 // model.spec.bank_bytes * 2)
attempt(native.load, {str(large)!r}, threads=1)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
attempt(native.load, {str(large)!r}, threads=1)
"""
    assert outcomes_of(path, body) == ["ModelError", "ModelError", "done"]
