"""Reads a safetensors file's header: where each tensor's bytes are. Trusts nothing.

    8 bytes, little-endian     the header's length
    the header                 JSON: {"NAME": {"dtype", "shape", "data_offsets": [begin, end]}, ...}
    the data                   tensors one after the other, without gaps

Only the header is read, never the weights. Every count, shape and offset is checked against the
bytes that are really there, and every error names the file and the field.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from headrace.errors import InvalidModelFile, ModelError

MAX_HEADER_BYTES = 1 << 24
"""The largest headers known have a tenth of that."""
MAX_DIMS = 8

_LENGTH_BYTES = 8
_FETCH_AGAIN = "the file is truncated or broken: fetch it again"
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor is; `offset` counts from the file's first byte."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """A file whose header holds together."""

    path: Path
    num_bytes: int
    tensors: Mapping[str, Tensor]


def read(path: Path) -> SafetensorsFile:
    """Read the header. Raises InvalidModelFile, and ModelError where the file cannot be read."""
    try:
        with path.open("rb") as stream:
            return _read(path, stream)
    except OSError as error:
        raise ModelError(f"{path.name}: cannot be read: {error.strerror or error}") from error


def _read(path: Path, stream: BinaryIO) -> SafetensorsFile:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InvalidModelFile(f"{path.name}: is no regular file")
    num_bytes = status.st_size
    length = _header_bytes(path, stream.read(_LENGTH_BYTES), num_bytes)
    header = stream.read(length)
    if len(header) != length:
        raise InvalidModelFile(f"{path.name}: header: {_FETCH_AGAIN}")
    entries = _entries(path, header)
    start = _LENGTH_BYTES + length
    tensors = {
        name: _tensor(path, name, entry, start, num_bytes - start)
        for name, entry in entries.items()
    }
    _check_places(path, tensors, start, num_bytes)
    return SafetensorsFile(path, num_bytes, MappingProxyType(tensors))


def _header_bytes(path: Path, head: bytes, num_bytes: int) -> int:
    if len(head) < _LENGTH_BYTES:
        raise InvalidModelFile(f"{path.name}: has {num_bytes} bytes; {_FETCH_AGAIN}")
    length = int.from_bytes(head, "little")
    if head.startswith(b"GGUF"):
        raise InvalidModelFile(f"{path.name}: is a GGUF file, not safetensors")
    if head.startswith(b"version "):
        raise InvalidModelFile(
            f"{path.name}: is a Git LFS pointer; fetch the file itself with `git lfs pull`"
        )
    if not 2 <= length <= min(MAX_HEADER_BYTES, num_bytes - _LENGTH_BYTES):
        raise InvalidModelFile(
            f"{path.name}: header: says it has {length:,} bytes, in a file of {num_bytes:,}; "
            "the file is broken or not safetensors"
        )
    return length


def _entries(path: Path, header: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(header.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InvalidModelFile(f"{path.name}: header: is not valid JSON: {error}") from None
    if not isinstance(entries, dict):
        raise InvalidModelFile(f"{path.name}: header: is not a JSON object")
    entries.pop("__metadata__", None)
    return entries


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} is there twice")
    return found


def _tensor(path: Path, name: str, entry: Any, start: int, num_data_bytes: int) -> Tensor:
    where = f"{path.name}: tensor {name[:200]!r}"
    if not isinstance(entry, dict):
        raise InvalidModelFile(f"{where}: is not an object")
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise InvalidModelFile(f"{where}: dtype: {str(dtype)[:40]!r} is not known")
    shape = _counts(f"{where}: shape", entry.get("shape"))
    if len(shape) > MAX_DIMS:
        raise InvalidModelFile(f"{where}: shape: has {len(shape)} dimensions, at most {MAX_DIMS}")
    offsets = _counts(f"{where}: data_offsets", entry.get("data_offsets"))
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= num_data_bytes:
        raise InvalidModelFile(
            f"{where}: data_offsets: {list(offsets)[:4]} lie outside the {num_data_bytes:,} bytes "
            f"of data; {_FETCH_AGAIN}"
        )
    begin, end = offsets
    needed = math.prod(shape) * _ITEM_BYTES[dtype]
    if needed != end - begin:
        raise InvalidModelFile(
            f"{where}: data_offsets: hold {end - begin:,} bytes, its shape needs {needed:,}"
        )
    return Tensor(name, dtype, shape, start + begin, needed)


def _counts(where: str, given: Any) -> tuple[int, ...]:
    if not isinstance(given, list):
        raise InvalidModelFile(f"{where}: is not a list")
    for number in given:
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 63:
            raise InvalidModelFile(f"{where}: {str(number)[:40]!r} is no size")
    return tuple(given)


def _check_places(path: Path, tensors: Mapping[str, Tensor], start: int, num_bytes: int) -> None:
    """Tensors follow one another: none lies in another, and no byte is nobody's."""
    at = start
    for tensor in sorted(tensors.values(), key=lambda each: (each.offset, each.num_bytes)):
        if tensor.offset != at:
            what = "overlaps another tensor" if tensor.offset < at else "leaves a gap before it"
            raise InvalidModelFile(
                f"{path.name}: tensor {tensor.name[:200]!r}: data_offsets: {what}"
            )
        at += tensor.num_bytes
    if at != num_bytes:
        raise InvalidModelFile(
            f"{path.name}: {num_bytes - at:,} bytes after the last tensor; {_FETCH_AGAIN}"
        )
