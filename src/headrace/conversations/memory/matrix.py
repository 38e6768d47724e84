"""Vectors as bytes in one block of memory, and which of them are nearest to a question.

A memory of 100,000 vectors of 384 floats is 154 MB, which takes a question longer to read than to
compute with. As bytes they are 38 MB, and close enough to find some more than are wanted; these are
then compared as the floats that they are. A vector of length 1 loses about 0.0005 of a dot product.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from headrace import _native

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FIRST_ROWS = 64


class ByteMatrix:
    """Rows that grow at the end, each with a key. Not for several threads at once."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._rows = np.zeros((_FIRST_ROWS, dim), np.int8)
        self._scales = np.zeros(_FIRST_ROWS, np.float32)
        self._keys = np.zeros(_FIRST_ROWS, np.int64)
        self._num_rows = 0

    def __len__(self) -> int:
        return self._num_rows

    @property
    def num_bytes(self) -> int:
        return self._rows.nbytes + self._scales.nbytes + self._keys.nbytes

    def add(self, keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Vectors: shape (number of keys, `dim`), finite."""
        start, end = self._num_rows, self._num_rows + len(keys)
        self._reserve(end)
        self._rows[start:end], self._scales[start:end] = _as_bytes(vectors)
        self._keys[start:end] = keys
        self._num_rows = end

    def remove(self, keys: Collection[int]) -> None:
        """Those that are there; the others close up."""
        stays = np.isin(self._keys[: self._num_rows], list(keys), invert=True)
        num_left = int(stays.sum())
        if num_left == self._num_rows:
            return
        for array in (self._rows, self._scales, self._keys):
            array[:num_left] = array[: self._num_rows][stays]
            array[num_left : self._num_rows] = 0
        self._num_rows = num_left

    def nearest(self, vector: NDArray[np.float32], limit: int) -> list[int]:
        """The keys of the `limit` rows whose dot product with `vector` is about the greatest, the
        best first."""
        num_rows = self._num_rows
        if not num_rows or limit < 1:
            return []
        query = _as_bytes(vector[None])[0][0].astype(np.int16)
        best = _native.nearest(self._rows[:num_rows], self._scales[:num_rows], query, limit)
        return [int(key) for key in self._keys[best]]

    def _reserve(self, num_rows: int) -> None:
        if num_rows <= len(self._rows):
            return
        size = max(num_rows, len(self._rows) + len(self._rows) // 4)
        for name in ("_rows", "_scales", "_keys"):
            old = getattr(self, name)
            new = np.zeros((size, *old.shape[1:]), old.dtype)
            new[: self._num_rows] = old[: self._num_rows]
            setattr(self, name, new)


def _as_bytes(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Bytes in [-127, 127], and what each row has to be multiplied by."""
    scales = np.abs(vectors).max(axis=1, initial=0.0).astype(np.float32) / np.float32(127)
    scales[scales == 0] = 1
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales
