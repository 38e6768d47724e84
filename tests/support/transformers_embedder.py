"""The vectors that `transformers` computes from an embedding model: a reference of other hands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModel

torch.set_num_threads(1)


class TransformersEmbedder:
    """A folder loaded as float32, on the CPU; the mean of all tokens, or the first one."""

    def __init__(self, folder: Path, *, max_tokens: int, takes_first: bool = False) -> None:
        self._model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._takes_first = takes_first

    def embed(self, text: str) -> np.ndarray:
        """(dim,) float64, of length 1."""
        ids = torch.tensor([self._tokenizer.encode(text).ids])
        with torch.inference_mode():
            rows = self._model(input_ids=ids).last_hidden_state[0].double()
        vector = rows[0] if self._takes_first else rows.mean(0)
        return np.asarray(vector / vector.norm())
