"""Texts to the tokens of an embedding model, each between its two markers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headrace.errors import InvalidModelFile, ModelError, UnsupportedModel

TOKENIZER = "tokenizer.json"

_MAX_BYTES = 1 << 26
_CHARS_A_TOKEN = 64
"""Of a text no more is read than so many characters for each token that fits: a book would be cut
to its first page all the same, after minutes."""


class Tokens(NamedTuple):
    """Some texts' tokens, in the order of the texts."""

    ids: list[list[int]]
    truncated: list[int]
    """Which texts were too long."""


class WordPiece:
    """A WordPiece tokenizer as its file describes it. May be used from several threads at once."""

    def __init__(self, path: Path, *, max_tokens: int, vocab_size: int) -> None:
        """Raises InvalidModelFile where the file is broken or has tokens that the model has not,
        UnsupportedModel where it is of another kind, ModelError where it cannot be read."""
        from tokenizers import Tokenizer

        raw = _read(path)
        self.digest = hashlib.sha256(raw).hexdigest()
        _check_kind(path, raw)
        try:
            self._tokenizer = Tokenizer.from_str(raw.decode())
        except Exception as error:  # the library knows no other
            raise InvalidModelFile(f"{path.name}: {error}") from None
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._max_chars = _CHARS_A_TOKEN * max_tokens
        if self._tokenizer.get_vocab_size(with_added_tokens=True) > vocab_size:
            raise InvalidModelFile(
                f"{path.name}: vocab: has {self._tokenizer.get_vocab_size():,} tokens, the model "
                f"{vocab_size:,}"
            )

        self._check_markers(path)

    def _check_markers(self, path: Path) -> None:
        """A model reads nonsense, and says nothing, where its texts come without."""
        mask = self._tokenizer.encode("a").special_tokens_mask
        if (mask[0], mask[-1], sum(mask)) != (1, 1, 2):
            raise InvalidModelFile(
                f"{path.name}: post_processor: must put one marker before a text and one behind it "
                "([CLS] and [SEP]); take the model's own tokenizer.json"
            )

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Long texts are cut so that they fit with their markers."""
        encodings = self._tokenizer.encode_batch_fast(
            [_sound(text[: self._max_chars]) for text in texts]
        )
        return Tokens(
            [encoding.ids for encoding in encodings],
            [
                i
                for i, encoding in enumerate(encodings)
                if encoding.overflowing or len(texts[i]) > self._max_chars
            ],
        )


def _sound(text: str) -> str:
    """Half a surrogate pair, which JSON can spell, is no character."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InvalidModelFile(f"{path.name}: is larger than {_MAX_BYTES:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path.name}: cannot be read: {error.strerror or error}") from error


def _check_kind(path: Path, raw: bytes) -> None:
    try:
        described: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidModelFile(f"{path.name}: is not valid JSON: {error}") from None
    model = described.get("model") if isinstance(described, dict) else None
    kind = model.get("type") if isinstance(model, dict) else None
    if kind != "WordPiece":
        raise UnsupportedModel(
            f"{path.name}: model: type is {str(kind)[:40]!r}; supported is WordPiece"
        )
