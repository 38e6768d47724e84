"""The test models themselves: packers that the `gguf` package unpacks, files that repeat."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from support.gguf_models import (
    QUANTS,
    SHAPES,
    ModelShape,
    byte_level_vocabulary,
    dequantize,
    quantize,
    random_blocks,
    write_model,
)

# As a share of the largest number: half a step where both ends of the range are reached, and a
# whole one where the far end is a step short (Q4_0, Q5_0, Q6_K).
ERRORS = {"F32": 0.0, "F16": 5e-4, "BF16": 4e-3, "Q8_0": 5e-3, "Q6_K": 0.035}
ERRORS |= {"Q5_0": 0.065, "Q5_1": 0.04, "Q5_K": 0.045, "Q4_0": 0.13, "Q4_1": 0.08, "Q4_K": 0.085}


@pytest.mark.parametrize("quant", QUANTS)
def test_quantized_numbers_come_back(quant: str) -> None:
    weights = np.random.default_rng(1).normal(size=(24, 512)).astype(np.float32)
    weights[3], weights[4, :256] = 0, 1.5
    back = dequantize(quantize(weights, quant), quant)
    assert back.shape == weights.shape and back.dtype == np.float32
    assert np.abs(back - weights).max() <= ERRORS[quant] * np.abs(weights).max()


@pytest.mark.parametrize("quant", QUANTS)
def test_random_blocks_are_sane_numbers(quant: str) -> None:
    blocks = random_blocks(quant, 16, 512, np.random.default_rng(2))
    numbers = dequantize(blocks, quant)
    assert numbers.shape == (16, 512)
    assert np.isfinite(numbers).all() and np.abs(numbers).max() < 1000
    assert (numbers < 0).any() and (numbers > 0).any()


def test_same_seed_same_file(tmp_path: Path) -> None:
    files = [
        write_model(tmp_path / f"{index}.gguf", ModelShape(), "Q4_K", seed).read_bytes()
        for index, seed in enumerate((7, 7, 8))
    ]
    assert files[0] == files[1] != files[2]


def test_types_per_role_and_where_they_do_not_fit(tmp_path: Path) -> None:
    mix = {"default": "Q4_K", "attn_v": "Q6_K", "blk.1.attn_v": "F16", "token_embd": "Q5_1"}
    path = write_model(tmp_path / "mix.gguf", SHAPES["llama-smol"], mix)
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert types["token_embd.weight"] == "Q5_1"
    assert types["blk.0.attn_q.weight"] == "Q8_0"  # rows of 192
    assert types["blk.0.ffn_down.weight"] == "Q4_K"  # rows of 512
    assert types["blk.1.attn_v.weight"] == "F16"
    assert types["output_norm.weight"] == "F32"


def test_metadata_is_added_and_replaced(tmp_path: Path) -> None:
    extra = {"llama.context_length": 77, "llama.rope.scaling.type": "yarn", "x.y": 0.5}
    reader = gguf.GGUFReader(write_model(tmp_path / "m.gguf", ModelShape(), metadata=extra))
    for key, value in extra.items():
        field = reader.get_field(key)
        assert field is not None and field.contents() == value


@pytest.mark.parametrize("size", [259, 331, 384, 512])
def test_the_vocabulary_is_a_working_tokenizer(size: int) -> None:
    vocabulary = byte_level_vocabulary(size)
    assert len(vocabulary.tokens) == len(set(vocabulary.tokens)) == len(vocabulary.types) == size
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    merges = [tuple(merge.split(" ")) for merge in vocabulary.merges]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = "The river runs to the mill. Grüße, 世界! 🦙\n\n\tx = 10"
    encoded = tokenizer.encode(text).ids
    assert tokenizer.decode(encoded) == text
    assert (len(encoded) < len(text.encode())) == bool(merges)
