from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import InvalidModelFile, ModelError, UnsupportedModel
from headrace.model.embedding import safetensors
from headrace.model.embedding.config import SUPPORTED, read_config
from headrace.model.embedding.layout import layout
from headrace.model.embedding.wordpiece import WordPiece
from support.embedding_models import (
    SIZES,
    WORDS,
    random_tensors,
    tokenizer_json,
    write_model,
    write_pooling,
    write_safetensors,
)


def test_the_sizes_of_a_model(tmp_path: Path) -> None:
    config = read_config(write_model(tmp_path / "tiny", max_tokens=24))
    assert (config.num_layers, config.hidden_size, config.num_heads) == (2, 64, 4)
    assert (config.num_positions, config.max_tokens) == (40, 24)
    assert not config.takes_first


def test_no_text_is_longer_than_there_are_positions(tmp_path: Path) -> None:
    assert read_config(write_model(tmp_path / "a")).max_tokens == 40
    assert read_config(write_model(tmp_path / "b", max_tokens=512)).max_tokens == 40


@pytest.mark.parametrize(
    ("modes", "takes_first"),
    [
        ({"mean_tokens": True, "cls_token": False}, False),
        ({"mean_tokens": False, "cls_token": True}, True),
    ],
)
def test_how_tokens_become_one_vector(
    tmp_path: Path, modes: dict[str, bool], takes_first: bool
) -> None:
    folder = write_model(tmp_path / "tiny")
    write_pooling(folder, **modes)
    assert read_config(folder).takes_first is takes_first


@pytest.mark.parametrize(
    "modes", [{"max_tokens": True}, {"mean_tokens": True, "cls_token": True}, {}]
)
def test_other_poolings_are_refused(tmp_path: Path, modes: dict[str, bool]) -> None:
    folder = write_model(tmp_path / "tiny")
    write_pooling(folder, **modes)
    with pytest.raises(UnsupportedModel, match=r"tiny/1_Pooling/config.json: pooling_mode_\*"):
        read_config(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_type", "roberta"),
        ("model_type", None),
        ("position_embedding_type", "relative_key"),
        ("hidden_act", "relu"),
        ("is_decoder", True),
        ("hidden_size", 65),
        ("intermediate_size", 100),
        ("num_attention_heads", 3),
        ("num_attention_heads", 8),
    ],
)
def test_other_models_are_refused_by_field(tmp_path: Path, name: str, value: Any) -> None:
    folder = tmp_path / "other"
    write_model(folder)
    (folder / "config.json").write_text(json.dumps(SIZES | {name: value}))
    with pytest.raises(UnsupportedModel, match=f"other/config.json: {name}") as raised:
        read_config(folder)
    assert "multiple" in raised.value.message or SUPPORTED in raised.value.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", "64"),
        ("num_hidden_layers", 0),
        ("vocab_size", True),
        ("num_attention_heads", None),
        ("max_position_embeddings", 1 << 40),
        ("layer_norm_eps", "small"),
        ("layer_norm_eps", -1.0),
    ],
)
def test_broken_fields_are_named(tmp_path: Path, name: str, value: Any) -> None:
    folder = write_model(tmp_path / "tiny")
    (folder / "config.json").write_text(json.dumps(SIZES | {name: value}))
    with pytest.raises(InvalidModelFile, match=f"tiny/config.json: {name}"):
        read_config(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '"x"'])
def test_a_config_that_is_no_object(tmp_path: Path, text: str) -> None:
    folder = write_model(tmp_path / "tiny")
    (folder / "config.json").write_text(text)
    with pytest.raises(InvalidModelFile, match=r"tiny/config\.json: is not"):
        read_config(folder)


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        read_config(tmp_path)


