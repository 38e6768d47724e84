"""Hyper-parameters and roles: right for every supported shape, an error for all else."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import HeadraceError, InvalidModelFile, UnsupportedModel
from headrace.model import architecture, gguf
from headrace.model.architecture import describe
from headrace.model.gguf import GGMLType, GGUFFile, TensorInfo
from headrace.model.roles import layout
from support import gguf_bytes as raw
from support.gguf_models import Q4_K_M, SHAPES, ModelShape, write_model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], GGUFFile]:
    """A written file of a named shape; made once."""
    folder, made = tmp_path_factory.mktemp("models"), dict[str, GGUFFile]()

    def file(name: str) -> GGUFFile:
        if name not in made:
            made[name] = gguf.read(write_model(folder / f"{name}.gguf", SHAPES[name]))
        return made[name]

    return file


Files = Callable[[str], GGUFFile]


def with_keys(file: GGUFFile, changes: Mapping[str, Any]) -> GGUFFile:
    """`file` with keys set, or taken away by None; a key beginning with "." is the model's own."""
    metadata = dict(file.metadata)
    for key, value in changes.items():
        full = file.architecture + key if key.startswith(".") else key
        metadata[full] = value
        if value is None:
            del metadata[full]
    return replace(file, metadata=metadata)


def with_tensor(file: GGUFFile, name: str, **changes: Any) -> GGUFFile:
    """`file` with one tensor changed, or added as another `token_embd.weight`."""
    tensor = file.tensors.get(name, file.tensors["token_embd.weight"])
    return replace(file, tensors={**file.tensors, name: replace(tensor, name=name, **changes)})


def without_tensor(file: GGUFFile, name: str) -> GGUFFile:
    return replace(file, tensors={key: info for key, info in file.tensors.items() if key != name})


@pytest.mark.parametrize("name", SHAPES)
def test_describes_every_shape(files: Files, name: str) -> None:
    shape, hyper = SHAPES[name], describe(files(name))
    for field in fields(ModelShape):
        if field.name not in ("qkv_bias", "rope_factors", "linear_scaling", "rms_eps"):
            assert getattr(hyper, field.name) == getattr(shape, field.name), field.name
    assert hyper.rms_eps == pytest.approx(shape.rms_eps)
    assert hyper.has_qkv_bias == shape.has_qkv_bias
    assert hyper.has_qk_norm == shape.has_qk_norm
    assert hyper.rope_style == ("interleaved" if shape.architecture == "llama" else "half")
    assert hyper.rope_dim == shape.head_dim
    assert hyper.attention_scale == pytest.approx(shape.head_dim**-0.5)


@pytest.mark.parametrize("name", SHAPES)
def test_every_tensor_has_one_role(files: Files, name: str) -> None:
    file = files(name)
    hyper = describe(file)
    roles = list(layout(file, hyper).by_role())
    assert len({(role, layer) for role, layer, _ in roles}) == len(roles)
    names = [tensor.name for role, _, tensor in roles if role != "output_head"]
    assert len(set(names)) == len(names)
    assert set(file.tensors) - set(names) <= {"output.weight", "rope_freqs.weight"}
    heads = {role: tensor for role, layer, tensor in roles if layer is None}
    wanted = "token_embd.weight" if hyper.tied_head else "output.weight"
    assert heads["output_head"].name == wanted


def test_roles_of_a_layer(files: Files) -> None:
    file = files("qwen3-untied")
    layer = layout(file, describe(file)).layers[1]
    assert layer.q.name == "blk.1.attn_q.weight" and layer.q.shape == (256, 256)
    assert layer.k.name == "blk.1.attn_k.weight" and layer.k.shape == (64, 256)
    assert layer.v.name == "blk.1.attn_v.weight"
    assert layer.o.name == "blk.1.attn_output.weight"
    assert layer.gate.name == "blk.1.ffn_gate.weight" and layer.gate.shape == (512, 256)
    assert layer.up.name == "blk.1.ffn_up.weight"
    assert layer.down.name == "blk.1.ffn_down.weight" and layer.down.shape == (256, 512)
    assert layer.attn_norm.name == "blk.1.attn_norm.weight"
    assert layer.ffn_norm.name == "blk.1.ffn_norm.weight"
    assert layer.q_norm is not None and layer.q_norm.name == "blk.1.attn_q_norm.weight"
    assert layer.k_norm is not None and layer.k_norm.name == "blk.1.attn_k_norm.weight"
    assert layer.q_bias is None


