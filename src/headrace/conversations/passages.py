"""What a memory found as passages of a prompt: how they read, and what they count.

In: a `Recall`. Out: passages for the strategy `retrieval`, the best first. Thread: any; no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from headrace.conversations.memory.values import Chunk, Recall, Source
from headrace.conversations.strategies.retrieval import DEFAULT_K, Passage

CANDIDATES = 3
"""So many times `k` chunks are looked at: some are shown anyway, some do not fit."""
_MORE = 4


@dataclass(frozen=True, slots=True)
class Recalled:
    """What was found for one question."""

    recall: Recall = field(default_factory=Recall)
    places: Mapping[str, str] = field(default_factory=dict)
    """By the ids of kept messages: their items' in the history."""
    time_s: float = 0.0
    """What the search took."""

    def passages(self, k: int | None, count: Callable[[str], int]) -> tuple[Passage, ...]:
        """`count`: the tokens that a text adds to a message."""
        most = CANDIDATES * (k or DEFAULT_K) + _MORE
        found = self.recall.found[:most]
        return tuple(self._passage(one.chunk, one.score, count) for one in found)

    def report(self) -> dict[str, Any]:
        """For whoever asks how the search went."""
        told: dict[str, Any] = {"time_s": round(self.time_s, 6)}
        if self.recall.missing:
            told["missing"] = list(self.recall.missing)
        if self.recall.num_waiting:
            told["waiting"] = self.recall.num_waiting
        return told

    def _passage(self, chunk: Chunk, score: float, count: Callable[[str], int]) -> Passage:
        source = chunk.source
        text = passage_text(source, chunk.text)
        place = self.places.get(source.id, "") if source.kind == "message" else ""
        return Passage(
            message={"role": "user", "content": text},
            place=place,
            count=partial(count, text),
            kind=source.kind,
            source_id=source.id,
            title=source.title,
            order=(source.order, chunk.position),
            score=score,
        )


def passage_text(source: Source, text: str) -> str:
    """As the model reads it: where it is from, then what it says."""
    if source.kind == "message":
        return f"[Earlier, from the {source.title or 'user'}]\n{text}"
    return f"[From {source.title or source.id}]\n{text}"
