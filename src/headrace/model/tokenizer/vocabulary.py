"""A GGUF's token list, checked: what each token is spelled like, what kind it is, what ends a text.

Kinds decide everything here. A *control* token is written by templates and by the model, never by
a user: its spelling in a text is just text. A *user-defined* token (`<think>` in some models) is
found in any text, before anything else. The rest is ordinary vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from headrace.errors import InvalidModelFile
from headrace.model.gguf import Value

_PREFIX = "tokenizer.ggml."
_Scalar = TypeVar("_Scalar", bool, int, str)


class Kind(IntEnum):
    """Numbers as in the file's `token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_SPECIAL_KINDS = (Kind.UNKNOWN, Kind.CONTROL, Kind.USER_DEFINED, Kind.BYTE)

END_NAMES = frozenset(
    {
        "</s>",
        "<eos>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<EOT>",
        "[EOS]",
        "[EOT]",
        "<｜end▁of▁sentence｜>",  # noqa: RUF001 - spelled so
        # A model that begins a new file has ended its answer.
        "<|fim_pad|>",
        "<|repo_name|>",
        "<reponame>",
        "<|file_sep|>",
    }
)
"""Spellings that end a generation in every model that has them as control tokens."""


@dataclass(frozen=True)
class Vocabulary:
    """Token `i` is spelled `spellings[i]`, as the file has it, and is a `kinds[i]`."""

    spellings: tuple[str, ...]
    kinds: Sequence[int]
    ordinary: Mapping[str, int]
    """Spelling → token of what text is cut into."""
    control: Mapping[str, int]
    """What only templates and the model write."""
    user_defined: Mapping[str, int]
    """What is found in any text before it is cut."""
    byte: Mapping[str, int]
    bos_id: int | None
    eos_id: int | None
    end_ids: frozenset[int]
    """Tokens that end a generation."""

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Value]) -> Vocabulary:
        """Raises `InvalidModelFile`, naming the key."""
        spellings = required_strings(metadata, "tokens")
        if not spellings:
            raise InvalidModelFile(f"{_PREFIX}tokens is empty; fetch or convert the model again")
        kinds = list(_kinds(metadata, spellings))
        bos_id, eos_id, eot_id, eom_id = (
            _token_id(metadata, name, len(spellings)) for name in ("bos", "eos", "eot", "eom")
        )
        special = [token for token, kind in enumerate(kinds) if kind in _SPECIAL_KINDS]
        ends = {token for token in (eos_id, eot_id, eom_id) if token is not None}
        ends |= {
            token
            for token in special
            if spellings[token] in END_NAMES and kinds[token] in (Kind.CONTROL, Kind.USER_DEFINED)
        }
        for token in special:
            # Were it found in any text, a user could end the prompt's turn with it.
            if kinds[token] == Kind.USER_DEFINED and (token in ends or token == bos_id):
                kinds[token] = Kind.CONTROL

        def of_kind(*wanted: Kind) -> dict[str, int]:
            return {spellings[token]: token for token in special if kinds[token] in wanted}

        return cls(
            spellings,
            kinds,
            _without(spellings, special),
            of_kind(Kind.CONTROL, Kind.UNKNOWN),
            of_kind(Kind.USER_DEFINED),
            of_kind(Kind.BYTE),
            bos_id,
            eos_id,
            frozenset(ends),
        )


def _without(spellings: tuple[str, ...], special: list[int]) -> dict[str, int]:
    """Spelling → token of all tokens but the special ones. Vocabularies are large: be quick."""
    ordinary = dict(zip(spellings, range(len(spellings)), strict=True))
    for token in special:
        if ordinary.get(spellings[token]) == token:
            del ordinary[spellings[token]]
    ordinary.pop("", None)
    return ordinary


def required_strings(metadata: Mapping[str, Value], name: str) -> tuple[str, ...]:
    """The string array `tokenizer.ggml.<name>`. Raises `InvalidModelFile`."""
    values = metadata.get(_PREFIX + name)
    if values is None:
        raise InvalidModelFile(
            f"{_PREFIX}{name} is missing, so text cannot become tokens; convert the model again"
        )
    if not isinstance(values, tuple) or not set(map(type, values)) <= {str}:
        raise InvalidModelFile(f"{_PREFIX}{name} must be an array of strings")
    return values  # type: ignore[return-value]  # narrowed just above


def required_numbers(metadata: Mapping[str, Value], name: str, count: int) -> tuple[float, ...]:
    """The array `tokenizer.ggml.<name>` of `count` finite numbers. Raises `InvalidModelFile`."""
    values = metadata.get(_PREFIX + name)
    if not isinstance(values, tuple) or not set(map(type, values)) <= {int, float}:
        raise InvalidModelFile(f"{_PREFIX}{name} must be an array of numbers")
    if not all(map(math.isfinite, values)):  # type: ignore[arg-type]  # narrowed just above
        raise InvalidModelFile(f"{_PREFIX}{name} has a number that is infinite or none at all")
    if len(values) != count:
        raise InvalidModelFile(
            f"{_PREFIX}{name} has {len(values)} entries for {count} tokens; it needs one for each"
        )
    return values  # type: ignore[return-value]  # narrowed just above


def optional(
    metadata: Mapping[str, Value], name: str, default: _Scalar, kind: type[_Scalar]
) -> _Scalar:
    """The scalar `tokenizer.ggml.<name>`, or `default`. Raises `InvalidModelFile`."""
    value = metadata.get(_PREFIX + name, default)
    if not isinstance(value, kind):
        raise InvalidModelFile(f"{_PREFIX}{name} is {value!r:.80}; it must be a {kind.__name__}")
    return value


def _kinds(metadata: Mapping[str, Value], spellings: tuple[str, ...]) -> Iterable[int]:
    if _PREFIX + "token_type" in metadata:
        return map(int, required_numbers(metadata, "token_type", len(spellings)))
    # Very old files do not say; then only what is beyond doubt counts as a marker.
    return (
        Kind.CONTROL if spelling in END_NAMES or spelling in ("<s>", "<|im_start|>")
        else Kind.BYTE if is_byte_spelling(spelling)
        else Kind.NORMAL
        for spelling in spellings
    )  # fmt: skip


def is_byte_spelling(spelling: str) -> bool:
    """Whether `spelling` is one byte, as in `<0x0A>`."""
    if len(spelling) != 6 or not spelling.startswith("<0x") or spelling[5] != ">":
        return False
    return all(digit in "0123456789ABCDEFabcdef" for digit in spelling[3:5])


def _token_id(metadata: Mapping[str, Value], name: str, num_tokens: int) -> int | None:
    key = f"{_PREFIX}{name}_token_id"
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < num_tokens:
        raise InvalidModelFile(f"{key} is {value!r:.80}; the file has {num_tokens} tokens")
    return value
