"""Small GGUF models with random weights: deterministic per seed, written in milliseconds.

`write_model(path, SHAPES["llama"], quant="Q4_K")` is the whole of it in most tests. Weights are
scaled so that activations stay near 1 and attention is neither uniform nor one-hot. Q and K rows of
llama files count as already permuted, as a converter leaves them: random rows are as good in any
order. The vocabulary is a real byte-level BPE with a ChatML template.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType

QUANTS = (
    "F32",
    "F16",
    "BF16",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q4_K",
    "Q5_K",
    "Q6_K",
)
"""Every type that the kernels compute with."""

Q4_K_M = {"default": "Q4_K", **dict.fromkeys(("attn_v", "ffn_down", "token_embd"), "Q6_K")}
"""A mix as real files have it."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256


@dataclass(frozen=True)
class ModelShape:
    """What `write_model` writes. Sizes are those of `Hyperparameters`."""

    architecture: str = "llama"
    num_layers: int = 2
    hidden_size: int = 256
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    ffn_size: int = 512
    vocab_size: int = 384
    context_length: int = 512
    rope_theta: float = 10_000.0
    rms_eps: float = 1e-5
    tied_head: bool = True
    qkv_bias: bool | None = None
    """None: as the architecture has it."""
    rope_factors: tuple[float, ...] | None = None
    linear_scaling: float | None = None

    @property
    def has_qkv_bias(self) -> bool:
        return self.architecture == "qwen2" if self.qkv_bias is None else self.qkv_bias

    @property
    def has_qk_norm(self) -> bool:
        return self.architecture == "qwen3"