def test_every_part_of_the_encoder_has_its_tensor(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny")
    refs = layout(safetensors.read(folder / "model.safetensors"), read_config(folder))
    assert len({(role, layer) for role, layer, *_ in refs}) == len(refs) == 5 + 2 * 16
    (mark,) = [ref for ref in refs if ref[0] == "text_mark"]
    assert mark[3:5] == (1, 64) and mark[6] == 64 * 4


def test_names_of_older_files(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny")
    plain = layout(safetensors.read(folder / "model.safetensors"), read_config(folder))
    tensors = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in random_tensors(SIZES).items()
    }
    write_safetensors(folder / "model.safetensors", tensors)
    old = layout(safetensors.read(folder / "model.safetensors"), read_config(folder))
    assert [ref[:5] for ref in old] == [ref[:5] for ref in plain]


def test_a_missing_tensor_and_one_of_another_shape(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny")
    tensors = random_tensors(SIZES)
    name = "encoder.layer.1.output.dense.bias"
    missing = {key: value for key, value in tensors.items() if key != name}
    write_safetensors(folder / "model.safetensors", missing)
    with pytest.raises(InvalidModelFile, match=f"tensor '{name}' is missing"):
        layout(safetensors.read(folder / "model.safetensors"), read_config(folder))
    write_safetensors(folder / "model.safetensors", tensors | {name: ("F32", (32,), bytes(4 * 32))})
    with pytest.raises(InvalidModelFile, match=rf"{name}.*is \[32\], the config says \[64\]"):
        layout(safetensors.read(folder / "model.safetensors"), read_config(folder))
    write_safetensors(folder / "model.safetensors", tensors | {name: ("I32", (64,), bytes(256))})
    with pytest.raises(UnsupportedModel, match="I32 cannot be used; supported are F32, F16, BF16"):
        layout(safetensors.read(folder / "model.safetensors"), read_config(folder))


def test_texts_to_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer_json())
    wordpiece = WordPiece(path, max_tokens=6, vocab_size=32)
    names = {word: i for i, word in enumerate(WORDS)}
    tokens = wordpiece.encode(["The mills", "", "grinding zzz", "a b c a", "a b c a b", "\ud800"])
    assert tokens.ids[0] == [2, names["the"], names["mill"], names["##s"], 3]
    assert tokens.ids[1] == [2, 3]
    assert tokens.ids[2] == [2, names["grind"], names["##ing"], names["[UNK]"], 3]
    assert [len(ids) for ids in tokens.ids[3:5]] == [6, 6]
    assert tokens.truncated == [4]


def test_of_a_book_only_its_beginning_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer_json())
    wordpiece = WordPiece(path, max_tokens=6, vocab_size=32)
    words, blanks = wordpiece.encode(["a b c " * 100_000, " " * 1000 + "a"]).ids
    assert len(words) == 6
    assert blanks == [2, 3]
    assert wordpiece.encode(["a b c " * 1000, " " * 1000 + "a"]).truncated == [0, 1]


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("{", InvalidModelFile, "is not valid JSON"),
        ("[]", UnsupportedModel, "model: type is 'None'; supported is WordPiece"),
        ('{"model": {"type": "BPE"}}', UnsupportedModel, "model: type is 'BPE'"),
        ('{"model": {"type": "WordPiece"}}', InvalidModelFile, "tokenizer.json: "),
    ],
)
def test_tokenizers_of_another_kind(
    tmp_path: Path, text: str, error: type[ModelError], said: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(error, match=said):
        WordPiece(path, max_tokens=6, vocab_size=32)


def without_markers(described: dict[str, Any]) -> None:
    described["post_processor"] = None


def with_one_marker(described: dict[str, Any]) -> None:
    described["post_processor"]["single"].pop()


@pytest.mark.parametrize("change", [without_markers, with_one_marker])
def test_a_tokenizer_that_leaves_texts_without_their_markers(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    described = json.loads(tokenizer_json())
    change(described)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(described))
    with pytest.raises(InvalidModelFile, match="must put one marker before a text"):
        WordPiece(path, max_tokens=6, vocab_size=32)


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer_json())
    with pytest.raises(InvalidModelFile, match=f"has {len(WORDS)} tokens, the model 20"):
        WordPiece(path, max_tokens=6, vocab_size=20)
