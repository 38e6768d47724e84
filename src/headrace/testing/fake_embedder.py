"""Texts to vectors without a model: texts with words in common, or parts, point the same way."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from headrace.model.embedder import Embedded

if TYPE_CHECKING:
    from headrace.model.embedder import Vectors

_WORD = re.compile(r"\w+")
_NUM_MARKERS = 2
"""What a real model puts around a text."""
_PART = 3
"""Letters of a part of a word."""
_WORD_WEIGHT = 2.0
_EVERY_TEXT = "\0"
"""A feature of each text, so that a text without words has a direction, too."""
_EVERY_TEXT_WEIGHT = 0.1


class FakeEmbedder:
    """Implements `headrace.model.embedder.Embedder`: signed feature hashing of words and of their
    parts. One token is one word; the same text gives the same bits in every process."""

    def __init__(
        self, dim: int = 256, *, max_tokens: int = 256, name: str = "fake-embedder"
    ) -> None:
        """Few numbers a vector make unlike texts alike by chance: about 1 / sqrt(`dim`)."""
        if dim < 1 or max_tokens <= _NUM_MARKERS:
            raise ValueError(f"`dim` must be at least 1, `max_tokens` above {_NUM_MARKERS}")
        self.name = name
        self.dim = dim
        self.max_tokens = max_tokens
        self.identity = f"{name}:{dim}:{max_tokens}:1"
        self.num_calls = 0
        """How often `embed` was asked."""

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Vectors as float32 of shape (number of texts, `dim`), each of length 1; `truncated` has
        the indices of texts with more than `max_tokens` tokens, whose ends went unread."""
        import numpy as np

        self.num_calls += 1
        vectors = np.zeros((len(texts), self.dim), np.float32)
        num_tokens = 0
        truncated = []
        for i, text in enumerate(texts):
            words = _WORD.findall(text.lower())
            kept = words[: self.max_tokens - _NUM_MARKERS]
            if len(kept) < len(words):
                truncated.append(i)
            num_tokens += len(kept) + _NUM_MARKERS
            self._add(vectors[i], kept)
        return Embedded(vectors, num_tokens, tuple(truncated))

    def _add(self, vector: Vectors, words: list[str]) -> None:
        import numpy as np

        for feature, weight in _features(words):
            bits = zlib.crc32(feature.encode("utf-8", "surrogatepass"))
            vector[(bits >> 1) % self.dim] += weight if bits & 1 else -weight
        length = float(np.linalg.norm(vector))
        if length == 0:  # all features met their opposites
            vector[0] = length = 1.0
        vector /= length


def _features(words: list[str]) -> Iterator[tuple[str, float]]:
    """What a text is made of, and how much each weighs: often said counts for more, but not as much
    more as it is said more often."""
    yield _EVERY_TEXT, _EVERY_TEXT_WEIGHT
    for word, count in Counter(words).items():
        weight = count**0.5
        yield word, _WORD_WEIGHT * weight
        padded = f"<{word}>"
        for i in range(len(padded) - _PART + 1):
            yield padded[i : i + _PART], weight / len(padded)
