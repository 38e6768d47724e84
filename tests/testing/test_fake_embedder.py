"""The fake embedder: the promises of the protocol, and likeness that tests can rely on."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.embedder import Embedder
from headrace.testing import FakeEmbedder

TEXTS = st.lists(st.text(max_size=60), max_size=8)


def test_it_is_an_embedder() -> None:
    embedder: Embedder = FakeEmbedder()
    embedded = embedder.embed(["one text", "another"])
    assert embedded.vectors.shape == (2, embedder.dim)
    assert embedded.vectors.dtype == np.float32
    assert embedded.num_tokens == 2 + 2 + 1 + 2


def test_no_texts_give_no_vectors() -> None:
    embedded = FakeEmbedder(dim=8).embed([])
    assert embedded.vectors.shape == (0, 8)
    assert embedded.num_tokens == 0


@given(TEXTS, st.integers(1, 300))
def test_every_vector_has_length_one(texts: list[str], dim: int) -> None:
    vectors = FakeEmbedder(dim).embed(texts).vectors
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


@given(TEXTS)
def test_a_vector_depends_on_its_text_alone(texts: list[str]) -> None:
    embedder = FakeEmbedder(32)
    together = embedder.embed(texts).vectors
    for text, vector in zip(texts, together, strict=True):
        assert embedder.embed([text]).vectors[0].tobytes() == vector.tobytes()


def test_every_process_gives_the_same_bits() -> None:
    here = FakeEmbedder(64).embed(["the mill by the river"]).vectors.tobytes().hex()
    program = (
        "from headrace.testing import FakeEmbedder;"
        "print(FakeEmbedder(64).embed(['the mill by the river']).vectors.tobytes().hex())"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == here


def test_texts_that_share_words_are_more_alike() -> None:
    query, near, related, far = (
        FakeEmbedder()
        .embed(
            [
                "When does the mill close in winter?",
                "In winter the mill closes at five.",
                "Winters are long here.",
                "Her passport number is 4711.",
            ]
        )
        .vectors
    )
    assert query @ near > query @ related > query @ far
    assert query @ near > 0.4
    assert abs(query @ far) < 0.25


def test_what_is_too_long_is_cut_and_said() -> None:
    embedder = FakeEmbedder(max_tokens=5)
    embedded = embedder.embed(["one two three four", "one two three", "one"])
    assert embedded.truncated == (0,)
    assert embedded.num_tokens == 5 + 5 + 3
    assert embedded.vectors[0].tobytes() == embedded.vectors[1].tobytes()


def test_identity_names_what_vectors_depend_on() -> None:
    identities = {
        FakeEmbedder(8).identity,
        FakeEmbedder(9).identity,
        FakeEmbedder(8, max_tokens=9).identity,
    }
    assert len(identities) == 3


@pytest.mark.parametrize("settings", [{"dim": 0}, {"max_tokens": 2}])
def test_sizes_that_make_no_sense_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        FakeEmbedder(**settings)
