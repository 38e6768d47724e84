"""A model's tokens as the grammar library wants them: bytes, with the control tokens apart.

In: a tokenizer. Out: an `LLTokenizer`, made at the first use. Thread: any.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Set
from typing import Protocol, cast

from llguidance import LLTokenizer, TokenizerWrapper

_SENTINEL = "\x01"
"""Merges with nothing, so that what follows it is cut as if inside a text."""


class Tokenizer(Protocol):
    """What is asked of `headrace.model.tokenizer.Tokenizer`, or of a fake."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eog_ids(self) -> Set[int]: ...

    @property
    def control_tokens(self) -> Mapping[str, int]: ...

    def encode(self, text: str, *, special: bool = False) -> list[int]: ...

    def token_bytes(self, token: int) -> bytes: ...


class Vocabulary:
    """One model's tokens. `visible` control tokens count as the text they are spelled with; all
    others are never allowed, but for those that end an answer, where it may end."""

    def __init__(self, tokenizer: Tokenizer, visible: Mapping[int, bytes] | None = None) -> None:
        self._tokenizer = tokenizer
        self._visible = dict(visible or {})
        self._ids = {spelling.decode(): token for token, spelling in self._visible.items()}
        self._markers = re.compile("|".join(map(re.escape, self._ids)) or r"(?!)")
        self._prefix = tokenizer.encode(_SENTINEL)
        self._lock = threading.Lock()
        self._made: LLTokenizer | None = None

    @property
    def tokenizer(self) -> LLTokenizer:
        """Made at the first use: some tenths of a second for a large vocabulary."""
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def encode(self, text: str) -> list[int]:
        """Tokens of a text that goes on, as the model itself would write it; visible control
        tokens are found where they are spelled."""
        tokens: list[int] = []
        position = 0
        for match in self._markers.finditer(text):
            tokens += self._encode_run(text[position : match.start()])
            tokens.append(self._ids[match.group()])
            position = match.end()
        return tokens + self._encode_run(text[position:])

    def _encode_run(self, text: str) -> list[int]:
        if not text:
            return []
        # Some tokenizers put a space before each text: it goes before the sentinel.
        tokens = self._tokenizer.encode(_SENTINEL + text)
        if tokens[: len(self._prefix)] == self._prefix:
            return tokens[len(self._prefix) :]
        return self._tokenizer.encode(text)

    def _make(self) -> LLTokenizer:
        tokenizer = self._tokenizer
        hidden = {
            token: spelling
            for spelling, token in tokenizer.control_tokens.items()
            if token not in self._visible
        }
        source = _Source(
            [self._spelling(token, hidden) for token in range(tokenizer.vocab_size)],
            sorted(hidden),
            min(tokenizer.eog_ids),
            self.encode,
        )
        return LLTokenizer(
            cast(TokenizerWrapper, source),
            n_vocab=tokenizer.vocab_size,
            eos_token=sorted(tokenizer.eog_ids),
        )

    def _spelling(self, token: int, hidden: Mapping[int, str]) -> bytes:
        if token in hidden:
            return hidden[token].encode()
        return self._visible.get(token) or self._tokenizer.token_bytes(token)


class _Source:
    """What the library reads off a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id: int | None = None

    def __init__(
        self,
        tokens: list[bytes],
        special_token_ids: list[int],
        eos_token_id: int,
        encode: Callable[[str], list[int]],
    ) -> None:
        self.tokens = tokens
        self.special_token_ids = special_token_ids
        self.eos_token_id = eos_token_id
        self._encode = encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.decode(errors="replace") if isinstance(text, bytes) else text)
