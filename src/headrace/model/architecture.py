"""What a GGUF file's model is: its family, its sizes and constants.

In: a checked `GGUFFile`. Out: `Hyperparameters`, which with the tensors of `roles.py` are all that
a compute core needs. A file either is described completely or refused: whatever would change
results and is not computed here (experts, other rotary scalings) is an error that names it.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from headrace.errors import InvalidModelFile
from headrace.model.gguf import GGMLType, GGUFFile, TensorInfo, tensor_part

RopeStyle = Literal["interleaved", "half"]
"""Which numbers of a head rotate together, in the order the file has them: (2i, 2i + 1), as
converters permute Llama's query and key rows, or (i, i + head_dim / 2)."""


@dataclass(frozen=True)
class Hyperparameters:
    """A model's sizes and constants. All sizes are at least 1; `head_dim` is even."""

    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    """Of keys and values alike; not always `hidden_size / num_heads`."""
    ffn_size: int
    vocab_size: int
    context_length: int
    """Positions the model was made for; a sliding window shorter than that ends it early."""
    rope_theta: float
    rope_dim: int
    """Equal to `head_dim`: partial rotation is refused."""
    rope_style: RopeStyle
    rope_factors: tuple[float, ...] | None
    """`rope_dim / 2` divisors of the rotation frequencies: `theta ** (-2i / rope_dim) / factor[i]`.
    Holds `rope_freqs.weight` and linear scaling alike; None where all are 1."""
    rms_eps: float
    attention_scale: float
    """Factor on query times key, before softmax."""
    has_qkv_bias: bool
    has_qk_norm: bool
    """RMS norm over each head's query and key, before rotation."""
    tied_head: bool
    """The token embedding is the output head too."""


@dataclass(frozen=True)
class _Family:
    """What distinguishes one architecture from its kin."""

    rope_style: RopeStyle
    needs_qkv_bias: bool = False
    has_qk_norm: bool = False
    has_rope_factors: bool = False


FAMILIES = {
    "llama": _Family("interleaved", has_rope_factors=True),
    "qwen2": _Family("half", needs_qkv_bias=True),
    "qwen3": _Family("half", has_qk_norm=True),
}
SUPPORTED_ARCHITECTURES = tuple(FAMILIES)

SUPPORTED_TEXT = (
    "supported are llama (Llama 2 and 3, SmolLM2, Mistral), qwen2 (Qwen 2 and 2.5) and qwen3 "
    "(dense models of each)"
)

# Keys that change results where they differ from these values, and that are not computed here.
# They come after "{architecture}."; 0 and None say "off" to the tools that write them.
_NEUTRAL_VALUES: Mapping[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.temperature_scale": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "logit_scale": (0, 1),
    "nextn_predict_layers": (0,),
    "rope.scaling.attn_factor": (0, 1),
    "rope.scaling.yarn_log_multiplier": (0,),
    "use_parallel_residual": (False,),
}

# Frequencies that old converters wrote beside the weights; every reader computes its own.

_MAX_LAYERS = 1 << 10
_MAX_SIZE = 1 << 24
_MAX_CONTEXT = 1 << 28
# Far beyond any model's, and within what 32-bit floats compute with: nothing overflows or vanishes.
_THETA_RANGE = (1.0, 1e12)
_FACTOR_RANGE = (1e-3, 1e6)
_EPS_RANGE = (1e-12, 1.0)
_SCALE_RANGE = (1e-6, 1e3)
HEAD_NAME = "output.weight"
EMBEDDING_NAME = "token_embd.weight"
ROPE_FACTORS_NAME = "rope_freqs.weight"


