"""A float32 forward pass in plain NumPy, over the dequantized weights: what the kernels must equal.

Written for reading, not for speed. It takes the file's sizes from `architecture.py` and the tensors
from `roles.py`, so comparing it with `transformers` proves those too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headrace.model import architecture, gguf, roles
from headrace.model.architecture import Hyperparameters
from support.gguf_models import dequantize


class ReferenceModel:
    """All weights of a file as float32, by (role, layer)."""

    def __init__(self, path: Path) -> None:
        file = gguf.read(path)
        self.hyper = architecture.describe(file)
        self.weights: dict[tuple[str, int | None], np.ndarray] = {}
        for role, layer, tensor in roles.layout(file, self.hyper).by_role():
            if role == "output_head" and self.hyper.tied_head:
                continue
            data = np.frombuffer(file.read_tensor(tensor), np.uint8)
            rows = data.reshape(*tensor.shape[:-1], -1)
            self.weights[role, layer] = dequantize(rows, tensor.type.name)
        if self.hyper.tied_head:
            self.weights["output_head", None] = self.weights["token_embedding", None]

    def logits(self, tokens: list[int]) -> np.ndarray:
        """(len(tokens), vocab_size) float32: row i is for the token after `tokens[i]`."""
        return self.head(self.hidden(tokens))

    def hidden(self, tokens: list[int]) -> np.ndarray:
        """What goes into the output head: (len(tokens), hidden_size)."""
        x = self.weights["token_embedding", None][tokens]
        for layer in range(self.hyper.num_layers):
            x = x + self._attention(layer, self._norm(x, "attn_norm", layer))
            x = x + self._feed_forward(layer, self._norm(x, "ffn_norm", layer))
        return self._norm(x, "output_norm", None)

    def head(self, hidden: np.ndarray) -> np.ndarray:
        return hidden @ self.weights["output_head", None].T

    def _attention(self, layer: int, x: np.ndarray) -> np.ndarray:
        hyper = self.hyper
        q = self._heads("q", layer, x, hyper.num_heads)
        k = self._heads("k", layer, x, hyper.num_kv_heads)
        v = self._heads("v", layer, x, hyper.num_kv_heads)
        if hyper.has_qk_norm:
            q, k = self._norm(q, "q_norm", layer), self._norm(k, "k_norm", layer)
        q, k = rotate(q, hyper), rotate(k, hyper)
        future = np.triu(np.full((len(x), len(x)), -np.inf, np.float32), k=1)
        outputs = np.empty((len(x), hyper.num_heads, hyper.head_dim), np.float32)
        for head in range(hyper.num_heads):  # one at a time: a long text's scores are large
            shared = head // (hyper.num_heads // hyper.num_kv_heads)
            scores = q[head] @ k[shared].T * np.float32(hyper.attention_scale) + future
            outputs[:, head] = softmax(scores) @ v[shared]
        return outputs.reshape(len(x), -1) @ self.weights["o", layer].T

    def _heads(self, role: str, layer: int, x: np.ndarray, num_heads: int) -> np.ndarray:
        """(heads, positions, head_dim)."""
        y = x @ self.weights[role, layer].T
        if self.hyper.has_qkv_bias:
            y = y + self.weights[f"{role}_bias", layer]
        return y.reshape(len(x), num_heads, -1).swapaxes(0, 1)

    def _feed_forward(self, layer: int, x: np.ndarray) -> np.ndarray:
        gate = x @ self.weights["gate", layer].T
        up = x @ self.weights["up", layer].T
        return (gate / (1 + np.exp(-gate)) * up) @ self.weights["down", layer].T

    def _norm(self, x: np.ndarray, role: str, layer: int | None) -> np.ndarray:
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + np.float32(self.hyper.rms_eps)) * self.weights[role, layer]


def rotate(x: np.ndarray, hyper: Hyperparameters, first_position: int = 0) -> np.ndarray:
    """RoPE on (heads, positions, head_dim); angles in float64, where the truth is."""
    positions = first_position + np.arange(x.shape[1])
    exponents = np.arange(0, hyper.rope_dim, 2) / hyper.rope_dim
    angles = positions[:, None] * hyper.rope_theta**-exponents / (hyper.rope_factors or 1.0)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    half = hyper.rope_dim // 2
    interleaved = hyper.rope_style == "interleaved"
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    turned = first * cos - second * sin, second * cos + first * sin
    if interleaved:
        return np.stack(turned, axis=-1).reshape(x.shape)
    return np.concatenate(turned, axis=-1)


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
