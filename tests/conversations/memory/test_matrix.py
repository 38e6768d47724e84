"""Vectors as bytes: what is found is what the floats would find."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace import _native
from headrace.conversations.memory.matrix import ByteMatrix


def units(num: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((num, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_nearest_are_those_of_the_floats() -> None:
    vectors, queries = units(3000, 384), units(20, 384, seed=1)
    matrix = ByteMatrix(384)
    for start in range(0, 3000, 700):
        part = vectors[start : start + 700]
        matrix.add(np.arange(start, start + len(part)) + 10, part)
    for query in queries:
        exact = np.argsort(-(vectors @ query))[:20] + 10
        found = matrix.nearest(query, 40)
        assert len(found) == 40
        assert set(exact.tolist()) <= set(found)


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 9))
def test_what_is_removed_is_not_found_and_the_rest_is(removed: list[int], dim: int) -> None:
    vectors = units(41, dim)
    matrix = ByteMatrix(dim)
    matrix.add(np.arange(41), vectors)
    matrix.remove(removed)
    left = set(range(41)) - set(removed)
    assert len(matrix) == len(left)
    assert set(matrix.nearest(vectors[0], 100)) == left
    matrix.add(np.array([99]), vectors[:1])
    assert set(matrix.nearest(vectors[0], 100)) == left | {99}


def test_nothing_is_near_in_an_empty_one() -> None:
    assert ByteMatrix(8).nearest(units(1, 8)[0], 5) == []


def test_a_vector_of_zeros_is_near_to_nothing_and_harms_nobody() -> None:
    matrix = ByteMatrix(8)
    matrix.add(np.array([1, 2]), np.concatenate([np.zeros((1, 8), np.float32), units(1, 8)]))
    assert matrix.nearest(units(1, 8)[0], 2) == [2, 1]


def test_the_search_refuses_what_does_not_fit() -> None:
    rows, scales = np.ones((3, 8), np.int8), np.array([1, 3, 2], np.float32)
    assert _native.nearest(rows, scales, np.full(8, 127, np.int16), 2) == [1, 2]
    for x, other in (
        (np.ones(7, np.int16), scales),
        (np.ones(8, np.int16), scales[:2]),
        (np.full(8, 128, np.int16), scales),
    ):
        with pytest.raises(ValueError):
            _native.nearest(rows, other, x, 2)
