"""Small embedding models of random weights, as folders on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("the", "mill", "by", "river", "wheel", "turns", "stone", "water", ",", "."),
    *("##s", "##ing", "grind", "a", "b", "c", "##a", "##b", "##c"),
)
SIZES: dict[str, Any] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 32,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}


def write_safetensors(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]
) -> None:
    """Tensors as (dtype, shape, bytes), one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [at, at + len(data)],
        }
        at += len(data)
    text = json.dumps(header).encode()
    body = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def tokenizer_json(words: tuple[str, ...] = WORDS) -> str:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=24)  # as real files say it, to no effect here
    return str(tokenizer.to_str())


def random_tensors(
    sizes: Mapping[str, Any], seed: int = 1
) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    random = np.random.default_rng(seed)
    hidden, ffn = sizes["hidden_size"], sizes["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (sizes["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (sizes["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (sizes["type_vocab_size"], hidden),
        **_pair("embeddings.LayerNorm", (hidden,)),
    }
    for layer in range(sizes["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        for name, shape in (
            ("attention.self.query", (hidden, hidden)),
            ("attention.self.key", (hidden, hidden)),
            ("attention.self.value", (hidden, hidden)),
            ("attention.output.dense", (hidden, hidden)),
            ("attention.output.LayerNorm", (hidden,)),
            ("intermediate.dense", (ffn, hidden)),
            ("output.dense", (hidden, ffn)),
            ("output.LayerNorm", (hidden,)),
        ):
            shapes |= _pair(f"{at}.{name}", shape)
    return {name: _tensor(random, name, shape) for name, shape in shapes.items()}


def _pair(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _tensor(
    random: np.random.Generator, name: str, shape: tuple[int, ...]
) -> tuple[str, tuple[int, ...], bytes]:
    spread = shape[-1] ** -0.5 if len(shape) == 2 and "dense" in name else 0.5
    values = random.normal(0, spread, shape)
    if name.endswith("LayerNorm.weight"):
        values += 1
    return "F32", shape, values.astype(np.float32).tobytes()


def write_model(
    folder: Path, *, seed: int = 1, max_tokens: int | None = None, **changed: Any
) -> Path:
    """A whole model; `changed` fields of its config, None leaves one out."""
    sizes = SIZES | changed
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", random_tensors(sizes, seed))
    (folder / "tokenizer.json").write_text(tokenizer_json())
    given = {name: value for name, value in sizes.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(given))
    if max_tokens is not None:
        (folder / "sentence_bert_config.json").write_text(
            json.dumps({"max_seq_length": max_tokens, "do_lower_case": False})
        )
    return folder


def write_pooling(folder: Path, **modes: bool) -> None:
    (folder / "1_Pooling").mkdir(exist_ok=True)
    given = {f"pooling_mode_{name}": value for name, value in modes.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(given))