def test_describes_the_default_model(default_model_path: Path) -> None:
    file = gguf.read(default_model_path)
    hyper = describe(file)
    sizes = (hyper.num_layers, hyper.hidden_size, hyper.num_heads, hyper.num_kv_heads)
    assert sizes == (30, 576, 9, 3)
    assert (hyper.head_dim, hyper.ffn_size, hyper.vocab_size) == (64, 1536, 49_152)
    assert (hyper.rope_theta, hyper.context_length, hyper.tied_head) == (100_000.0, 8192, True)
    assert len(layout(file, hyper).layers) == 30
    assert architecture.num_parameters(file) == 134_515_008
    assert architecture.quantization(file) == "Q4_1"


def test_a_mix_is_named_after_most_of_it(tmp_path: Path) -> None:
    file = gguf.read(write_model(tmp_path / "mix.gguf", ModelShape(), Q4_K_M))
    assert architecture.quantization(file) == "Q4_K"
    assert file.tensors["blk.0.ffn_down.weight"].type is GGMLType.Q6_K
    layout(file, describe(file))


def test_rope_factors_come_from_the_tensor(files: Files) -> None:
    hyper = describe(files("llama-rope-factors"))
    assert hyper.rope_factors == pytest.approx(SHAPES["llama-rope-factors"].rope_factors)
    assert hyper.rope_factors is not None
    assert (min(hyper.rope_factors), max(hyper.rope_factors)) == (1.0, 8.0)


@pytest.mark.parametrize(
    ("keys", "factor"),
    [
        ({".rope.scaling.type": "linear", ".rope.scaling.factor": 2.5}, 2.5),
        ({".rope.scaling.factor": 2.5}, 2.5),
        ({".rope.scale_linear": 2.5}, 2.5),
        ({".rope.scaling.type": "linear", ".rope.scaling.factor": 1.0}, None),
        ({".rope.scaling.type": "linear", ".rope.scaling.factor": 0.0}, None),
        ({".rope.scaling.type": "linear"}, None),
        ({".rope.scaling.type": "none", ".rope.scaling.factor": 2.5}, None),
    ],
)
def test_linear_scaling_becomes_factors(
    files: Files, keys: dict[str, Any], factor: float | None
) -> None:
    wanted = None if factor is None else (factor,) * 32
    for name in ("llama", "qwen2"):
        assert describe(with_keys(files(name), keys)).rope_factors == wanted
    both = describe(with_keys(files("llama-rope-factors"), keys)).rope_factors
    own = SHAPES["llama-rope-factors"].rope_factors
    assert own is not None
    assert both == pytest.approx(tuple((factor or 1.0) * number for number in own))


@pytest.mark.parametrize(
    ("keys", "field", "value"),
    [
        ({".attention.head_count_kv": None}, "num_kv_heads", 4),
        ({".attention.head_count_kv": (2, 2)}, "num_kv_heads", 2),
        ({".rope.freq_base": None}, "rope_theta", 10_000.0),
        ({".rope.freq_base": 500_000}, "rope_theta", 500_000.0),
        ({".rope.dimension_count": None}, "rope_dim", 64),
        ({".vocab_size": None, "tokenizer.ggml.tokens": None}, "vocab_size", 384),
        ({".attention.scale": 0.5}, "attention_scale", 0.5),
        ({".attention.scale": 0.0}, "attention_scale", 0.125),
        ({".attention.sliding_window": 100}, "context_length", 100),
        ({".attention.sliding_window": 4096}, "context_length", 512),
        ({".attention.sliding_window": 0}, "context_length", 512),
        ({".expert_count": 0}, "num_layers", 2),
        ({".attention.causal": True, ".logit_scale": 1.0}, "num_layers", 2),
        ({"general.type": None}, "num_layers", 2),
    ],
)
def test_defaults_and_variants(
    files: Files, keys: dict[str, Any], field: str, value: object
) -> None:
    assert getattr(describe(with_keys(files("llama"), keys)), field) == value


INVALID_KEYS: list[dict[str, Any]] = [
    {".block_count": None},
    {".block_count": 0},
    {".block_count": 100_000},
    {".block_count": "2"},
    {".block_count": True},
    {".block_count": -1},
    {".embedding_length": None},
    {".embedding_length": 2**64 - 1},
    {".feed_forward_length": None},
    {".feed_forward_length": 0},
    {".context_length": None},
    {".context_length": 0},
    {".context_length": 2**32 - 1},
    {".attention.head_count": None},
    {".attention.head_count": 0},
    {".attention.head_count": 3},
    {".attention.head_count_kv": 3},
    {".attention.head_count_kv": 0},
    {".attention.head_count_kv": 8},
    {".attention.head_count_kv": (2.0, 2.0)},
    {".attention.key_length": 63, ".attention.value_length": 63},
    {".attention.key_length": 0},
    {".rope.dimension_count": 63},
    {".rope.dimension_count": 128},
    {".rope.freq_base": 0.0},
    {".rope.freq_base": -1.0},
    {".rope.freq_base": math.nan},
    {".rope.freq_base": math.inf},
    {".rope.freq_base": 1e-30},
    {".rope.scaling.factor": -2.0},
    {".rope.scaling.factor": math.nan},
    {".rope.scaling.type": 7},
    {".attention.layer_norm_rms_epsilon": None},
    {".attention.layer_norm_rms_epsilon": 0.0},
    {".attention.layer_norm_rms_epsilon": -1e-5},
    {".attention.layer_norm_rms_epsilon": math.nan},
    {".attention.layer_norm_rms_epsilon": 2.0},
    {".attention.scale": -0.125},
    {".attention.scale": math.inf},
    {".attention.sliding_window": -1},
    {".vocab_size": 385},
    {"tokenizer.ggml.tokens": ("a", "b")},
    {"tokenizer.ggml.tokens": (1,) * 384},
]


@pytest.mark.parametrize("keys", INVALID_KEYS, ids=str)
def test_absurd_hyperparameters(files: Files, keys: dict[str, Any]) -> None:
    file = files("llama")
    with pytest.raises(InvalidModelFile) as caught:
        describe(with_keys(file, keys))
    assert str(file.path) in str(caught.value)
    assert any(key.removeprefix(".").split(".")[-1] in str(caught.value) for key in keys)


UNSUPPORTED_KEYS: list[dict[str, Any]] = [
    {".expert_count": 8},
    {".attention.head_count_kv": (1, 2)},
    {".feed_forward_length": (512, 1024)},
    {".feed_forward_length": ()},
    {".attention.value_length": 128},
    {".rope.dimension_count": 32},
    {".rope.scaling.type": "yarn"},
    {".rope.scaling.type": "longrope"},
    {".rope.scaling.attn_factor": 1.2},
    {".attention.causal": False},
    {".attention.clamp_kqv": 8.0},
    {".attn_logit_softcapping": 50.0},
    {".final_logit_softcapping": 30.0},
    {".logit_scale": 0.0625},
    {".residual_scale": 0.22},
    {".embedding_scale": 12.0},
    {".embedding_scale": math.nan},
    {"general.type": "adapter"},
]


@pytest.mark.parametrize("keys", UNSUPPORTED_KEYS, ids=str)
def test_variations_that_would_change_results(files: Files, keys: dict[str, Any]) -> None:
    file = files("llama")
    with pytest.raises(UnsupportedModel) as caught:
        describe(with_keys(file, keys))
    assert str(file.path) in str(caught.value)
    assert any(key.removeprefix(".") in str(caught.value) for key in keys)


@pytest.mark.parametrize("name", ["gemma3", "phi3", "qwen2moe", "granite", "llama4", "mamba", "x"])
def test_other_architectures_are_told_what_is_supported(files: Files, name: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        describe(replace(files("llama"), architecture=name))
    for supported in (repr(name), *architecture.SUPPORTED_ARCHITECTURES):
        assert supported in str(caught.value)


@pytest.mark.parametrize("name", ["llama-untied", "qwen2", "qwen3"])
def test_every_missing_tensor_is_named(files: Files, name: str) -> None:
    file = files(name)
    for missing in set(file.tensors) - {"output.weight", "rope_freqs.weight"}:
        smaller = without_tensor(file, missing)
        with pytest.raises(InvalidModelFile, match=f"tensor '{missing}': is missing"):
            layout(smaller, describe(smaller))


@pytest.mark.parametrize("name", ["llama-untied", "llama-rope-factors", "qwen2", "qwen3"])
def test_every_wrong_shape_is_named(files: Files, name: str) -> None:
    file, hyper = files(name), describe(files(name))
    for tensor in file.tensors.values():
        for shape in ((*tensor.shape[:-1], tensor.shape[-1] + 1), (1, *tensor.shape)):
            with pytest.raises(InvalidModelFile, match=f"tensor '{tensor.name}': its shape"):
                layout(with_tensor(file, tensor.name, shape=shape), hyper)


@pytest.mark.parametrize("name", ["llama-untied", "qwen2", "qwen3"])
def test_types_that_are_not_computed(files: Files, name: str) -> None:
    file, hyper = files(name), describe(files(name))
    for tensor in file.tensors.values():
        for wrong in (GGMLType.IQ4_XS, GGMLType.Q2_K, GGMLType.I32, GGMLType.MXFP4):
            message = f"tensor '{tensor.name}': type {wrong.name} is not supported"
            with pytest.raises(UnsupportedModel, match=message):
                layout(with_tensor(file, tensor.name, type=wrong), hyper)
    with pytest.raises(UnsupportedModel, match=r"output_norm.weight': type F16 .* supported: F32"):
        layout(with_tensor(file, "output_norm.weight", type=GGMLType.F16), hyper)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("llama", "blk.0.ffn_gate_exps.weight"),
        ("llama", "blk.0.attn_output.bias"),
        ("llama", "blk.0.ffn_up.bias"),
        ("llama", "blk.2.attn_q.weight"),
        ("llama", "blk.1.attn_q.bias"),
        ("llama", "blk.0.attn_q_norm.weight"),
        ("llama", "blk.00.attn_q.weight"),
        ("qwen2", "blk.0.attn_k_norm.weight"),
        ("qwen2", "rope_freqs.weight"),
        ("qwen3", "rope_freqs.weight"),
        ("qwen3", "cls.output.weight"),
    ],
)
def test_tensors_without_a_role(files: Files, name: str, extra: str) -> None:
    file = with_tensor(files(name), extra)
    with pytest.raises(UnsupportedModel, match=f"tensor '{extra}'.*no use for it"):
        layout(file, describe(file))


