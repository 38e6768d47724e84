"""What an embedding model's small files say: its sizes, how a text becomes one vector, its limits.

config.json                  sizes, as transformers writes them
sentence_bert_config.json    the most tokens of a text, where there is one
1_Pooling/config.json        how tokens become one vector, where there is one
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import InvalidModelFile, ModelError, UnsupportedModel

CONFIG = "config.json"
LENGTH_CONFIG = "sentence_bert_config.json"
POOLING_CONFIG = "1_Pooling/config.json"

SUPPORTED = (
    "supported are BERT encoders (model_type bert) with absolute positions and gelu, whose vector "
    "is the mean of all tokens or the first one"
)

_MAX_CONFIG_BYTES = 1 << 20
_MAX_SIZE = 1 << 24
_POOLING = "pooling_mode_"


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Sizes in elements or tokens as named."""

    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    ffn_size: int
    vocab_size: int
    num_positions: int
    num_text_marks: int
    """Rows of the table that tells a first text from a second; only the first row is used."""
    max_tokens: int
    """Of one text, its two markers included."""
    norm_eps: float
    takes_first: bool
    """A text's vector is its first token's, not the mean of all."""


def read_config(folder: Path) -> EncoderConfig:
    """Raises InvalidModelFile where a file is broken, UnsupportedModel where the model is of
    another kind, ModelError where a file cannot be read."""
    fields = _Fields(folder, CONFIG)
    _check_kind(fields)
    num_positions = fields.size("max_position_embeddings")
    config = EncoderConfig(
        architecture=str(fields.given["model_type"]),
        num_layers=fields.size("num_hidden_layers"),
        hidden_size=fields.size("hidden_size"),
        num_heads=fields.size("num_attention_heads"),
        ffn_size=fields.size("intermediate_size"),
        vocab_size=fields.size("vocab_size"),
        num_positions=num_positions,
        num_text_marks=fields.size("type_vocab_size"),
        max_tokens=min(_max_tokens(folder), num_positions),
        norm_eps=fields.number("layer_norm_eps"),
        takes_first=_takes_first(folder),
    )
    _check_sizes(fields, config)
    return config


def _check_kind(fields: _Fields) -> None:
    for name, supported, default in (
        ("model_type", "bert", None),
        ("position_embedding_type", "absolute", "absolute"),
        ("hidden_act", "gelu", None),
    ):
        found = fields.given.get(name, default)
        if found != supported:
            raise UnsupportedModel(f"{fields.where}: {name} is {str(found)[:80]!r}; {SUPPORTED}")
    if fields.given.get("is_decoder", False) is not False:
        raise UnsupportedModel(f"{fields.where}: is_decoder is set; {SUPPORTED}")


def _check_sizes(fields: _Fields, config: EncoderConfig) -> None:
    """What the kernels need; as errors that name the field."""
    for name, size in (
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.ffn_size),
    ):
        if size % 32:
            raise UnsupportedModel(f"{fields.where}: {name} is {size}; it must be a multiple of 32")
    head_size, rest = divmod(config.hidden_size, config.num_heads)
    if rest or head_size % 16 or head_size > 256:
        raise UnsupportedModel(
            f"{fields.where}: num_attention_heads: {config.num_heads} heads of a hidden size of "
            f"{config.hidden_size}; a head's size must be a multiple of 16, at most 256"
        )


def _max_tokens(folder: Path) -> int:
    if not (folder / LENGTH_CONFIG).is_file():
        return _MAX_SIZE
    fields = _Fields(folder, LENGTH_CONFIG)
    if fields.given.get("max_seq_length") is None:
        return _MAX_SIZE
    return fields.size("max_seq_length", least=3)


def _takes_first(folder: Path) -> bool:
    if not (folder / POOLING_CONFIG).is_file():
        return False
    fields = _Fields(folder, POOLING_CONFIG)
    chosen = {
        name.removeprefix(_POOLING)
        for name, value in fields.given.items()
        if name.startswith(_POOLING) and value is True
    }
    if chosen not in ({"mean_tokens"}, {"cls_token"}):
        told = ", ".join(sorted(chosen)) or "none"
        raise UnsupportedModel(f"{fields.where}: {_POOLING}*: {told[:80]}; {SUPPORTED}")
    return chosen == {"cls_token"}


class _Fields:
    """The fields of one JSON file."""

    def __init__(self, folder: Path, name: str) -> None:
        self.where = f"{folder.name}/{name}"
        self.given: Mapping[str, Any] = self._read(folder / name)

    def size(self, name: str, least: int = 1) -> int:
        value = self.given.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MAX_SIZE:
            raise InvalidModelFile(
                f"{self.where}: {name}: {str(value)[:40]!r} is no whole number from {least} to "
                f"{_MAX_SIZE}"
            )
        return value

    def number(self, name: str) -> float:
        value = self.given.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
            raise InvalidModelFile(
                f"{self.where}: {name}: {str(value)[:40]!r} is no number from 0 to 1"
            )
        return float(value)

    def _read(self, path: Path) -> Mapping[str, Any]:
        try:
            if path.stat().st_size > _MAX_CONFIG_BYTES:
                raise InvalidModelFile(f"{self.where}: is larger than {_MAX_CONFIG_BYTES:,} bytes")
            given = json.loads(path.read_bytes())
        except OSError as error:
            raise ModelError(f"{self.where}: cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise InvalidModelFile(f"{self.where}: is not valid JSON: {error}") from None
        if not isinstance(given, dict):
            raise InvalidModelFile(f"{self.where}: is not a JSON object")
        return given
