"""GGUF files put together byte by byte, right or wrong, for the tests of the reader."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?"}
CODES |= {U64: "Q", I64: "q", F64: "d"}


@dataclass(frozen=True)
class RawTensor:
    """One entry of the tensor list; `dims` fastest first, as the file has them."""

    name: str | bytes
    dims: Sequence[int]
    type_id: int
    offset: int


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def scalar(value_type: int, value: object) -> bytes:
    if value_type == STRING:
        assert isinstance(value, str | bytes)
        return string(value)
    return struct.pack(f"<{CODES[value_type]}", value)


def array(item_type: int, items: Sequence[bytes]) -> bytes:
    return struct.pack("<IQ", item_type, len(items)) + b"".join(items)


def key(name: str | bytes, value_type: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", value_type) + value


def text_key(name: str, text: str | bytes) -> bytes:
    return key(name, STRING, string(text))


ARCHITECTURE = text_key("general.architecture", "llama")


def header(
    keys: Sequence[bytes],
    tensors: Sequence[RawTensor] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_keys: int | None = None,
    num_tensors: int | None = None,
) -> bytes:
    """Everything before the tensors' bytes. The counts are those of the lists unless given."""
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    entries = [
        string(tensor.name)
        + struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims)
        + struct.pack("<IQ", tensor.type_id, tensor.offset)
        for tensor in tensors
    ]
    return b"".join([magic, struct.pack("<IQQ", version, *counts), *keys, *entries])


def padded(data: bytes, alignment: int = 32) -> bytes:
    return data + bytes(-len(data) % alignment)


def tiny_llama() -> bytes:
    """A whole one-layer llama of F32 tensors: four kilobytes, and no padding at the end."""
    hidden, ffn, vocab = 8, 16, 5
    sizes: Mapping[str, tuple[int, ...]] = {
        "token_embd.weight": (hidden, vocab),
        "blk.0.attn_norm.weight": (hidden,),
        "blk.0.attn_q.weight": (hidden, hidden),
        "blk.0.attn_k.weight": (hidden, hidden // 2),
        "blk.0.attn_v.weight": (hidden, hidden // 2),
        "blk.0.attn_output.weight": (hidden, hidden),
        "blk.0.ffn_norm.weight": (hidden,),
        "blk.0.ffn_gate.weight": (hidden, ffn),
        "blk.0.ffn_up.weight": (hidden, ffn),
        "blk.0.ffn_down.weight": (ffn, hidden),
        "output_norm.weight": (hidden,),
        "rope_freqs.weight": (2,),
    }
    tensors, data = [], b""
    for name, dims in sizes.items():
        data = padded(data)
        tensors.append(RawTensor(name, dims, 0, len(data)))
        data += struct.pack("<f", 1.0) * (dims[0] * (dims[1] if len(dims) > 1 else 1))
    tokens = [string(token) for token in ("<s>", "</s>", "a", "b", "ab")]
    keys = [
        ARCHITECTURE,
        key("llama.block_count", U32, scalar(U32, 1)),
        key("llama.context_length", U32, scalar(U32, 64)),
        key("llama.embedding_length", U32, scalar(U32, hidden)),
        key("llama.feed_forward_length", U32, scalar(U32, ffn)),
        key("llama.attention.head_count", U32, scalar(U32, 2)),
        key("llama.attention.head_count_kv", ARRAY, array(I32, [scalar(I32, 1)])),
        key("llama.attention.layer_norm_rms_epsilon", F32, scalar(F32, 1e-5)),
        key("llama.rope.freq_base", F32, scalar(F32, 10_000.0)),
        key("tokenizer.ggml.tokens", ARRAY, array(STRING, tokens)),
        key("tokenizer.ggml.add_bos_token", BOOL, scalar(BOOL, True)),
        key("general.alignment", U32, scalar(U32, 32)),
    ]
    return padded(header(keys, tensors)) + data