def test_how_many_tensors_have_no_role(files: Files) -> None:
    file = with_tensor(with_tensor(files("llama"), "one"), "two")
    with pytest.raises(UnsupportedModel, match="tensor 'one' and 1 more"):
        layout(file, describe(file))


def test_frequencies_of_old_converters_are_ignored(files: Files) -> None:
    file = with_tensor(files("llama"), "blk.0.attn_rot_embd.weight")
    layout(file, describe(file))


def test_optional_biases_come_all_together(files: Files) -> None:
    for name in ("attn_q", "attn_k", "attn_v"):
        file = without_tensor(files("llama-bias"), f"blk.1.{name}.bias")
        with pytest.raises(InvalidModelFile, match=rf"blk.1.{name}.bias': is missing"):
            layout(file, describe(file))


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf, 1e-30, 1e30])
def test_absurd_rope_factors(tmp_path: Path, factor: float) -> None:
    data = raw.tiny_llama()
    path = tmp_path / "model.gguf"
    path.write_bytes(data[:-8] + struct.pack("<2f", 1.0, factor))
    with pytest.raises(InvalidModelFile, match=r"tensor 'rope_freqs\.weight'"):
        describe(gguf.read(path))


def test_rope_factors_of_another_type_or_length(files: Files) -> None:
    file = files("llama-rope-factors")
    with pytest.raises(InvalidModelFile, match=r"rope_freqs\.weight': its shape is \(31,\)"):
        describe(with_tensor(file, "rope_freqs.weight", shape=(31,)))
    with pytest.raises(UnsupportedModel, match=r"rope_freqs\.weight': type F16"):
        describe(with_tensor(file, "rope_freqs.weight", type=GGMLType.F16))


def test_describes_the_handmade_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(raw.tiny_llama())
    file = gguf.read(path)
    hyper = describe(file)
    assert (hyper.num_kv_heads, hyper.head_dim, hyper.rope_factors) == (1, 4, None)
    assert len(layout(file, hyper).layers) == 1


KEY_NAMES = sorted(
    {key for keys in (*INVALID_KEYS, *UNSUPPORTED_KEYS) for key in keys}
    | {".attention.causal", ".rope.scale_linear"}
)
ODD_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(0, 600),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
)


@given(changes=st.dictionaries(st.sampled_from(KEY_NAMES), ODD_VALUES, max_size=4))
def test_any_metadata_is_described_or_refused(files: Files, changes: dict[str, Any]) -> None:
    file = files("llama")
    present = {key: value for key, value in changes.items() if value is not None}
    try:
        hyper = describe(with_keys(file, present))
        tensors = layout(file, hyper)
    except HeadraceError:
        return
    # What comes through is what the file's tensors have, whatever the keys say.
    embedding: TensorInfo = tensors.token_embedding
    assert (hyper.vocab_size, hyper.hidden_size) == embedding.shape
    assert hyper.num_heads * hyper.head_dim == tensors.layers[0].q.shape[0]
    assert hyper.num_heads % hyper.num_kv_heads == 0
    assert math.isfinite(hyper.attention_scale) and math.isfinite(hyper.rope_theta)
