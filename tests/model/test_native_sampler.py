"""From logits to a token, against a naive NumPy sampler that draws with the same random numbers.

A model of one small layer gives the logits; what its sampler makes of them is the question here.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headrace import _native
from headrace.model import gguf, native
from headrace.model.interface import Sampled, SampleRow, SamplerState, SamplingSettings, Span
from headrace.model.native import NativeModel
from support.gguf_models import ModelShape, write_model
from support.native_runs import ids, rows

ISAS = tuple(_native.cpu()["instruction_sets"])
# More than two of the chunks that sums run over, and no whole number of lanes.
VOCAB_SIZE = 2603
SHAPE = ModelShape(
    num_layers=1,
    hidden_size=32,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    ffn_size=32,
    vocab_size=VOCAB_SIZE,
    tied_head=False,
)
NUM_ROWS = 24
TWINS = (2100, 77, 1300)
"""Rows of the output head that are equal, so that their logits tie."""
BROKEN = 5
"""A token whose embedding is not a number."""
MARGIN = 1e-5
"""Weights are float32: nearer to an edge than this, a draw may fall on either side."""


def patch_row(path: Path, name: str, row: int, values: np.ndarray) -> None:
    tensor = gguf.read(path).tensors[name]
    with path.open("r+b") as stream:
        stream.seek(tensor.offset + row * tensor.shape[1] * 4)
        stream.write(values.astype(np.float32).tobytes())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_model(tmp_path_factory.mktemp("sampler") / "model.gguf", SHAPE)
    twin = np.random.default_rng(4).normal(size=SHAPE.hidden_size)
    for row in TWINS:
        patch_row(path, "output.weight", row, twin)
    patch_row(path, "token_embd.weight", BROKEN, np.full(SHAPE.hidden_size, np.nan))
    return path


def stepped(path: Path, isa: str, threads: int) -> NativeModel:
    """A model after a step that left `NUM_ROWS` rows of logits."""
    model = native.load(path, isa=isa, threads=threads)
    model.allocate(2)
    tokens = ids(np.random.default_rng(1).integers(100, VOCAB_SIZE, NUM_ROWS).tolist())
    model.step([Span(tokens, 0, ids([0]), NUM_ROWS)])
    return model


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[NativeModel]:
    model = stepped(path, ISAS[0], 2)
    yield model
    model.close()


@pytest.fixture(scope="module")
def logits(model: NativeModel) -> np.ndarray:
    return rows(model, NUM_ROWS)


def mask_of(allowed: Sequence[int]) -> memoryview:
    words = np.zeros((VOCAB_SIZE + 31) // 32, np.uint32)
    for token in allowed:
        words[token // 32] |= np.uint32(1 << token % 32)
    return memoryview(array("I", words.tolist()))


def sample(
    model: NativeModel,
    settings: SamplingSettings,
    row: int = 0,
    position: int = 0,
    mask: memoryview | None = None,
) -> Sampled:
    [sampled] = model.sample([SampleRow(row, model.make_sampler(settings), position, mask)])
    return sampled


# The reference.


def adjusted(
    logits: np.ndarray,
    s: SamplingSettings,
    prompt: Sequence[int] = (),
    generated: Sequence[int] = (),
    allowed: Sequence[int] | None = None,
) -> np.ndarray:
    """Penalties, then bias, then mask, in float32."""
    x = logits.astype(np.float32)
    counts = Counter(generated)
    f = np.float32
    for token in {*prompt, *generated}:
        penalty = f(s.repetition_penalty)
        x[token] = x[token] / penalty if x[token] > 0 else x[token] * penalty
    for token, count in counts.items():
        x[token] = x[token] - f(s.frequency_penalty) * f(count) - f(s.presence_penalty)
    for token, bias in s.logit_bias:
        x[token] += f(bias)
    if allowed is not None:
        x[np.setdiff1d(np.arange(len(x)), allowed)] = -np.inf
    return x


def best_first(x: np.ndarray) -> np.ndarray:
    return np.argsort(-x, kind="stable")


def candidates(x: np.ndarray, s: SamplingSettings) -> tuple[np.ndarray, np.ndarray, float]:
    """Tokens in the order they are drawn in, their probabilities, and how far the nearest decision
    about them was from falling the other way."""
    weights = np.exp((x.astype(np.float64) - x.max()) / s.temperature)
    weights[weights < 2**-60] = 0
    if s.top_k == 0 and s.min_p == 0 and s.top_p >= 1:
        order = np.arange(len(x))
        return order, weights / weights.sum(), 1.0
    order = best_first(x)[: s.top_k or None]
    distance = np.abs(weights[order] - s.min_p).min() if 0 < s.min_p < 1 else 1.0
    order = order[(weights[order] >= s.min_p) & (weights[order] > 0)]
    shares = weights[order] / weights[order].sum()
    before = np.cumsum(shares) - shares
    if s.top_p < 1:
        distance = min(distance, np.abs(before - s.top_p).min())
        order, shares = order[before < s.top_p], shares[before < s.top_p]
    by_id = np.argsort(order)
    return order[by_id], shares[by_id] / shares.sum(), float(distance)


def reference(x: np.ndarray, s: SamplingSettings, position: int) -> tuple[int, float]:
    """The token, and how far the draw was from giving another one."""
    if s.temperature == 0:
        return int(best_first(x)[0]), 1.0
    order, shares, distance = candidates(x, s)
    edges = np.cumsum(shares)
    u = _native.uniform(s.seed, s.choice, position)
    index = min(int(np.searchsorted(edges, u, side="right")), len(order) - 1)
    return int(order[index]), min(distance, float(np.abs(edges[:-1] - u).min(initial=1.0)))


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) - x.max()
    return x - np.log(np.exp(x).sum())


# Against the reference.

TOKEN = st.integers(0, VOCAB_SIZE - 1)
SETTINGS = st.builds(
    SamplingSettings,
    temperature=st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 40, 1000, 5000]),
    top_p=st.sampled_from([1.0, 1.0, 0.95, 0.5, 0.05]),
    min_p=st.sampled_from([0.0, 0.0, 0.02, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    frequency_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    presence_penalty=st.sampled_from([0.0, 1.5, -0.5]),
    seed=st.integers(0, 2**64 - 1),
    choice=st.integers(0, 127),
    logit_bias=st.lists(
        st.tuples(TOKEN, st.sampled_from([-100.0, -1.0, 2.0, 5.0])), max_size=4
    ).map(tuple),
)


@settings(max_examples=250, derandomize=True, deadline=None, database=None)
@given(
    s=SETTINGS,
    row=st.integers(0, NUM_ROWS - 1),
    position=st.integers(0, 2**40),
    prompt=st.lists(TOKEN, max_size=12),
    generated=st.lists(st.sampled_from([*TWINS, 3, 9]), max_size=12),
    allowed=st.none() | st.lists(TOKEN, min_size=1, max_size=60),
)
def test_any_settings(
    model: NativeModel,
    logits: np.ndarray,
    s: SamplingSettings,
    row: int,
    position: int,
    prompt: list[int],
    generated: list[int],
    allowed: list[int] | None,
) -> None:
    x = adjusted(logits[row], s, prompt, generated, allowed)
    expected, distance = reference(x, s, position)
    assume(distance > MARGIN)
    sampler = model.make_sampler(s)
    sampler.observe(ids(prompt), is_prompt=True)
    for token in generated:
        sampler.observe(ids([token]))
    mask = None if allowed is None else mask_of(allowed)
    [sampled] = model.sample([SampleRow(row, sampler, position, mask)])
    assert sampled == (expected, 0.0, [], None)


def prepare_nothing(sampler: SamplerState) -> None: ...


def observe_prompt(sampler: SamplerState) -> None:
    sampler.observe(ids([*range(0, VOCAB_SIZE, 2)]), is_prompt=True)


def observe_generated(sampler: SamplerState) -> None:
    sampler.observe(ids([*range(0, VOCAB_SIZE, 2)] * 2))


@pytest.mark.parametrize(
    ("prepare", "changes"),
    [
        (prepare_nothing, SamplingSettings(temperature=0.9)),
        (prepare_nothing, SamplingSettings(top_k=20)),
        (prepare_nothing, SamplingSettings(top_p=0.5)),
        (prepare_nothing, SamplingSettings(min_p=0.5)),
        (prepare_nothing, SamplingSettings(logit_bias=((9, 6.0),))),
        (prepare_nothing, SamplingSettings(choice=1)),
        (prepare_nothing, SamplingSettings(seed=2**32)),
        (observe_prompt, SamplingSettings(repetition_penalty=1.5)),
        (observe_generated, SamplingSettings(repetition_penalty=1.5)),
        (observe_generated, SamplingSettings(frequency_penalty=0.5)),
        (observe_generated, SamplingSettings(presence_penalty=1.0)),
    ],
)
def test_each_setting_changes_something(
    model: NativeModel, prepare: Callable[[SamplerState], None], changes: SamplingSettings
) -> None:
    """So that agreement with the reference is not agreement about nothing."""

    def tokens(s: SamplingSettings) -> list[int | None]:
        sampler = model.make_sampler(s)
        prepare(sampler)
        sampled = model.sample([SampleRow(0, sampler, i, None) for i in range(100)])
        return [one.token for one in sampled]

    warm = replace(changes, temperature=changes.temperature or 0.5)
    assert tokens(warm) != tokens(SamplingSettings(temperature=0.5))


@pytest.mark.parametrize("penalty", [{"frequency_penalty": 9.0}, {"presence_penalty": 9.0}])
def test_a_prompt_weighs_in_the_repetition_penalty_only(
    model: NativeModel, logits: np.ndarray, penalty: dict[str, float]
) -> None:
    best = int(logits[0].argmax())
    sampler = model.make_sampler(SamplingSettings(**penalty))
    sampler.observe(ids([best]), is_prompt=True)
    assert model.sample([SampleRow(0, sampler, 0, None)])[0].token == best
    sampler.observe(ids([best]))
    assert model.sample([SampleRow(0, sampler, 0, None)])[0].token != best


# Edges of the settings.


@pytest.mark.parametrize(
    "s",
    [
        SamplingSettings(),
        SamplingSettings(temperature=1e-45),
        SamplingSettings(temperature=2.0, top_k=1),
        SamplingSettings(temperature=2.0, top_p=0.0),
    ],
)
def test_argmax(model: NativeModel, logits: np.ndarray, s: SamplingSettings) -> None:
    for row in range(NUM_ROWS):
        assert sample(model, s, row, position=row).token == logits[row].argmax()


def test_min_p_of_one_keeps_what_ties_with_the_best(model: NativeModel, logits: np.ndarray) -> None:
    for row in range(NUM_ROWS):
        token = sample(model, SamplingSettings(2.0, min_p=1.0), row, position=row).token
        assert logits[row, token] == logits[row].max()


@pytest.mark.parametrize("isa", ISAS)
def test_ties_go_to_the_lower_id(path: Path, isa: str) -> None:
    model = stepped(path, isa, 1)
    [tie] = {float(np.array(model.logits(0))[token]) for token in TWINS}
    lift = tuple((token, 50.0) for token in TWINS)
    assert sample(model, SamplingSettings(logit_bias=lift)).token == min(TWINS)
    assert sample(model, SamplingSettings(1.0, top_k=1, logit_bias=lift)).token == min(TWINS)
    two_best = SamplingSettings(1.0, top_k=2, logit_bias=lift)
    drawn = {sample(model, two_best, position=i).token for i in range(40)}
    assert drawn == set(sorted(TWINS)[:2])
    only = mask_of(TWINS)
    assert sample(model, SamplingSettings(), mask=only).token == min(TWINS)
    top = sample(model, SamplingSettings(num_logprobs=VOCAB_SIZE)).top
    assert [token for token, _ in top if token in TWINS] == sorted(TWINS)
    assert np.isfinite(tie)


def test_a_ban_is_a_bias_of_minus_infinity(model: NativeModel, logits: np.ndarray) -> None:
    order = best_first(logits[0])
    banned = tuple((int(token), -float("inf")) for token in order[:3])
    assert sample(model, SamplingSettings(logit_bias=banned)).token == order[3]


def test_ids_outside_the_vocabulary_count_for_nothing(model: NativeModel) -> None:
    s = SamplingSettings(presence_penalty=1.0, logit_bias=((-1, 9.0), (VOCAB_SIZE, 9.0)))
    sampler = model.make_sampler(s)
    sampler.observe(ids([-1, VOCAB_SIZE, 2**31 - 1]))
    [sampled] = model.sample([SampleRow(0, sampler, 0, None)])
    assert sampled == sample(model, SamplingSettings())


# Log-probabilities.


@pytest.mark.parametrize("num_logprobs", [0, 1, 20, VOCAB_SIZE, VOCAB_SIZE + 100])
def test_logprobs_are_of_the_models_own_logits(
    model: NativeModel, logits: np.ndarray, num_logprobs: int
) -> None:
    expected = log_softmax(logits[2])
    s = SamplingSettings(
        0.7, want_logprob=True, num_logprobs=num_logprobs, logit_bias=((9, 12.0),), top_k=3
    )
    sampled = sample(model, s, row=2)
    assert sampled.token is not None
    assert sampled.logprob == pytest.approx(expected[sampled.token], abs=1e-5)
    best = best_first(logits[2])[:num_logprobs].tolist()
    assert [token for token, _ in sampled.top] == best
    assert [logprob for _, logprob in sampled.top] == pytest.approx(expected[best], abs=1e-5)


# Distributions and random numbers.


def philox(seed: int, choice: int, position: int) -> float:
    """Philox 4x32-10 as its paper has it: the definition that a resumed stream relies on."""
    mask = 2**32 - 1
    counter = [position & mask, position >> 32, choice, 0x68656164]
    key = [seed & mask, seed >> 32]
    for _ in range(10):
        first, second = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            (second >> 32) ^ counter[1] ^ key[0],
            second & mask,
            (first >> 32) ^ counter[3] ^ key[1],
            first & mask,
        ]
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return ((counter[0] << 32 | counter[1]) >> 11) * 2.0**-53


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
@settings(max_examples=100, derandomize=True, deadline=None, database=None)
def test_uniform_is_philox(seed: int, choice: int, position: int) -> None:
    assert _native.uniform(seed, choice, position) == philox(seed, choice, position)


@pytest.mark.parametrize("num_candidates", [8, 0])
def test_draws_follow_the_probabilities(
    model: NativeModel, logits: np.ndarray, num_candidates: int
) -> None:
    s = SamplingSettings(0.4, top_k=num_candidates, seed=3)
    order, shares, _ = candidates(adjusted(logits[0], s), s)
    num_draws = 8000
    sampler = model.make_sampler(s)
    outcomes = model.sample([SampleRow(0, sampler, i, None) for i in range(num_draws)])
    counts = Counter(sampled.token for sampled in outcomes)
    assert set(counts) <= set(order.tolist())
    # Tokens too rare to count for themselves are counted together.
    often = shares * num_draws >= 20
    seen = np.array([counts[int(token)] for token in order[often]])
    expected = shares[often] * num_draws
    if not often.all():
        seen, expected = (np.append(x, num_draws - x.sum()) for x in (seen, expected))
    statistic = ((seen - expected) ** 2 / expected).sum()
    freedom = len(seen) - 1
    assert freedom >= 7
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_seed_choice_and_position_make_independent_streams() -> None:
    numbers = np.array(
        [
            [
                [_native.uniform(seed, choice, position) for position in range(300)]
                for choice in (0, 1, 2)
            ]
            for seed in (0, 1, 2**32, 2**63)
        ]
    ).reshape(12, 300)
    assert len(np.unique(numbers)) == numbers.size
    assert np.abs(numbers.mean(1) - 0.5).max() < 4 * (1 / 12 / 300) ** 0.5
    correlations = np.corrcoef(numbers) - np.eye(12)
    assert np.abs(correlations).max() < 4 / 300**0.5
    lagged = [np.corrcoef(row[1:], row[:-1])[0, 1] for row in numbers]
    assert np.abs(lagged).max() < 4 / 300**0.5


# Rows together.


def mixed_rows(model: NativeModel) -> list[SampleRow]:
    """Every kind of row, with samplers of their own."""
    kinds = [
        SamplingSettings(),
        SamplingSettings(0.8, seed=5),
        SamplingSettings(0.8, top_p=0.9, num_logprobs=5),
        SamplingSettings(1.5, top_k=30, logit_bias=((8, 3.0),)),
        SamplingSettings(0.5, min_p=0.05, repetition_penalty=1.2, want_logprob=True),
    ]
    chosen = []
    for index in range(40):
        sampler = model.make_sampler(kinds[index % len(kinds)])
        sampler.observe(ids([index, index + 1]))
        mask = mask_of(range(0, VOCAB_SIZE, 1 + index)) if index % 3 == 0 else None
        chosen.append(SampleRow(index * 7 % NUM_ROWS, sampler, 100 + index, mask))
    return chosen


def test_alone_or_among_others(model: NativeModel) -> None:
    together = model.sample(mixed_rows(model))
    assert len({sampled.token for sampled in together}) > 20
    assert together == [model.sample([row])[0] for row in mixed_rows(model)]
    assert model.sample(mixed_rows(model)[::-1]) == together[::-1]


def test_every_instruction_set_and_thread_count_alike(model: NativeModel, path: Path) -> None:
    expected = model.sample(mixed_rows(model))
    for isa in ISAS:
        for threads in (1, 3):
            other = stepped(path, isa, threads)
            assert other.sample(mixed_rows(other)) == expected
            other.close()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_any_allowed_token_errs_alone(model: NativeModel, temperature: float) -> None:
    expected = model.sample(mixed_rows(model))
    nothing = mask_of([])
    beyond = memoryview(array("I", [*nothing[:-1], 2**32 - 2 ** (VOCAB_SIZE % 32)]))
    sampler = model.make_sampler(SamplingSettings(temperature, num_logprobs=3))
    together = mixed_rows(model)
    together.insert(0, SampleRow(0, sampler, 0, nothing))
    together.insert(20, SampleRow(1, sampler, 0, beyond))
    outcomes = model.sample(together)
    for failed in (outcomes.pop(20), outcomes.pop(0)):
        assert failed.token is None
        assert failed.top == []
        assert failed.error == "no token is allowed here"
    assert outcomes == expected


def test_a_row_that_is_not_a_number_errs_alone(model: NativeModel, path: Path) -> None:
    other = stepped(path, ISAS[0], 2)
    first, last = ids([100, 101]), ids([102])
    other.step([Span(first, 0, ids([0]), 2)])
    sampler = other.make_sampler(SamplingSettings(0.9, seed=1))
    expected = other.sample([SampleRow(0, sampler, 9, None), SampleRow(1, sampler, 9, None)])
    other.step([Span(first, 0, ids([0]), 2), Span(ids([BROKEN]), 0, ids([1]), 1)])
    asked = [SampleRow(row, sampler, 9, None) for row in (0, 2, 1)]
    good, broken, better = other.sample(asked)
    assert [good, better] == expected
    assert broken.token is None
    assert broken.error == "the model's output is not a number"
    # The bank that held the broken keys serves another sequence.
    other.step([Span(last, 0, ids([1]), 1)])
    assert other.sample([SampleRow(0, sampler, 9, None)])[0].error is None


@pytest.mark.parametrize("bias", [float("inf"), float("nan")])
def test_a_bias_that_is_no_number_is_an_error(model: NativeModel, bias: float) -> None:
    sampled = sample(model, SamplingSettings(1.0, logit_bias=((9, bias),)))
    assert sampled.token is None
    assert sampled.error
