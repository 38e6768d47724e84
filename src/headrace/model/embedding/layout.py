"""Which tensor of a BERT file has which part in the encoder, each checked for shape and type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from headrace.errors import InvalidModelFile, UnsupportedModel
from headrace.model.embedding.config import EncoderConfig
from headrace.model.embedding.safetensors import SafetensorsFile, Tensor

TensorRef: TypeAlias = "tuple[str, int, int, int, int, int, int]"
"""Role, layer (-1: none), type as GGUF numbers it, rows, inputs, offset, bytes: for the core."""

_TYPES = {"F32": 0, "F16": 1, "BF16": 30}
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_PREFIXES = ("", "bert.")
_NORM_NAMES = {"weight": "gamma", "bias": "beta"}
"""What old files call the parts of a norm."""


def layout(file: SafetensorsFile, config: EncoderConfig) -> list[TensorRef]:
    """All that the encoder reads. Raises InvalidModelFile where a tensor is missing or has another
    shape than the config says, UnsupportedModel where its numbers are of another type."""
    return list(_Layout(file, config).refs())


class _Layout:
    def __init__(self, file: SafetensorsFile, config: EncoderConfig) -> None:
        self._file = file
        self._config = config
        first = "embeddings.word_embeddings.weight"
        self._prefix = next((p for p in _PREFIXES if p + first in file.tensors), "")

    def refs(self) -> Iterator[TensorRef]:
        config, hidden = self._config, self._config.hidden_size
        table = "embeddings.{}_embeddings.weight"
        yield self._ref("words", -1, table.format("word"), (config.vocab_size, hidden))
        yield self._ref("positions", -1, table.format("position"), (config.num_positions, hidden))
        yield self._text_mark(table.format("token_type"))
        yield from self._pair("embedding_norm", -1, "embeddings.LayerNorm", (hidden,))
        for layer in range(config.num_layers):
            yield from self._layer(layer, f"encoder.layer.{layer}")

    def _layer(self, layer: int, at: str) -> Iterator[TensorRef]:
        hidden, ffn = self._config.hidden_size, self._config.ffn_size
        for role, name, shape in (
            ("q", "attention.self.query", (hidden, hidden)),
            ("k", "attention.self.key", (hidden, hidden)),
            ("v", "attention.self.value", (hidden, hidden)),
            ("o", "attention.output.dense", (hidden, hidden)),
            ("attention_norm", "attention.output.LayerNorm", (hidden,)),
            ("up", "intermediate.dense", (ffn, hidden)),
            ("down", "output.dense", (hidden, ffn)),
            ("output_norm", "output.LayerNorm", (hidden,)),
        ):
            yield from self._pair(role, layer, f"{at}.{name}", shape)

    def _pair(
        self, role: str, layer: int, name: str, shape: tuple[int, ...]
    ) -> Iterator[TensorRef]:
        """A weight and its bias."""
        yield self._ref(role, layer, f"{name}.weight", shape)
        yield self._ref(f"{role}_bias", layer, f"{name}.bias", shape[:1])

    def _text_mark(self, name: str) -> TensorRef:
        """The first row of the table: every text is a first one."""
        shape = (self._config.num_text_marks, self._config.hidden_size)
        _, layer, kind, _, inputs, offset, num_bytes = self._ref("text_mark", -1, name, shape)
        return "text_mark", layer, kind, 1, inputs, offset, num_bytes // shape[0]

    def _ref(self, role: str, layer: int, name: str, shape: tuple[int, ...]) -> TensorRef:
        tensor = self._find(name)
        where = f"{self._file.path.name}: tensor {tensor.name!r}"
        if tensor.shape != shape:
            raise InvalidModelFile(
                f"{where}: shape: is {list(tensor.shape)}, the config says {list(shape)}"
            )
        if tensor.dtype not in _TYPES:
            raise UnsupportedModel(
                f"{where}: dtype: {tensor.dtype} cannot be used; supported are {', '.join(_TYPES)}"
            )
        rows = shape[0] if len(shape) == 2 else 1
        kind = _TYPES[tensor.dtype]
        return role, layer, kind, rows, shape[-1], tensor.offset, tensor.num_bytes

    def _find(self, name: str) -> Tensor:
        tensors = self._file.tensors
        owner, _, part = name.rpartition(".")
        old = f"{owner}.{_NORM_NAMES[part]}" if owner.endswith("LayerNorm") else name
        for known in (self._prefix + name, self._prefix + old):
            if known in tensors:
                return tensors[known]
        raise InvalidModelFile(f"{self._file.path.name}: tensor {self._prefix + name!r} is missing")
