"""Write a random-weight model of Llama-3.2-1B's dimensions, mixed as Q4_K_M files are.

    .venv/bin/python bench/make_model.py [FILE]

For speed only: the weights are random blocks with sane scales, so nothing had to be quantized and
the file (about 0.8 GB) takes seconds. Q4_K, with Q6_K for the tied head and for half of `attn_v`
and `ffn_down`, as llama.cpp's Q4_K_M chooses them; `rope_freqs` as Llama 3 scales them; a made-up
byte-level vocabulary of 128,256 tokens that both we and llama.cpp load. Needs `gguf` and numpy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import click
import gguf
import numpy as np
from numpy.typing import NDArray

NUM_LAYERS, HIDDEN, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, FFN = 16, 2048, 32, 8, 64, 8192
VOCAB, NUM_SPECIAL, CONTEXT = 128_256, 256, 131_072
ROPE_THETA = 500_000.0
WEIGHT_STD = 0.02
SEED = 1

Bytes: TypeAlias = NDArray[np.uint8]
Maker: TypeAlias = Callable[[np.random.Generator, int], Bytes]
Q4_K, Q6_K, F32 = (gguf.GGMLQuantizationType[name] for name in ("Q4_K", "Q6_K", "F32"))


def q4_k_blocks(rng: np.random.Generator, num_blocks: int) -> Bytes:
    """(num_blocks, 144): d, dmin, 8 packed 6-bit (scale, min) pairs, 256 nibbles.

    Each min equals its scale and dmin is 7.5 d, so that every sub-block is centred on 0.
    """
    blocks = rng.integers(0, 256, (num_blocks, 144), dtype=np.uint8)
    step = np.float16(WEIGHT_STD / (32 * 4.6))  # mean scale 32; deviation of a nibble 4.6
    blocks[:, 0:4] = np.array([step, step * np.float16(7.5)], np.float16).view(np.uint8)
    blocks[:, 8:12] = blocks[:, 4:8]
    low = blocks[:, 12:16] & 0x0F
    blocks[:, 12:16] = low | (low << 4)
    return blocks


def q6_k_blocks(rng: np.random.Generator, num_blocks: int) -> Bytes:
    """(num_blocks, 210): 128 + 64 bytes of 6-bit numbers, 16 signed scales, d."""
    blocks = rng.integers(0, 256, (num_blocks, 210), dtype=np.uint8)
    scales = rng.integers(4, 16, (num_blocks, 16), dtype=np.int8)
    signs = rng.integers(0, 2, (num_blocks, 16), dtype=np.int8) * 2 - 1
    blocks[:, 192:208] = (scales * signs).view(np.uint8)
    step = np.float16(WEIGHT_STD / (10 * 18.5))  # mean scale 10; deviation of 6 bits 18.5
    blocks[:, 208:210] = np.array([step], np.float16).view(np.uint8)
    return blocks


BLOCKS: dict[gguf.GGMLQuantizationType, tuple[Maker, int]] = {
    Q4_K: (q4_k_blocks, 144),
    Q6_K: (q6_k_blocks, 210),
}


def uses_more_bits(layer: int) -> bool:
    """Q4_K_M's choice of the layers whose `attn_v` and `ffn_down` are Q6_K."""
    eighth = NUM_LAYERS // 8
    return layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2


