"""The tensors of a file: where each one's bytes are, inside the file and beside each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from struct import Struct

from headrace.model.header.cursor import (
    FETCH_AGAIN,
    MAX_ENTRIES,
    MAX_NAME_BYTES,
    U32,
    Cursor,
    check_count,
    shown,
)
from headrace.model.header.types import COMPUTABLE_TYPES, TYPES_BY_ID, GGMLType

MAX_DIMS = 4

_TENSOR_END = Struct("<IQ")
# The least that an entry takes: a name, one dimension.
_MIN_TENSOR_BYTES = 8 + 4 + 8 + _TENSOR_END.size


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor is. `shape` is (rows, columns), slowest first; `offset` is from byte 0."""

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class _TensorEntry:
    """A tensor as the header states it: `offset` is from the start of the data section."""

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    offset: int

    @property
    def part(self) -> str:
        return tensor_part(self.name)

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) // self.type.block_size * self.type.block_bytes


def read_tensor_entries(cursor: Cursor, num_tensors: int) -> list[_TensorEntry]:
    check_count(cursor, "tensor list", num_tensors, _MIN_TENSOR_BYTES, MAX_ENTRIES)
    entries: dict[str, _TensorEntry] = {}
    for index in range(num_tensors):
        entry = _read_tensor_entry(cursor, index)
        if entry.name in entries:
            raise cursor.invalid(entry.part, "this name appears twice")
        entries[entry.name] = entry
    return list(entries.values())


def _read_tensor_entry(cursor: Cursor, index: int) -> _TensorEntry:
    name = cursor.string(f"name of tensor {index}", MAX_NAME_BYTES)
    part = tensor_part(name)
    (num_dims,) = cursor.unpack(U32, part)
    if not 1 <= num_dims <= MAX_DIMS:
        raise cursor.invalid(part, f"has {num_dims:,} dimensions; 1 to {MAX_DIMS} are possible")
    # The file has the fastest dimension first, we have it last.
    shape = cursor.numbers("Q", num_dims, part)[::-1]
    type_id, offset = cursor.unpack(_TENSOR_END, part)
    if 0 in shape:
        raise cursor.invalid(part, f"has an empty dimension: {shape}")
    ggml_type = TYPES_BY_ID.get(type_id)
    if ggml_type is None:
        known = ", ".join(known_type.name for known_type in COMPUTABLE_TYPES)
        raise cursor.unsupported(part, f"unknown quantization type {type_id}; supported: {known}")
    if shape[-1] % ggml_type.block_size:
        raise cursor.invalid(
            part,
            f"rows of {shape[-1]:,} are no multiple of {ggml_type.name}'s block of "
            f"{ggml_type.block_size}",
        )
    return _TensorEntry(name, ggml_type, shape, offset)


def place_tensors(
    cursor: Cursor, entries: list[_TensorEntry], alignment: int
) -> dict[str, TensorInfo]:
    data_at = _aligned(cursor.position, alignment)
    tensors = {}
    for entry in entries:
        start, end = data_at + entry.offset, data_at + entry.offset + entry.num_bytes
        if entry.offset % alignment:
            raise cursor.invalid(
                entry.part, f"offset {entry.offset:,} is no multiple of the alignment {alignment}"
            )
        if end > cursor.num_bytes:
            raise cursor.invalid(
                entry.part,
                f"ends at byte {end:,}, the file at {cursor.num_bytes:,}; {FETCH_AGAIN}",
            )
        tensors[entry.name] = TensorInfo(
            entry.name, entry.type, entry.shape, start, entry.num_bytes
        )
    for first, second in _neighbours(tensors):
        if first.offset + first.num_bytes > second.offset:
            raise cursor.invalid(tensor_part(second.name), f"overlaps {tensor_part(first.name)}")
    return tensors


def _neighbours(tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[TensorInfo, TensorInfo]]:
    return itertools.pairwise(sorted(tensors.values(), key=lambda tensor: tensor.offset))


def tensor_part(name: str) -> str:
    """How errors call a tensor."""
    return f"tensor '{shown(name)}'"


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
