"""Texts as sets of words for full-text search, in keys that tell nothing and never meet.

A word is kept as a digest of itself and its conversation. So the list of chunks that have a word is
a conversation's own: a search never walks over other tenants' chunks, its ranks do not depend on
them, and its time does not, either. (FTS5's own `bm25()` counts each word over the whole table.)
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from hashlib import blake2b

MAX_QUERY_WORDS = 12
"""The most telling ones of a long question."""
MAX_POSTINGS = 500
"""A word that more chunks have than this says too little to be worth its time."""

_WORD = re.compile(r"[^\W_]+")
_LONGEST = 64
"""Characters of a word that count."""


def words_of(text: str) -> dict[str, None]:
    """The words of a text, each once, in order: lower case, without accents."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    if not plain.isascii():
        plain = "".join(c for c in plain if not unicodedata.combining(c))
    return dict.fromkeys(word[:_LONGEST] for word in _WORD.findall(plain))


def query_words(text: str) -> list[str]:
    """The words of a question that are likely to be rare: first those with digits, then the
    longest."""

    def is_plain(word: str) -> bool:
        return not any(c.isdigit() for c in word)

    ranked = sorted(words_of(text), key=lambda word: (is_plain(word), -len(word)))
    return ranked[:MAX_QUERY_WORDS]


def keys_of(words: Iterable[str], conversation: int) -> list[str]:
    """What stands for these words in this conversation: letters that every tokenizer keeps."""
    salt = conversation.to_bytes(8, "little")
    return [
        blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8, salt=salt).hexdigest()
        for word in words
    ]
