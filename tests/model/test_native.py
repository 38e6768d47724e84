"""The native core computes what the float32 reference computes, for every shape and type.

Logits here have a standard deviation near 1, so a relative error is the noise that a result has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headrace.model import gguf, native
from headrace.model.tokenizer import Tokenizer
from support.gguf_models import Q4_K_M, QUANTS, SHAPES, write_model
from support.native_runs import compute, num_banks_for
from support.reference import ReferenceModel, softmax

# Keys and values are rounded to 16 bits (relative error 2^-12 rms at most): 4e-4 in two layers.
FLOAT_TOLERANCE = 1e-3
# Each matrix sees its input in steps of max|x| / 127 per 32: for a normal x that is an error of
# 2.3 / 127 / sqrt(12) = 0.5 % rms. Nine such matrices follow each other in two layers: 1.6 %, and
# a little more where the input has long tails (what leaves the feed-forward gate).
INT8_TOLERANCE = 2.7e-2
# That error is noise, so the logits keep their scale far better than their values.
SCALE_TOLERANCE = 2e-3

TOKENS = np.random.default_rng(0).integers(0, 331, 70).tolist()
ARCHITECTURES = ("llama", "qwen2", "qwen3")
ALICE = Path(__file__).parents[2] / "bench" / "data" / "alice.txt"

Quant = str | Mapping[str, str]


def logits_of(path: Path, tokens: list[int]) -> np.ndarray:
    model = native.load(path, threads=1)
    model.allocate(num_banks_for(model, len(tokens)))
    logits = compute(model, tokens)
    model.close()
    return logits


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    assert ours.shape == reference.shape and ours.dtype == reference.dtype == np.float32
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


def scale(ours: np.ndarray, reference: np.ndarray) -> float:
    return float(np.vdot(ours, reference) / np.vdot(reference, reference))


def tolerance(quant: Quant) -> float:
    return FLOAT_TOLERANCE if quant in ("F32", "F16", "BF16") else INT8_TOLERANCE


def check(path: Path, quant: Quant) -> None:
    ours, reference = logits_of(path, TOKENS), ReferenceModel(path).logits(TOKENS)
    assert relative_error(ours, reference) < tolerance(quant)
    assert abs(scale(ours, reference) - 1) < SCALE_TOLERANCE


@pytest.mark.parametrize("quant", ["F32", "Q8_0", Q4_K_M], ids=["F32", "Q8_0", "Q4_K_M"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape(tmp_path: Path, name: str, quant: Quant) -> None:
    check(write_model(tmp_path / "model.gguf", SHAPES[name], quant, seed=3), quant)


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_type(tmp_path: Path, name: str, quant: str) -> None:
    check(write_model(tmp_path / "model.gguf", SHAPES[name], quant), quant)


def test_floats_and_quantized_types_in_one_file(tmp_path: Path) -> None:
    mix = {"default": "Q5_K", "attn_k": "F16", "attn_v": "Q8_0", "ffn_up": "BF16", "output": "F32"}
    check(write_model(tmp_path / "model.gguf", SHAPES["qwen2-untied"], mix), mix)


Change = Callable[[ReferenceModel], None]


def set_hyper(**changes: object) -> Change:
    def change(model: ReferenceModel) -> None:
        model.hyper = replace(model.hyper, **changes)  # type: ignore[arg-type]

    return change


def swap(role: str, other: str, layer: int = 0, other_layer: int = 0) -> Change:
    def change(model: ReferenceModel) -> None:
        first, second = (role, layer), (other, other_layer)
        weights = model.weights
        weights[first], weights[second] = weights[second], weights[first]

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", swap("attn_norm", "attn_norm", 0, 1)),
        ("llama", swap("ffn_norm", "ffn_norm", 0, 1)),
        ("llama", swap("attn_norm", "ffn_norm")),
        ("llama", swap("gate", "up")),
        ("llama", set_hyper(rope_style="half")),
        ("llama", set_hyper(rope_theta=20_000.0)),
        ("llama", set_hyper(attention_scale=0.14)),
        ("llama-rope-factors", set_hyper(rope_factors=None)),
        ("llama-linear", set_hyper(rope_factors=None)),
        ("llama-bias", set_hyper(has_qkv_bias=False)),
        ("qwen2", set_hyper(has_qkv_bias=False)),
        ("qwen2", set_hyper(rope_style="interleaved")),
        ("qwen2", swap("k_bias", "v_bias")),
        ("qwen3", set_hyper(has_qk_norm=False)),
        ("qwen3", swap("q_norm", "q_norm", 0, 1)),
        ("qwen3", set_hyper(rope_style="interleaved")),
    ],
)
def test_a_mistake_would_show(tmp_path: Path, name: str, change: Change) -> None:
    """Each fact of a model moves the logits by far more than even the wider tolerance allows."""
    path = write_model(tmp_path / "model.gguf", SHAPES[name], "Q8_0")
    reference = ReferenceModel(path)
    change(reference)
    error = relative_error(logits_of(path, TOKENS), reference.logits(TOKENS))
    assert error > 4 * INT8_TOLERANCE


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_against_transformers(tmp_path: Path, name: str) -> None:
    """The reference that other hands wrote, without ours between."""
    pytest.importorskip("transformers", reason="the reference extra is not installed")
    from support.transformers_reference import TransformersModel

    path = write_model(tmp_path / "model.gguf", SHAPES[name], "F16")
    theirs = TransformersModel(path).logits(TOKENS)
    assert relative_error(logits_of(path, TOKENS), theirs) < FLOAT_TOLERANCE


def test_the_default_model(default_model_path: Path) -> None:
    """200 tokens of a book: the text's statistics, not its logits, are what rounding may move."""
    text = ALICE.read_text(encoding="utf-8")[:2000]
    metadata = gguf.read(default_model_path).metadata
    tokens = Tokenizer.from_metadata(metadata).encode(text)[:200]
    ours = softmax(logits_of(default_model_path, tokens).astype(np.float64))
    theirs = softmax(ReferenceModel(default_model_path).logits(tokens).astype(np.float64))
    divergence = (theirs * np.log(theirs / ours)).sum(-1).mean()
    agreement = (ours.argmax(-1) == theirs.argmax(-1)).mean()
    assert divergence <= 0.005
    assert agreement >= 0.95
