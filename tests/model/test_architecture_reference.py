"""Our float32 reference against `transformers`, so that the same hand does not err twice.

Both read the same file; equality proves the roles, the hyper-parameters and every order of rows
that `architecture.py` states, and makes `support.reference` a thing to measure kernels by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.gguf_models import Q4_K_M, QUANTS, SHAPES, write_model
from support.reference import ReferenceModel

pytest.importorskip("transformers", reason="the reference extra is not installed")
from support.transformers_reference import TransformersModel

# Logits have a standard deviation of 1 here; float32 sums in two orders differ by a few 1e-6.
TOLERANCE = 5e-5
TOKENS = np.random.default_rng(0).integers(0, 331, 48).tolist()


def difference(path: Path, tokens: list[int]) -> float:
    ours, theirs = ReferenceModel(path).logits(tokens), TransformersModel(path).logits(tokens)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float32
    return float(np.abs(ours - theirs).max())


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape(tmp_path: Path, name: str) -> None:
    path = write_model(tmp_path / "model.gguf", SHAPES[name], "F32", seed=3)
    assert difference(path, TOKENS) < TOLERANCE


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_every_type(tmp_path: Path, name: str, quant: str) -> None:
    path = write_model(tmp_path / "model.gguf", SHAPES[name], quant)
    assert difference(path, TOKENS) < TOLERANCE


def test_a_mix_of_types(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", SHAPES["llama-untied"], Q4_K_M)
    assert difference(path, TOKENS) < TOLERANCE


Change = Callable[[ReferenceModel], None]


def set_hyper(**changes: object) -> Change:
    def change(model: ReferenceModel) -> None:
        model.hyper = replace(model.hyper, **changes)  # type: ignore[arg-type]

    return change


def swap(first: str, second: str) -> Change:
    def change(model: ReferenceModel) -> None:
        weights = model.weights
        weights[first, 0], weights[second, 0] = weights[second, 0], weights[first, 0]

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", set_hyper(rope_style="half")),
        ("llama", set_hyper(rope_theta=11_000.0)),
        ("llama", set_hyper(rms_eps=1e-2)),
        ("llama", set_hyper(attention_scale=0.13)),
        ("llama", swap("gate", "up")),
        ("llama", swap("k", "v")),
        ("llama", swap("attn_norm", "ffn_norm")),
        ("llama-bias", set_hyper(has_qkv_bias=False)),
        ("llama-rope-factors", set_hyper(rope_factors=None)),
        ("llama-linear", set_hyper(rope_factors=None)),
        ("qwen2", set_hyper(rope_style="interleaved")),
        ("qwen2", set_hyper(has_qkv_bias=False)),
        ("qwen2", swap("k_bias", "v_bias")),
        ("qwen3", set_hyper(rope_style="interleaved")),
        ("qwen3", set_hyper(has_qk_norm=False)),
        ("qwen3", swap("q_norm", "k_norm")),
    ],
)
def test_a_mistake_would_show(tmp_path: Path, name: str, change: Change) -> None:
    """Each fact of a model moves the logits by far more than the tolerance."""
    model = ReferenceModel(write_model(tmp_path / "model.gguf", SHAPES[name]))
    right = model.logits(TOKENS)
    change(model)
    assert np.abs(model.logits(TOKENS) - right).max() > 50 * TOLERANCE


def test_the_default_model(default_model_path: Path) -> None:
    # "The river rises in the hills, and the water runs to the mill." in the file's vocabulary.
    tokens = [504, 4626, 13685, 281, 260, 12610, 28, 284, 260, 913, 7313, 288, 260, 1663, 30]
    ours = ReferenceModel(default_model_path)
    logits = ours.logits(tokens)
    theirs = TransformersModel(default_model_path).logits(tokens)
    assert np.abs(logits - theirs).max() < 2e-3  # logits up to 30
    assert (logits.argmax(-1) == theirs.argmax(-1)).all()
