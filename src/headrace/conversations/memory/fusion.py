"""Several rankings of the same chunks as one, and what of it is worth telling: plain values.

Reciprocal rank fusion: Cormack, Clarke and Büttcher, "Reciprocal rank fusion outperforms Condorcet
and individual rank learning methods", SIGIR 2009. It needs no scores that can be compared, only
ranks, so nothing has to be tuned when an embedder is replaced.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from headrace.conversations.memory.values import Found

RANK_OFFSET = 60
"""The paper's: how little the very first ranks count for more than those after them."""


def fused(rankings: Iterable[Sequence[int]]) -> dict[int, float]:
    """Keys of chunks by score, the best first. A ranking has its best first, and each key once.
    Of equal scores the lower key, which is the older chunk, comes first."""
    scores: defaultdict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, key in enumerate(ranking, start=1):
            scores[key] += 1 / (RANK_OFFSET + rank)
    return dict(sorted(scores.items(), key=lambda item: (-item[1], item[0])))


def by_words(postings: Mapping[str, Sequence[int]], num_chunks: int, limit: int) -> list[int]:
    """The keys of the chunks that share the most telling words with a question, the best first.
    `postings`: for each word, the chunks that have it, among `num_chunks`. A word weighs what BM25
    gives it for being there; how often it is there is not counted."""
    scores: defaultdict[int, float] = defaultdict(float)
    for keys in postings.values():
        weight = math.log1p((num_chunks - len(keys) + 0.5) / (len(keys) + 0.5))
        for key in keys:
            scores[key] += weight
    return sorted(scores, key=lambda key: (-scores[key], key))[:limit]


def distinct(found: Iterable[Found]) -> list[Found]:
    """Without texts that were told before, however they are spaced."""
    seen: set[str] = set()
    kept = []
    for one in found:
        words = " ".join(one.chunk.text.split())
        if words and words not in seen:
            seen.add(words)
            kept.append(one)
    return kept
