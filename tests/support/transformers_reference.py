"""The logits that `transformers` computes from a GGUF file: a reference of other hands.

Sizes, names, dequantization and the un-permuting of llama's query and key rows are all theirs. What
their loader leaves out of a GGUF file is added here, and is the whole list: heads of another size
than hidden_size / num_heads for qwen, and what divides the rotation frequencies.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gguf as gguf_package
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from headrace.model import gguf
from headrace.model.gguf import GGUFFile

# Beside other work on two cores, threads that wait for each other cost a tiny model more than they
# give it.
torch.set_num_threads(1)


class TransformersModel:
    """A file loaded as float32, on the CPU."""

    def __init__(self, path: Path) -> None:
        file = gguf.read(path)
        with _nothing_done_twice():
            config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
            _complete(config, file)
            self.model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation="eager"
            ).eval()
            loaded = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=self.model)
        outcome = self.model.load_state_dict(loaded["tensors"], strict=False)
        _check(outcome.missing_keys, outcome.unexpected_keys, config)
        self.model.tie_weights()
        _divide_frequencies(self.model, file)

    def logits(self, tokens: list[int]) -> np.ndarray:
        """(len(tokens), vocab_size) float32."""
        with torch.inference_mode():
            logits: np.ndarray = self.model(torch.tensor([tokens])).logits[0].numpy()
        return logits


@contextmanager
def _nothing_done_twice() -> Iterator[None]:
    """Loading parses the file twice, and makes a table of names for every module: cached here."""
    with (
        patch.object(gguf_package, "GGUFReader", functools.cache(gguf_package.GGUFReader)),
        patch.object(
            gguf_package, "get_tensor_name_map", functools.cache(gguf_package.get_tensor_name_map)
        ),
    ):
        yield


def _complete(config: Any, file: GGUFFile) -> None:
    head_dim = file.integer(f"{file.architecture}.attention.key_length")
    if head_dim is not None:
        config.head_dim = head_dim
    if "blk.0.attn_q.bias" in file.tensors:
        config.attention_bias = True


def _check(missing: list[str], unexpected: list[str], config: Any) -> None:
    """Only a tied head may be missing, and the output bias that comes with theirs of Q, K and V."""
    allowed = {"lm_head.weight"} if config.tie_word_embeddings else set()
    left = [key for key in missing if key not in allowed and not key.endswith("o_proj.bias")]
    if left or unexpected:
        raise AssertionError(f"transformers found no weights for {left}, no place for {unexpected}")


def _divide_frequencies(model: Any, file: GGUFFile) -> None:
    frequencies = model.model.rotary_emb.inv_freq
    tensor = file.tensors.get("rope_freqs.weight")
    if tensor is not None:
        frequencies /= torch.frombuffer(bytearray(file.read_tensor(tensor)), dtype=torch.float32)
    frequencies /= file.number(f"{file.architecture}.rope.scaling.factor") or 1.0
