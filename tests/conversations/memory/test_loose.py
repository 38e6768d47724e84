"""Texts that came with a question: ranked without a database, and embedded once."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from headrace.conversations.memory.loose import LooseMemory, LooseText
from headrace.conversations.memory.values import Source
from headrace.errors import ModelError
from headrace.model.embedder import Embedded
from headrace.testing import FakeEmbedder

TEXTS = [
    LooseText(
        Source("document", "wheel", "Wheels", 0), "The water wheel turns at eleven a minute."
    ),
    LooseText(Source("document", "pond", "Ponds", 1), "The pond is full of carp. " * 300),
    LooseText(Source("message", "m1", "user", 2), "My name is Anna."),
]


def test_the_best_chunk_comes_first() -> None:
    memory = LooseMemory(FakeEmbedder())
    recall = memory.recall("anna", TEXTS, "How fast does the water wheel turn?", 3)
    assert recall.found[0].chunk.source.id == "wheel"
    assert len(recall.found) == 3
    assert not recall.missing
    recall = memory.recall("anna", TEXTS, "Is Anna my name?", 1)
    assert [found.chunk.source.id for found in recall.found] == ["m1"]


def test_without_vectors_words_do() -> None:
    for memory, has_time in ((LooseMemory(None), True), (LooseMemory(FakeEmbedder()), False)):
        recall = memory.recall("anna", TEXTS, "wheel", 3, has_time=has_time)
        assert [found.chunk.source.id for found in recall.found] == ["wheel"]
        assert recall.missing == ("vectors",)


def test_a_text_is_embedded_once_for_each_tenant() -> None:
    embedder = FakeEmbedder()
    memory = LooseMemory(embedder)
    for _ in range(2):
        memory.recall("anna", TEXTS, "wheel", 3)
    num_calls = embedder.num_calls
    memory.recall("anna", TEXTS, "wheel", 3)
    assert embedder.num_calls == num_calls
    memory.recall("ben", TEXTS, "wheel", 3)
    assert embedder.num_calls > num_calls


def test_a_search_that_is_stopped_keeps_what_it_has() -> None:
    stop = threading.Event()

    class Stopped(FakeEmbedder):
        def embed(self, texts: Sequence[str]) -> Embedded:
            stop.set()
            return super().embed(texts)

    embedder = Stopped()
    memory = LooseMemory(embedder)
    texts = [LooseText(Source("message", str(n), "user", n), f"Day {n}.") for n in range(100)]
    with pytest.raises(ModelError):
        memory.recall("anna", texts, "Which day?", 3, stop=stop)
    assert embedder.num_calls == 1
    whole = FakeEmbedder()
    LooseMemory(whole).recall("anna", texts, "Which day?", 3)
    assert memory.recall("anna", texts, "Which day?", 3).found
    assert embedder.num_calls == whole.num_calls


def test_no_texts_answer_nothing() -> None:
    recall = LooseMemory(FakeEmbedder()).recall("anna", [], "wheel", 3)
    assert not recall.found
    assert not recall.missing
