"""The encoder on our core: close to another's float32, and the same bits whatever else runs."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import _native
from headrace.errors import InvalidModelFile, InvalidRequest, ModelError
from headrace.model.embedder import Embedder
from headrace.model.embedding.native import NativeEmbedder, load
from headrace.model.embedding.slices import slices
from support.embedding_models import (
    SIZES,
    random_tensors,
    write_model,
    write_pooling,
    write_safetensors,
)
from support.transformers_embedder import TransformersEmbedder

ALICE = (Path(__file__).parents[3] / "bench" / "data" / "alice.txt").read_text().split()
ODD_TEXTS = (
    *("", " ", "a", "hi", "¿Qué?", "東京タワー", "def f(x): return x + 1", "12345 67890"),
    *("!!!???", "a" * 300, "[SEP] [CLS]", "İstanbul ß ﬁ", "🙂🙃", "\u200b\x00", "word " * 400),
)


def excerpts(*lengths: int) -> list[str]:
    return [
        " ".join(ALICE[97 * i : 97 * i + n]) for i, n in enumerate(itertools.chain(lengths, [1]))
    ]


@pytest.fixture(scope="module")
def embedder(default_embedder_path: Path) -> NativeEmbedder:
    return load(default_embedder_path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


def test_it_keeps_the_protocol(embedder: NativeEmbedder) -> None:
    kept: Embedder = embedder
    assert (kept.name, kept.dim, kept.max_tokens) == ("all-minilm-l6-v2", 384, 256)
    embedded = kept.embed(["The mill is by the river.", "Where is the mill?", "4711"])
    assert embedded.vectors.shape == (3, 384) and embedded.vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(embedded.vectors, axis=1), 1, atol=1e-6)
    assert embedded.num_tokens == 9 + 7 + 4
    assert embedded.truncated == ()
    close, far = embedded.vectors[0] @ embedded.vectors[1:].T
    assert close > 0.7 > 0.2 > far


def test_no_texts(embedder: NativeEmbedder) -> None:
    assert embedder.embed([]).vectors.shape == (0, 384)


def test_the_vectors_are_those_of_the_float32_model(
    embedder: NativeEmbedder, default_embedder_path: Path
) -> None:
    reference = TransformersEmbedder(default_embedder_path, max_tokens=256)
    texts = [*ODD_TEXTS, *excerpts(*range(1, 30), 60, 100, 170, 250)]
    vectors = embedder.embed(texts).vectors
    cosines = [float(reference.embed(t) @ v) for t, v in zip(texts, vectors, strict=True)]
    assert min(cosines) > 0.9999, texts[int(np.argmin(cosines))]


@pytest.mark.parametrize("takes_first", [False, True])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"hidden_size": 96, "num_attention_heads": 2, "intermediate_size": 32},
        {"hidden_size": 256, "num_attention_heads": 1, "num_hidden_layers": 1},
        {"max_position_embeddings": 600},
    ],
)
def test_small_models_of_other_sizes(
    tmp_path: Path, changed: dict[str, int], takes_first: bool
) -> None:
    folder = write_model(tmp_path / "small", **changed)
    write_pooling(folder, mean_tokens=not takes_first, cls_token=takes_first)
    embedder = load(folder, threads=2)
    reference = TransformersEmbedder(
        folder, max_tokens=embedder.max_tokens, takes_first=takes_first
    )
    texts = ["", "the mill", "a mill turns the stone. " * 2, "water, water", "a b c " * 300]
    for text, vector in zip(texts, embedder.embed(texts).vectors, strict=True):
        assert float(reference.embed(text) @ vector) > 0.9999, text


def test_weights_of_16_bits(tmp_path: Path, tiny: Path) -> None:
    folder = write_model(tmp_path / "half")
    halves = {
        name: ("F16", shape, np.frombuffer(data, np.float32).astype(np.float16).tobytes())
        for name, (_, shape, data) in random_tensors(SIZES).items()
    }
    write_safetensors(folder / "model.safetensors", halves)
    texts = ["the mill", "by the river, by the river"]
    whole, half = load(tiny).embed(texts).vectors, load(folder).embed(texts).vectors
    assert np.all(np.sum(whole * half, axis=1) > 0.9999)


def test_bits_do_not_depend_on_company_threads_or_processor(
    default_embedder_path: Path, embedder: NativeEmbedder
) -> None:
    texts = [*ODD_TEXTS, *excerpts(3, 17, 33, 64, 200, 5)]
    alone = [embedder.embed([text]).vectors[0].tobytes() for text in texts]
    assert [row.tobytes() for row in embedder.embed(texts).vectors] == alone
    for isa, threads in itertools.product(_native.cpu()["instruction_sets"], (1, 3)):
        if isa == "portable" and threads == 1:
            continue  # the slowest; three threads show the same
        other = load(default_embedder_path, threads=threads, isa=isa)
        assert (other.isa, other.num_threads) == (isa, threads)
        some = texts[:6] if isa == "portable" else texts
        got = [row.tobytes() for row in other.embed(list(reversed(some))).vectors]
        assert got == alone[: len(some)][::-1], (isa, threads)


@given(st.lists(st.text("abc .,the mill", max_size=50), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_company_never_matters(tiny: Path, texts: list[str]) -> None:
    embedder = _loaded(tiny)
    together = embedder.embed(texts).vectors
    for text, vector in zip(texts, together, strict=True):
        assert embedder.embed([text]).vectors[0].tobytes() == vector.tobytes()


_LOADED: dict[Path, NativeEmbedder] = {}


def _loaded(folder: Path) -> NativeEmbedder:
    return (
        _LOADED.setdefault(folder, load(folder, threads=2))
        if folder not in _LOADED
        else (_LOADED[folder])
    )


def test_many_threads_at_once(tiny: Path) -> None:
    embedder = load(tiny, threads=2)
    texts = [f"the mill {'a b c ' * (i % 9)}" for i in range(150)]
    expected = embedder.embed(texts).vectors.tobytes()
    got: list[bytes] = []
    workers = [
        threading.Thread(target=lambda: got.append(embedder.embed(texts).vectors.tobytes()))
        for _ in range(6)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert got == [expected] * 6


def test_long_texts_are_cut_and_named(embedder: NativeEmbedder) -> None:
    long = " ".join(ALICE[:900])
    embedded = embedder.embed(["short", long, "short", long + " more"])
    assert embedded.truncated == (1, 3)
    assert embedded.num_tokens == 3 + 256 + 3 + 256
    assert embedded.vectors[1].tobytes() == embedded.vectors[3].tobytes()


def test_identity_names_what_a_vector_depends_on(tmp_path: Path, tiny: Path) -> None:
    other_weights = write_model(tmp_path / "weights", seed=2)
    shorter = write_model(tmp_path / "shorter", max_tokens=20)
    pooled = write_model(tmp_path / "pooled")
    write_pooling(pooled, cls_token=True)
    folders = [tiny, other_weights, shorter, pooled]
    assert len({load(folder).identity for folder in folders}) == 4
    assert load(tiny, threads=1, isa="portable").identity == load(tiny).identity


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "broken")
    tensors = random_tensors(SIZES)
    name = "encoder.layer.0.attention.self.key.weight"
    dtype, shape, data = tensors[name]
    spoiled = np.frombuffer(data, np.float32).copy()
    spoiled[70] = np.nan
    write_safetensors(
        folder / "model.safetensors", tensors | {name: (dtype, shape, spoiled.tobytes())}
    )
    with pytest.raises(InvalidModelFile, match="tensor 'k' of layer 0 has weights that are no num"):
        load(folder)
    bias = "encoder.layer.1.output.LayerNorm.bias"
    dtype, shape, data = tensors[bias]
    endless = np.full(shape, np.inf, np.float32).tobytes()
    write_safetensors(folder / "model.safetensors", tensors | {bias: (dtype, shape, endless)})
    with pytest.raises(ModelError, match="broken: cannot embed: text 0: the model gives no num"):
        load(folder).embed(["the mill", "a"])


@pytest.mark.parametrize(("threads", "isa"), [(0, None), (5000, None), (None, "mmx")])
def test_what_cannot_run_here(tiny: Path, threads: int | None, isa: str | None) -> None:
    with pytest.raises(InvalidRequest):
        load(tiny, threads=threads, isa=isa)


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 300))
def test_slices_are_bounded_and_whole(lengths: list[int], most: int) -> None:
    parts = list(slices(lengths, most))
    assert [i for start, end in parts for i in range(start, end)] == list(range(len(lengths)))
    for start, end in parts:
        assert start < end
        assert end - start == 1 or sum(lengths[start:end]) <= most
