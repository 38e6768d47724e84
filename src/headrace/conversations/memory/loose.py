"""Texts that came with one question: split, ranked and let go, without any database.

In: documents and earlier messages, and a question. Out: a `Recall`. Thread: any but the event loop.
What was embedded is kept a while, by tenant and text, as clients send the same texts with each
question.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from headrace.conversations.memory.fusion import by_words, distinct, fused
from headrace.conversations.memory.splitting import split
from headrace.conversations.memory.values import Chunk, Found, Recall, Source
from headrace.conversations.memory.words import query_words, words_of
from headrace.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from headrace.model.embedder import Embedder, Vectors

WINDOW = 512
"""Tokens of a chunk where no embedder says how many it reads."""
_MAX_KEPT = 20_000
"""Vectors, of all tenants together."""
_BATCH = 32


@dataclass(frozen=True, slots=True)
class LooseText:
    """A text that is not kept."""

    source: Source
    text: str


class LooseMemory:
    """Ranks texts; for any number of threads."""

    def __init__(self, embedder: Embedder | None) -> None:
        """Without `embedder`: by words alone."""
        self._embedder = embedder
        self._kept: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def recall(
        self,
        tenant: str,
        texts: Sequence[LooseText],
        question: str,
        limit: int,
        *,
        has_time: bool = True,
        stop: threading.Event | None = None,
    ) -> Recall:
        """The best `limit` chunks of these texts; by words alone without `has_time`. Raises
        `ModelError`, also soon after `stop` is set; what was embedded till then is kept."""
        chunks = self._chunks(texts)
        rankings = [_by_words(chunks, question)]
        if not chunks:
            return Recall()
        if self._embedder is not None and has_time:
            wanted = [question, *(chunk.text for chunk in chunks)]
            vectors = self._vectors(self._embedder, tenant, wanted, stop or threading.Event())
            rankings.append(_by_vectors(vectors[1:], vectors[0]))
        found = (Found(chunks[key], score) for key, score in fused(rankings).items())
        missing = ("vectors",) if len(rankings) == 1 else ()
        return Recall(tuple(distinct(found)[:limit]), missing)

    def _chunks(self, texts: Sequence[LooseText]) -> list[Chunk]:
        most = WINDOW if self._embedder is None else self._embedder.max_tokens
        return [
            Chunk(one.source, position, piece)
            for one in texts
            for position, piece in split(one.text, most)
        ]

    def _vectors(
        self, embedder: Embedder, tenant: str, texts: Sequence[str], stop: threading.Event
    ) -> Vectors:
        import numpy as np

        keys = [_key(embedder.identity, tenant, text) for text in texts]
        with self._lock:
            known = {key: self._kept[key] for key in keys if key in self._kept}
        wanted = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        new = list(wanted.items())
        try:
            for start in range(0, len(new), _BATCH):
                if stop.is_set():
                    raise ModelError("nobody waits for these vectors any more")
                part = new[start : start + _BATCH]
                embedded = embedder.embed([text for _, text in part])
                known |= zip((key for key, _ in part), embedded.vectors, strict=True)
        finally:
            self._keep(known)
        return np.stack([known[key] for key in keys])

    def _keep(self, vectors: dict[bytes, NDArray[np.float32]]) -> None:
        with self._lock:
            for key, vector in vectors.items():
                self._kept[key] = vector
                self._kept.move_to_end(key)
            while len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)


def _by_vectors(vectors: Vectors, question: NDArray[np.float32]) -> list[int]:
    import numpy as np

    return [int(index) for index in np.argsort(-(vectors @ question), kind="stable")]


def _by_words(chunks: Sequence[Chunk], question: str) -> list[int]:
    wanted = query_words(question)
    postings: defaultdict[str, list[int]] = defaultdict(list)
    for index, chunk in enumerate(chunks):
        there = words_of(chunk.text)
        for word in wanted:
            if word in there:
                postings[word].append(index)
    return by_words(postings, len(chunks), len(chunks))


def _key(identity: str, tenant: str, text: str) -> bytes:
    digest = blake2b(digest_size=16)
    for part in (identity, tenant, text):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return digest.digest()