def describe(gguf: GGUFFile) -> Hyperparameters:
    """The hyper-parameters of the model in `gguf`.

    Raises UnsupportedModel for another architecture or a variation that is not computed here, and
    InvalidModelFile for missing, contradictory or absurd values.
    """
    family = _family(gguf)
    keys = _Keys(gguf)
    keys.reject_variations()
    hidden_size = keys.size("embedding_length")
    num_heads = keys.size("attention.head_count")
    head_dim = _head_dim(keys, hidden_size, num_heads)
    return Hyperparameters(
        architecture=gguf.architecture,
        num_layers=keys.size("block_count", most=_MAX_LAYERS),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(keys, num_heads),
        head_dim=head_dim,
        ffn_size=keys.size("feed_forward_length"),
        vocab_size=_vocab_size(keys),
        context_length=_context_length(keys),
        rope_theta=keys.number("rope.freq_base", _THETA_RANGE, default=10_000.0),
        rope_dim=_rope_dim(keys, head_dim),
        rope_style=family.rope_style,
        rope_factors=_rope_factors(keys, head_dim // 2, family),
        rms_eps=keys.number("attention.layer_norm_rms_epsilon", _EPS_RANGE),
        attention_scale=_attention_scale(keys, head_dim),
        has_qkv_bias=family.needs_qkv_bias or "blk.0.attn_q.bias" in gguf.tensors,
        has_qk_norm=family.has_qk_norm,
        tied_head=HEAD_NAME not in gguf.tensors,
    )


def num_parameters(gguf: GGUFFile) -> int:
    """How many numbers the file's tensors hold."""
    return sum(math.prod(tensor.shape) for tensor in gguf.tensors.values())


def quantization(gguf: GGUFFile) -> str:
    """The name of the type that most of the model's numbers have, such as "Q4_K"."""
    sizes: Counter[str] = Counter()
    for tensor in gguf.tensors.values():
        sizes[tensor.type.name] += math.prod(tensor.shape)
    return max(sizes, key=lambda name: sizes[name], default="none")


class _Keys:
    """Reads the keys that begin with the architecture's name, and checks them."""

    def __init__(self, gguf: GGUFFile) -> None:
        self.gguf = gguf

    def full(self, name: str) -> str:
        return f"{self.gguf.architecture}.{name}"

    def invalid(self, name: str, problem: str) -> InvalidModelFile:
        return self.gguf.invalid(self.full(name), problem)

    def size(self, name: str, *, most: int = _MAX_SIZE) -> int:
        value = self.optional_size(name, most=most)
        if value is None:
            raise self.invalid(name, "is missing; fetch or convert the model anew")
        return value

    def optional_size(self, name: str, *, most: int = _MAX_SIZE) -> int | None:
        key = self.full(name)
        by_layer = isinstance(self.gguf.metadata.get(key), tuple)
        value = self._same_in_all_layers(name) if by_layer else self.gguf.integer(key)
        if value is not None and not 1 <= value <= most:
            raise self.invalid(name, f"must be from 1 to {most:,}, not {value:,}")
        return value

    def number(self, name: str, bounds: tuple[float, float], default: float | None = None) -> float:
        value = self.gguf.number(self.full(name))
        if value is None:
            value = default
        if value is None:
            raise self.invalid(name, "is missing; fetch or convert the model anew")
        if not bounds[0] <= value <= bounds[1]:
            raise self.invalid(name, f"must be from {bounds[0]:g} to {bounds[1]:g}, not {value:g}")
        return value

    def reject_variations(self) -> None:
        """Refuse settings that change results and that nothing here computes."""
        for name, neutral in _NEUTRAL_VALUES.items():
            value = self.gguf.metadata.get(self.full(name))
            if value is not None and value not in neutral:
                raise self.gguf.unsupported(self.full(name), f"{value!r} is not supported")
        if self.gguf.integer(self.full("expert_count")):
            raise self.gguf.unsupported(
                self.full("expert_count"), f"a mixture of experts; {SUPPORTED_TEXT}"
            )

    def _same_in_all_layers(self, name: str) -> int:
        """The one value of a key written as an array with an entry per layer."""
        key = self.full(name)
        values = set(self.gguf.array(key, int) or ())
        if len(values) != 1:
            raise self.gguf.unsupported(key, "layers that differ in size are not supported")
        return values.pop()


def _family(gguf: GGUFFile) -> _Family:
    kind = gguf.text("general.type")
    if kind not in (None, "model"):
        raise gguf.unsupported("general.type", f"this is a {kind!r} file, not a whole model")
    family = FAMILIES.get(gguf.architecture)
    if family is None:
        raise gguf.unsupported(
            "general.architecture", f"{gguf.architecture!r} is not supported; {SUPPORTED_TEXT}"
        )
    return family


def _head_dim(keys: _Keys, hidden_size: int, num_heads: int) -> int:
    head_dim = keys.optional_size("attention.key_length")
    if head_dim is None:
        if hidden_size % num_heads:
            raise keys.invalid(
                "attention.head_count",
                f"{num_heads} heads do not divide the embedding length {hidden_size}",
            )
        head_dim = hidden_size // num_heads
    value_length = keys.optional_size("attention.value_length")
    if value_length not in (None, head_dim):
        raise keys.gguf.unsupported(
            keys.full("attention.value_length"),
            f"values of {value_length} beside keys of {head_dim} are not supported",
        )
    if head_dim % 2:
        raise keys.invalid(
            "attention.key_length", f"heads of {head_dim} cannot be rotated in pairs"
        )
    return head_dim


def _num_kv_heads(keys: _Keys, num_heads: int) -> int:
    num_kv_heads = keys.optional_size("attention.head_count_kv") or num_heads
    if num_heads % num_kv_heads:
        raise keys.invalid(
            "attention.head_count_kv",
            f"{num_kv_heads} key-value heads do not divide {num_heads} query heads",
        )
    return num_kv_heads


def _vocab_size(keys: _Keys) -> int:
    """The embedding's rows decide; the tokenizer and the key must agree where they are there."""
    embedding = keys.gguf.tensors.get(EMBEDDING_NAME)
    if embedding is None:
        raise keys.gguf.invalid(tensor_part(EMBEDDING_NAME), "is missing; fetch the model anew")
    vocab_size = embedding.shape[0]
    tokens = keys.gguf.array("tokenizer.ggml.tokens", str)
    for name, size in (
        ("tokenizer.ggml.tokens", None if tokens is None else len(tokens)),
        (keys.full("vocab_size"), keys.optional_size("vocab_size")),
    ):
        if size not in (None, vocab_size):
            raise keys.gguf.invalid(
                name, f"{size:,} tokens, but {tensor_part(EMBEDDING_NAME)} has {vocab_size:,} rows"
            )
    if vocab_size > _MAX_SIZE:
        raise keys.gguf.invalid(tensor_part(EMBEDDING_NAME), f"{vocab_size:,} rows are too many")
    return vocab_size


def _context_length(keys: _Keys) -> int:
    """Up to a sliding window's length, full attention is what a windowed layer computes anyway."""
    context_length = keys.size("context_length", most=_MAX_CONTEXT)
    window = keys.gguf.integer(keys.full("attention.sliding_window"))
    if window is not None and window < 0:
        raise keys.invalid("attention.sliding_window", f"must not be negative: {window}")
    return min(context_length, window or context_length)


def _rope_dim(keys: _Keys, head_dim: int) -> int:
    rope_dim = keys.optional_size("rope.dimension_count") or head_dim
    if rope_dim > head_dim or rope_dim % 2:
        raise keys.invalid(
            "rope.dimension_count", f"{rope_dim} numbers cannot be rotated in heads of {head_dim}"
        )
    if rope_dim < head_dim:
        raise keys.gguf.unsupported(
            keys.full("rope.dimension_count"),
            f"rotating {rope_dim} of a head's {head_dim} numbers is not supported",
        )
    return rope_dim


def _rope_factors(keys: _Keys, num_factors: int, family: _Family) -> tuple[float, ...] | None:
    factors = (1.0,) * num_factors
    tensor = keys.gguf.tensors.get(ROPE_FACTORS_NAME)
    if family.has_rope_factors and tensor is not None:
        factors = _read_factors(keys.gguf, tensor, num_factors)
    scaling = _linear_scaling(keys)
    factors = tuple(factor * scaling for factor in factors)
    return None if set(factors) == {1.0} else factors


def _read_factors(gguf: GGUFFile, tensor: TensorInfo, num_factors: int) -> tuple[float, ...]:
    gguf.check_tensor(tensor, (num_factors,), (GGMLType.F32,))
    factors: tuple[float, ...] = struct.unpack(f"<{num_factors}f", gguf.read_tensor(tensor))
    for factor in factors:
        if not _FACTOR_RANGE[0] <= factor <= _FACTOR_RANGE[1]:
            raise gguf.invalid(tensor_part(tensor.name), f"a factor of {factor:g} is absurd")
    return factors


def _linear_scaling(keys: _Keys) -> float:
    """What positions are divided by. A factor without a type is a linear one."""
    kind = keys.gguf.text(keys.full("rope.scaling.type")) or "linear"
    if kind == "none":
        return 1.0
    if kind != "linear":
        raise keys.gguf.unsupported(
            keys.full("rope.scaling.type"), f"{kind!r} is not supported; none and linear are"
        )
    for name in ("rope.scaling.factor", "rope.scale_linear"):
        if keys.gguf.number(keys.full(name)):
            return keys.number(name, _FACTOR_RANGE)
    return 1.0


def _attention_scale(keys: _Keys, head_dim: int) -> float:
    """A scale of 0 stands for the usual one."""
    if keys.gguf.number(keys.full("attention.scale")):
        return keys.number("attention.scale", _SCALE_RANGE)
    return 1.0 / math.sqrt(head_dim)