def rope_factors() -> NDArray[np.float32]:
    """Llama 3.2's scaling: factor 32, low 1, high 4, trained on 8,192 positions."""
    wavelengths = 2 * np.pi * ROPE_THETA ** (np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    smooth = np.clip((8192 / wavelengths - 1) / (4 - 1), 0, 1)
    return np.asarray(1 / ((1 - smooth) / 32 + smooth), np.float32)


Tensor: TypeAlias = tuple[str, tuple[int, ...], gguf.GGMLQuantizationType]


def tensors() -> Iterator[Tensor]:
    """(name, shape with the input dimension last, type), in file order."""
    yield "rope_freqs.weight", (HEAD_DIM // 2,), F32
    yield "token_embd.weight", (VOCAB, HIDDEN), Q6_K
    for layer in range(NUM_LAYERS):
        rich = Q6_K if uses_more_bits(layer) else Q4_K
        for name, shape, kind in (
            ("attn_norm", (HIDDEN,), F32),
            ("attn_q", (NUM_HEADS * HEAD_DIM, HIDDEN), Q4_K),
            ("attn_k", (NUM_KV_HEADS * HEAD_DIM, HIDDEN), Q4_K),
            ("attn_v", (NUM_KV_HEADS * HEAD_DIM, HIDDEN), rich),
            ("attn_output", (HIDDEN, NUM_HEADS * HEAD_DIM), Q4_K),
            ("ffn_norm", (HIDDEN,), F32),
            ("ffn_gate", (FFN, HIDDEN), Q4_K),
            ("ffn_up", (FFN, HIDDEN), Q4_K),
            ("ffn_down", (HIDDEN, FFN), rich),
        ):
            yield f"blk.{layer}.{name}.weight", shape, kind
    yield "output_norm.weight", (HIDDEN,), F32


def tensor_data(tensor: Tensor, rng: np.random.Generator) -> NDArray[np.generic]:
    name, shape, kind = tensor
    if name == "rope_freqs.weight":
        return rope_factors()
    if kind == F32:
        return rng.uniform(0.9, 1.1, shape).astype(np.float32)
    make, _ = BLOCKS[kind]
    return make(rng, shape[0] * shape[1] // 256)


def vocabulary() -> tuple[list[str], list[int], list[str]]:
    """(tokens, types, merges): 256 bytes, pairs of them, then pairs with a third byte."""
    letters = byte_letters()
    pairs = [(first, second) for first in letters for second in letters]
    num_triples = VOCAB - NUM_SPECIAL - len(letters) - len(pairs)
    triples = [(first + second, letters[0]) for first, second in pairs[:num_triples]]
    merges = [f"{first} {second}" for first, second in (*pairs, *triples)]
    plain = [*letters, *(first + second for first, second in (*pairs, *triples))]
    named = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    special = named + [f"<|reserved_{i}|>" for i in range(NUM_SPECIAL - len(named))]
    types = [gguf.TokenType.NORMAL] * len(plain) + [gguf.TokenType.CONTROL] * NUM_SPECIAL
    return plain + special, [int(kind) for kind in types], merges


def byte_letters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters.update({byte: chr(256 + i) for i, byte in enumerate(hidden)})
    return [letters[byte] for byte in range(256)]


def add_metadata(writer: gguf.GGUFWriter) -> None:
    writer.add_name("Random 1B")
    writer.add_license("CC0-1.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_quantization_version(2)
    writer.add_block_count(NUM_LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    tokens, types, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(VOCAB - NUM_SPECIAL)
    writer.add_eos_token_id(VOCAB - NUM_SPECIAL + 2)


def write(path: Path) -> None:
    """Write the file, one tensor in memory at a time; atomic."""
    part = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(part, "llama")
    add_metadata(writer)
    for name, shape, kind in tensors():
        if kind == F32:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
            continue
        row_bytes = shape[1] // 256 * BLOCKS[kind][1]
        num_bytes = shape[0] * row_bytes
        packed = (shape[0], row_bytes)
        writer.add_tensor_info(name, packed, np.dtype(np.uint8), num_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(SEED)
    for tensor in tensors():
        writer.write_tensor_data(tensor_data(tensor, rng))
    writer.close()
    part.replace(path)


@click.command(help=__doc__)
@click.argument("path", type=Path, default="random-1b.Q4_K_M.gguf", metavar="[FILE]")
def main(path: Path) -> None:
    begun = time.perf_counter()
    write(path)
    print(f"{path}: {path.stat().st_size:,} bytes in {time.perf_counter() - begun:.1f} s")


if __name__ == "__main__":
    main()
