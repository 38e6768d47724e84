"""SentencePiece BPE ("llama" vocabularies): scores instead of merges, byte fallback.

The algorithm joins, again and again, the two neighbours whose union is the best-scored token, the
leftmost first. That is BPE whose merges are ranked by the union's score, so the merges are derived
from the scores. (A Unigram model over the same scores would be another tokenization.)

Spaces are `▁`; `add_space_prefix` puts one before every run of text; a character without a token
becomes its UTF-8 bytes as `<0x..>` tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import Tokenizer, models, normalizers

from headrace.errors import InvalidModelFile
from headrace.model.gguf import Value
from headrace.model.tokenizer.vocabulary import (
    Vocabulary,
    is_byte_spelling,
    required_numbers,
)

_SPACE = "▁"
_LONGEST_PIECE = 512
"""Longer tokens are never built by merging: deriving their merges would cost quadratic time."""


def sentencepiece(
    metadata: Mapping[str, Value], vocabulary: Vocabulary, *, add_space_prefix: bool
) -> Tokenizer:
    """Raises `InvalidModelFile`."""
    scores = required_numbers(metadata, "scores", len(vocabulary.spellings))
    _check_bytes(vocabulary.byte)
    encoder = Tokenizer(
        models.BPE(
            vocab={**vocabulary.user_defined, **vocabulary.byte, **vocabulary.ordinary},
            merges=_merges(vocabulary.ordinary, scores),
            byte_fallback=True,
        )
    )
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    if add_space_prefix:
        spaces.insert(0, normalizers.Prepend(_SPACE))
    encoder.normalizer = normalizers.Sequence(spaces)
    return encoder


def _merges(pieces: Mapping[str, int], scores: tuple[float, ...]) -> list[tuple[str, str]]:
    """Every way to build each piece from two, best score first."""
    ranked = sorted(
        (-scores[token], token, piece)
        for piece, token in pieces.items()
        if 1 < len(piece) <= _LONGEST_PIECE
    )
    return [
        (piece[:cut], piece[cut:])
        for _, _, piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]


def _check_bytes(byte_tokens: Mapping[str, int]) -> None:
    missing = [f"<0x{byte:02X}>" for byte in range(0x100) if f"<0x{byte:02X}>" not in byte_tokens]
    if missing:
        raise InvalidModelFile(
            f"tokenizer.ggml.tokens lacks {len(missing)} of the 256 byte tokens, {missing[0]} for "
            "one, so some text could not be encoded; convert the model again"
        )


def sentencepiece_bytes(spelling: str) -> bytes:
    """The bytes that an ordinary token stands for."""
    return spelling.replace(_SPACE, " ").encode()


def byte_token_bytes(spelling: str) -> bytes:
    """The byte that `<0x0A>` and its like stand for; other spellings stand for themselves."""
    return bytes((int(spelling[3:5], 16),)) if is_byte_spelling(spelling) else spelling.encode()