def llama3_factors(head_dim: int, rope_theta: float) -> tuple[float, ...]:
    """The divisors that Llama 3's converter writes, for an original context of 64 positions (so
    that a short test reaches all three of their ranges), factor 8, low 1, high 4."""
    frequencies = rope_theta ** (-np.arange(0, head_dim, 2) / head_dim)
    wavelengths = 2 * np.pi / frequencies
    smooth = np.clip((64 / wavelengths - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    return tuple(float(factor) for factor in 1.0 / ((1 - smooth) / 8.0 + smooth))


SHAPES: Mapping[str, ModelShape] = {
    "llama": ModelShape(),
    "llama-untied": ModelShape(tied_head=False, num_kv_heads=4, rope_theta=100_000.0),
    "llama-rope-factors": ModelShape(
        rope_theta=500_000.0, rope_factors=llama3_factors(64, 500_000.0)
    ),
    "llama-linear": ModelShape(linear_scaling=4.0),
    "llama-bias": ModelShape(qkv_bias=True),
    # Heads wider than hidden_size / num_heads, as Mistral Nemo has them the other way round.
    "llama-wide-heads": ModelShape(num_heads=4, num_kv_heads=1, head_dim=128),
    "llama-narrow-heads": ModelShape(num_heads=8, num_kv_heads=2, head_dim=64, hidden_size=768),
    "llama-odd-vocab": ModelShape(vocab_size=331, num_heads=8, head_dim=32, num_kv_heads=1),
    # SmolLM2-135M's proportions: nothing is a multiple of 256 but the feed-forward size.
    "llama-smol": ModelShape(hidden_size=192, num_heads=3, num_kv_heads=1, head_dim=64),
    "qwen2": ModelShape("qwen2", rope_theta=1_000_000.0, rms_eps=1e-6),
    "qwen2-untied": ModelShape("qwen2", tied_head=False, vocab_size=331, num_kv_heads=1),
    "qwen3": ModelShape("qwen3", head_dim=128, num_heads=4, rope_theta=1_000_000.0, rms_eps=1e-6),
    "qwen3-untied": ModelShape("qwen3", tied_head=False, head_dim=32, num_heads=8),
}


def write_model(
    path: Path,
    shape: ModelShape,
    quant: str | Mapping[str, str] = "F32",
    seed: int = 0,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model to `path` and return it.

    `quant` is one type for all matrices, or a type per tensor: keys are tensor names without
    ".weight" ("blk.0.ffn_down"), their last parts ("ffn_down", "token_embd", "output"), or
    "default". Where rows are no multiple of the type's block, Q8_0 or F16 stands in, as llama.cpp's
    quantizer does it. `metadata` adds or replaces keys (text, int, float and bool).
    """
    writer = gguf.GGUFWriter(path, shape.architecture)
    _add_hyperparameters(writer, shape)
    _add_tokenizer(writer, shape)
    for key, value in (metadata or {}).items():
        _add_value(writer, key, value)
    for name, tensor in _tensors(shape, seed):
        _add_tensor(writer, name, tensor, quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantize(weights: np.ndarray, quant: str) -> np.ndarray:
    """`weights` (rows, columns) float32 as the bytes of a type: (rows, bytes per row) uint8."""
    if quant in _K_PACKERS:
        blocks = _K_PACKERS[quant](weights.astype(np.float32).reshape(-1, 256))
        return blocks.reshape(weights.shape[0], -1)
    packed = gguf.quants.quantize(weights.astype(np.float32), GGMLQuantizationType[quant])
    return np.ascontiguousarray(packed).view(np.uint8).reshape(weights.shape[0], -1)


def dequantize(data: np.ndarray, quant: str) -> np.ndarray:
    """The float32 numbers (rows, columns) that bytes of a type stand for; the `gguf` package's."""
    return gguf.quants.dequantize(data, GGMLQuantizationType[quant]).astype(np.float32, copy=False)


def random_blocks(quant: str, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Bytes of a type with every field random: (rows, bytes per row) uint8.

    Reaches what a quantizer never writes, such as negative scales or all 6-bit scales at once. Only
    the 16-bit scales are kept finite and small.
    """
    if quant in ("F32", "F16", "BF16"):
        return quantize(rng.normal(size=(rows, columns)), quant)
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[quant]]
    blocks = rng.integers(0, 256, (rows * columns // block_size, block_bytes), dtype=np.uint8)
    for at in _SCALES_AT[quant]:
        scales = rng.normal(scale=0.02, size=(len(blocks), 1)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8)
    return blocks.reshape(rows, -1)


_SCALES_AT = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q6_K": (208,),
}


def _add_hyperparameters(writer: gguf.GGUFWriter, shape: ModelShape) -> None:
    writer.add_type("model")
    writer.add_name("Tiny test model")
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.ffn_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_vocab_size(shape.vocab_size)
    if shape.architecture == "llama":
        writer.add_rope_dimension_count(shape.head_dim)
    if shape.architecture == "qwen3" or shape.num_heads * shape.head_dim != shape.hidden_size:
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    if shape.linear_scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(shape.linear_scaling)


def _add_tokenizer(writer: gguf.GGUFWriter, shape: ModelShape) -> None:
    vocabulary = byte_level_vocabulary(shape.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2" if shape.architecture.startswith("qwen") else "smollm")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(SPECIAL_TOKENS.index("<|im_start|>"))
    writer.add_eos_token_id(SPECIAL_TOKENS.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {
        str: gguf.GGUFValueType.STRING,
        bool: gguf.GGUFValueType.BOOL,
        int: gguf.GGUFValueType.UINT32,
        float: gguf.GGUFValueType.FLOAT32,
    }
    for present in writer.kv_data:
        present.pop(key, None)
    writer.add_key_value(key, value, kinds[type(value)])


def _tensors(shape: ModelShape, seed: int) -> list[tuple[str, np.ndarray]]:
    """Names and float32 weights, in the order of a real file."""
    hidden, ffn = shape.hidden_size, shape.ffn_size
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (hidden,),
        "ffn_down.weight": (hidden, ffn),
        "ffn_gate.weight": (ffn, hidden),
        "ffn_up.weight": (ffn, hidden),
        "ffn_norm.weight": (hidden,),
        "attn_k.weight": (keys, hidden),
        "attn_output.weight": (hidden, queries),
        "attn_q.weight": (queries, hidden),
        "attn_v.weight": (keys, hidden),
    }
    if shape.has_qkv_bias:
        layer |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
    if shape.has_qk_norm:
        layer |= dict.fromkeys(("attn_q_norm.weight", "attn_k_norm.weight"), (shape.head_dim,))
    sizes: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.vocab_size, hidden)}
    for index in range(shape.num_layers):
        sizes |= {f"blk.{index}.{name}": size for name, size in layer.items()}
    sizes["output_norm.weight"] = (hidden,)
    if not shape.tied_head:
        sizes["output.weight"] = (shape.vocab_size, hidden)
    tensors = [(name, _weights(name, size, seed)) for name, size in sizes.items()]
    if shape.rope_factors is not None:
        tensors.insert(0, ("rope_freqs.weight", np.array(shape.rope_factors, np.float32)))
    return tensors


def _weights(name: str, size: tuple[int, ...], seed: int) -> np.ndarray:
    # Seeded by name, so that a tensor is the same whatever else the model has.
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    noise = rng.standard_normal(size, dtype=np.float32)
    if name.endswith("norm.weight"):
        return 1.0 + 0.2 * noise
    if name.endswith(".bias"):
        return 0.5 * noise
    return noise / np.float32(size[-1] ** 0.5)


def _add_tensor(
    writer: gguf.GGUFWriter, name: str, tensor: np.ndarray, quant: str | Mapping[str, str]
) -> None:
    if tensor.ndim == 1:
        writer.add_tensor(name, tensor.astype(np.float32))
        return
    chosen = quant if isinstance(quant, str) else _chosen(name, quant)
    chosen = _fitting(chosen, tensor.shape[-1])
    data = quantize(tensor, chosen)
    writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[chosen])


def _chosen(name: str, quants: Mapping[str, str]) -> str:
    stem = name.removesuffix(".weight")
    for key in (stem, stem.rsplit(".", 1)[-1], "default"):
        if key in quants:
            return quants[key]
    return "F32"


def _fitting(quant: str, columns: int) -> str:
    for candidate in (quant, "Q8_0"):
        if columns % gguf.GGML_QUANT_SIZES[GGMLQuantizationType[candidate]][0] == 0:
            return candidate
    return "F16"


def _pack_q4_k(blocks: np.ndarray) -> np.ndarray:
    header, quants = _pack_scales_and_mins(blocks, num_levels=16)
    return np.concatenate([header, _nibble_pairs(quants)], axis=1)


def _pack_q5_k(blocks: np.ndarray) -> np.ndarray:
    header, quants = _pack_scales_and_mins(blocks, num_levels=32)
    fifth_bits = ((quants >> 4) << np.arange(8, dtype=np.uint8)[:, None]).sum(1, dtype=np.uint8)
    return np.concatenate([header, fifth_bits, _nibble_pairs(quants & 15)], axis=1)


def _pack_q6_k(blocks: np.ndarray) -> np.ndarray:
    groups = blocks.reshape(-1, 16, 16)
    extremes = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
    scales = extremes / -32
    unit = (np.abs(scales).max(-1, keepdims=True) / 127).astype(np.float16)
    multiples = np.rint(_ratio(scales, unit.astype(np.float32))).clip(-128, 127).astype(np.int8)
    steps = unit.astype(np.float32) * multiples
    quants = np.rint(_ratio(groups, steps[..., None])).clip(-32, 31) + 32
    halves = quants.astype(np.uint8).reshape(-1, 2, 2, 64)
    low = (halves[:, :, 0] & 15) | ((halves[:, :, 1] & 15) << 4)
    quarters = halves.reshape(-1, 2, 4, 32) >> 4
    high = (quarters << np.array([0, 2, 4, 6], np.uint8)[:, None]).sum(2, dtype=np.uint8)
    parts = [low.reshape(-1, 128), high.reshape(-1, 64), multiples.view(np.uint8)]
    return np.concatenate([*parts, unit.view(np.uint8)], axis=1)


_K_PACKERS = {"Q4_K": _pack_q4_k, "Q5_K": _pack_q5_k, "Q6_K": _pack_q6_k}


def _pack_scales_and_mins(blocks: np.ndarray, num_levels: int) -> tuple[np.ndarray, np.ndarray]:
    """The 16-byte header of a Q4_K or Q5_K block, and its quants (blocks, 8, 32) uint8."""
    groups = blocks.reshape(-1, 8, 32)
    lows = np.minimum(groups.min(-1), 0)
    scales, mins = (groups.max(-1) - lows).clip(0) / (num_levels - 1), -lows
    units = np.stack([scales.max(-1), mins.max(-1)], -1) / 63
    units = units.astype(np.float16)
    scale_unit, min_unit = np.split(units.astype(np.float32), 2, axis=-1)
    scale_bits = np.rint(_ratio(scales, scale_unit)).clip(0, 63).astype(np.uint8)
    min_bits = np.rint(_ratio(mins, min_unit)).clip(0, 63).astype(np.uint8)
    steps = (scale_unit * scale_bits)[..., None]
    offsets = (min_unit * min_bits)[..., None]
    quants = np.rint(_ratio(groups + offsets, steps)).clip(0, num_levels - 1).astype(np.uint8)
    packed = [
        units.view(np.uint8),
        scale_bits[:, :4] | ((scale_bits[:, 4:] >> 4) << 6),
        min_bits[:, :4] | ((min_bits[:, 4:] >> 4) << 6),
        (scale_bits[:, 4:] & 15) | ((min_bits[:, 4:] & 15) << 4),
    ]
    return np.concatenate(packed, axis=1), quants


def _nibble_pairs(quants: np.ndarray) -> np.ndarray:
    """(blocks, 8, 32) of 4 bits each as (blocks, 128) bytes: groups 2j low, 2j + 1 high."""
    pairs = (quants & 15).reshape(-1, 4, 2, 32)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(-1, 128)


def _ratio(numbers: np.ndarray, divisors: np.ndarray) -> np.ndarray:
    return np.divide(numbers, divisors, out=np.zeros_like(numbers), where=divisors != 0)


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE vocabulary as GGUF has it."""

    tokens: list[str]
    types: list[int]
    merges: list[str]


_CORPUS = """
The river rises in the hills, and the water runs to the mill. There it turns the wheel, and the
wheel turns the stone, and the stone grinds the grain. In the morning the miller opens the gate;
in the evening he shuts it. Hello, world! How are you today? I am well, thank you. What is the
capital of France? The capital of France is Paris. One, two, three, four, five: 1 2 3 4 5 10 100
1000 2024. It is not what you think, said the other, but that is what they are for. You are a
helpful assistant.
def main(): return [x for x in range(10) if x > 3]  # print("hello")
user assistant system
"""


@lru_cache(maxsize=8)
def byte_level_vocabulary(size: int) -> Vocabulary:
    """Specials, then 256 bytes, then merges learnt from a short text, then unused tokens."""
    if size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"a byte-level vocabulary has at least {MIN_VOCAB_SIZE} tokens, not {size}"
        )
    alphabet = _byte_characters()
    merges = _learn_merges(alphabet, size - MIN_VOCAB_SIZE)
    tokens = [*SPECIAL_TOKENS, *alphabet, *(left + right for left, right in merges)]
    num_unused = size - len(tokens)
    types = [gguf.TokenType.CONTROL] * len(SPECIAL_TOKENS)
    types += [gguf.TokenType.NORMAL] * (len(tokens) - len(SPECIAL_TOKENS))
    types += [gguf.TokenType.UNUSED] * num_unused
    tokens += [f"<|unused_{index}|>" for index in range(num_unused)]
    return Vocabulary(tokens, [int(kind) for kind in types], [" ".join(pair) for pair in merges])


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte, as GPT-2 chose them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in characters)
    characters |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [characters[byte] for byte in range(256)]


def _learn_merges(alphabet: list[str], count: int) -> list[tuple[str, str]]:
    words = Counter(re.findall(r" ?[A-Za-z]+| ?\d| ?[^\sA-Za-z\d]+|\s+", _CORPUS))
    pieces = {word: [alphabet[byte] for byte in word.encode()] for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        pieces = {word: _merged(parts, best) for word, parts in pieces.items()}
    return merges


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        # A part just made by merging is longer than either half, so it never merges again here.
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged
