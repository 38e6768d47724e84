"""Reads a GGUF file's header: its metadata, and where each tensor's bytes are. Trusts nothing.

Only the header is read, never the weights. Each count, length, offset and size is checked against
the bytes that are really there before anything is allocated for it, and every error names the
file and the field. Reading is by plain reads, not `mmap`, so that a file which shrinks meanwhile
is an error and not a SIGBUS.

Strings must be UTF-8, tokens too: the format says so, byte-level vocabularies spell their bytes as
printable characters, and SentencePiece ones as `<0x0A>`; other text means a broken file.
"""

from __future__ import annotations

import itertools
import math
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from struct import Struct
from types import MappingProxyType
from typing import Any, BinaryIO, TypeAlias, TypeVar

from headrace.errors import InvalidModelFile, ModelNotFound, UnsupportedModel

Value: TypeAlias = "bool | int | float | str | tuple[Value, ...]"
"""A metadata value; arrays are tuples."""

MAX_ARRAY_ITEMS = 1 << 22
"""Most items in one metadata array; the largest vocabularies known have a quarter of that."""
MAX_NESTED_ITEMS = 1 << 16
MAX_NESTING = 4
MAX_STRING_BYTES = 1 << 24
MAX_NAME_BYTES = 65_535
"""Most bytes in a metadata key or a tensor's name; the format's own limit for keys."""
MAX_ENTRIES = 1 << 16
"""Most metadata keys, and most tensors, in one file."""
MAX_DIMS = 4
DEFAULT_ALIGNMENT = 32

_CHUNK_BYTES = 1 << 20
_FETCH_AGAIN = "the file is truncated or broken: fetch it again"
_U32 = Struct("<I")
_U64 = Struct("<Q")
_HEADER = Struct("<QQ")
_ARRAY = Struct("<IQ")
_TENSOR_END = Struct("<IQ")
# The least that one entry takes: an empty key, its type and one byte; a name, one dimension.
_MIN_KEY_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 8 + _TENSOR_END.size

_STRING_TYPE, _ARRAY_TYPE, _BOOL_TYPE = 8, 9, 7
_NUMBER_CODES = {
    **dict(enumerate("BbHhIif")),
    _BOOL_TYPE: "B",
    **dict(enumerate("Qqd", start=10)),
}
_FOREIGN_MAGICS = {
    b"lmgg": "a GGML file from before GGUF",
    b"tjgg": "a GGJT file from before GGUF",
    b"fmgg": "a GGMF file from before GGUF",
    b"vers": "a Git LFS pointer instead of the model",
    b"<!DO": "a web page instead of the model",
    b"<htm": "a web page instead of the model",
    b"PK\x03\x04": "a zip archive or PyTorch checkpoint",
}


class GGMLType(Enum):
    """How a tensor's numbers are stored: rows are cut into blocks of `block_size` numbers."""

    type_id: int
    block_size: int
    block_bytes: int

    F32 = (0, 1, 4)
    F16 = (1, 1, 2)
    Q4_0 = (2, 32, 18)
    Q4_1 = (3, 32, 20)
    Q5_0 = (6, 32, 22)
    Q5_1 = (7, 32, 24)
    Q8_0 = (8, 32, 34)
    Q8_1 = (9, 32, 40)
    Q2_K = (10, 256, 84)
    Q3_K = (11, 256, 110)
    Q4_K = (12, 256, 144)
    Q5_K = (13, 256, 176)
    Q6_K = (14, 256, 210)
    Q8_K = (15, 256, 292)
    IQ2_XXS = (16, 256, 66)
    IQ2_XS = (17, 256, 74)
    IQ3_XXS = (18, 256, 98)
    IQ1_S = (19, 256, 50)
    IQ4_NL = (20, 32, 18)
    IQ3_S = (21, 256, 110)
    IQ2_S = (22, 256, 82)
    IQ4_XS = (23, 256, 136)
    I8 = (24, 1, 1)
    I16 = (25, 1, 2)
    I32 = (26, 1, 4)
    I64 = (27, 1, 8)
    F64 = (28, 1, 8)
    IQ1_M = (29, 256, 56)
    BF16 = (30, 1, 2)
    TQ1_0 = (34, 256, 54)
    TQ2_0 = (35, 256, 66)
    MXFP4 = (39, 32, 17)
    NVFP4 = (40, 64, 36)
    Q1_0 = (41, 128, 18)

    def __init__(self, type_id: int, block_size: int, block_bytes: int) -> None:
        self.type_id = type_id
        self.block_size = block_size
        self.block_bytes = block_bytes


COMPUTABLE_TYPES = (
    GGMLType.F32,
    GGMLType.F16,
    GGMLType.BF16,
    GGMLType.Q4_0,
    GGMLType.Q4_1,
    GGMLType.Q5_0,
    GGMLType.Q5_1,
    GGMLType.Q8_0,
    GGMLType.Q4_K,
    GGMLType.Q5_K,
    GGMLType.Q6_K,
)
"""The types that the kernels compute with; a file may hold others and still be read here."""

_TYPES_BY_ID = {ggml_type.type_id: ggml_type for ggml_type in GGMLType}


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor is. `shape` is (rows, columns), slowest first; `offset` is from byte 0."""

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class GGUFFile:
    """A checked header. Every tensor's span lies inside the `num_bytes` of the file."""

    path: Path
    version: int
    architecture: str
    metadata: Mapping[str, Value] = field(repr=False)
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    alignment: int
    num_bytes: int

    def text(self, key: str) -> str | None:
        """A metadata string, None where there is no such key; InvalidModelFile on another type."""
        return self._typed(key, str, "a string")

    def integer(self, key: str) -> int | None:
        return self._typed(key, int, "a whole number")

    def number(self, key: str) -> float | None:
        value = self.metadata.get(key)
        return float(value) if type(value) is int else self._typed(key, float, "a number")

    def flag(self, key: str) -> bool | None:
        return self._typed(key, bool, "true or false")

    def array(self, key: str, item_type: type[_T]) -> tuple[_T, ...] | None:
        """A metadata array whose items all have `item_type`."""
        value = self._typed(key, tuple, "an array")
        if value is not None and any(type(item) is not item_type for item in value):
            raise self.invalid(key, f"every item must be of type {item_type.__name__}")
        return value

    def read_tensor(self, tensor: TensorInfo) -> bytes:
        """The bytes of one tensor as the file stores them."""
        try:
            with self.path.open("rb") as file:
                file.seek(tensor.offset)
                data = file.read(tensor.num_bytes)
        except OSError as error:
            raise self.invalid(tensor_part(tensor.name), f"cannot be read: {error}") from error
        if len(data) != tensor.num_bytes:
            raise self.invalid(tensor_part(tensor.name), f"ends early; {_FETCH_AGAIN}")
        return data

    def invalid(self, part: str, problem: str) -> InvalidModelFile:
        """The error that says this file's `part` (a key or a tensor) has a `problem`."""
        return InvalidModelFile(f"{self.path}: {part}: {problem}")

    def unsupported(self, part: str, problem: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self.path}: {part}: {problem}")

    def _typed(self, key: str, wanted: type[_T], description: str) -> _T | None:
        value: Any = self.metadata.get(key)
        # `type() is`, since a bool is an int to isinstance.
        if value is None or type(value) is wanted:
            return value
        raise self.invalid(key, f"must be {description}, not of type {type(value).__name__}")


def read(path: str | os.PathLike[str]) -> GGUFFile:
    """Read and check the header of the GGUF file at `path`.

    Raises ModelNotFound (no such file), InvalidModelFile (broken, truncated or hostile) or
    UnsupportedModel (another format version or byte order, one part of a split model, a tensor
    type that this version does not know).
    """
    path = Path(path)
    try:
        return _read(path)
    except FileNotFoundError as error:
        raise ModelNotFound(f"{path}: there is no such file") from error
    except OSError as error:
        raise InvalidModelFile(f"{path}: cannot be read: {error.strerror or error}") from error


def _read(path: Path) -> GGUFFile:
    _check_regular(path)
    with path.open("rb") as file:
        cursor = _Cursor(file, path, os.fstat(file.fileno()).st_size)
        version = _read_version(cursor)
        num_tensors, num_keys = cursor.unpack(_HEADER, "header")
        metadata = MappingProxyType(_read_metadata(cursor, num_keys))
        alignment = _alignment(cursor, metadata)
        architecture = _architecture(cursor, metadata)
        _reject_split(cursor, metadata)
        entries = _read_tensor_entries(cursor, num_tensors)
    tensors = _place_tensors(cursor, entries, alignment)
    return GGUFFile(
        path=path,
        version=version,
        architecture=architecture,
        metadata=metadata,
        tensors=MappingProxyType(tensors),
        alignment=alignment,
        num_bytes=cursor.num_bytes,
    )


def _check_regular(path: Path) -> None:
    """A named pipe would block in open(), so look first."""
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # a null byte in the path
        raise ModelNotFound(f"{str(path)!r}: {error}") from error
    if not stat.S_ISREG(mode):
        raise InvalidModelFile(f"{path}: is not a regular file; give the .gguf file itself")


class _Cursor:
    """Reads a file front to back and keeps the bytes so far: at most twice the header."""

    def __init__(self, file: BinaryIO, path: Path, num_bytes: int) -> None:
        self._file = file
        self._path = path
        self._data = b""
        self.position = 0
        self.num_bytes = num_bytes

    @property
    def num_left(self) -> int:
        return self.num_bytes - self.position

    def invalid(self, part: str, problem: str) -> InvalidModelFile:
        return InvalidModelFile(f"{self._path}: {part}: {problem}")

    def unsupported(self, part: str, problem: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self._path}: {part}: {problem}")

    def unpack(self, layout: Struct, part: str) -> tuple[Any, ...]:
        self._fill(layout.size, part)
        values = layout.unpack_from(self._data, self.position)
        self.position += layout.size
        return values

    def numbers(self, code: str, count: int, part: str) -> tuple[Any, ...]:
        return self.unpack(Struct(f"<{count}{code}"), part)

    def take(self, num_bytes: int, part: str) -> bytes:
        self._fill(num_bytes, part)
        start, self.position = self.position, self.position + num_bytes
        return self._data[start : self.position]

    def string(self, part: str, limit: int = MAX_STRING_BYTES) -> str:
        (num_bytes,) = self.unpack(_U64, part)
        self._check_length(num_bytes, part, limit)
        try:
            return self.take(num_bytes, part).decode()
        except UnicodeDecodeError as error:
            raise self.invalid(part, f"is not UTF-8 text: {error}") from error

    def strings(self, count: int, part: str) -> tuple[str, ...]:
        """`count` strings in a row: a vocabulary may have half a million, so decoded in bulk."""
        parts: list[bytes] = []
        while self._collect(parts, count) < count:
            # The next one is not wholly in the buffer, or not in the file; this tells which.
            item = f"{part}[{len(parts)}]"
            self._fill(_U64.size, item)
            (num_bytes,) = _U64.unpack_from(self._data, self.position)
            self._check_length(num_bytes, item, MAX_STRING_BYTES)
            self._fill(_U64.size + num_bytes, item)
        # A null byte cannot be part of a longer character, so the whole is UTF-8 if each one is.
        joined = b"\0".join(parts)
        try:
            text = joined.decode()
        except UnicodeDecodeError as error:
            index = joined.count(b"\0", 0, error.start)
            raise self.invalid(part, f"near item {index}: is not UTF-8 text: {error}") from error
        if text.count("\0") == len(parts) - 1:
            return tuple(text.split("\0"))
        return tuple(item.decode() for item in parts)

    def _collect(self, parts: list[bytes], count: int) -> int:
        """Append the strings that lie in the buffer; how many `parts` there are now."""
        data, start, end = self._data, self.position, len(self._data)
        length_at, append = _U64.unpack_from, parts.append
        for _ in range(count - len(parts)):
            text_at = start + 8
            if text_at > end:
                break
            stop = text_at + length_at(data, start)[0]
            if stop > end:
                break
            append(data[text_at:stop])
            start = stop
        self.position = start
        return len(parts)

    def _check_length(self, num_bytes: int, part: str, limit: int) -> None:
        if num_bytes > self.num_left:
            raise self.invalid(
                part,
                f"claims {num_bytes:,} bytes where the file has {self.num_left:,} left; "
                f"{_FETCH_AGAIN}",
            )
        if num_bytes > limit:
            raise self.invalid(part, f"is {num_bytes:,} bytes long; at most {limit:,} are read")

    def _fill(self, num_bytes: int, part: str) -> None:
        """Have the next `num_bytes` in the buffer, which grows by doubling."""
        end = self.position + num_bytes
        if end <= len(self._data):
            return
        if end <= self.num_bytes:
            target = min(max(end, 2 * len(self._data), _CHUNK_BYTES), self.num_bytes)
            self._data += self._file.read(target - len(self._data))
        if end > len(self._data):
            raise self.invalid(
                part,
                f"needs the bytes up to {end:,}, the file ends at {self.num_bytes:,}; "
                f"{_FETCH_AGAIN}",
            )


def _read_version(cursor: _Cursor) -> int:
    if cursor.num_bytes < 8:
        raise cursor.invalid("magic", f"{cursor.num_bytes} bytes are no GGUF file; {_FETCH_AGAIN}")
    magic = cursor.take(4, "magic")
    if magic != b"GGUF":
        guess = _FOREIGN_MAGICS.get(magic, f"{magic!r} where 'GGUF' should be")
        raise cursor.invalid("magic", f"not a GGUF file: {guess}")
    (version,) = cursor.unpack(_U32, "version")
    if version in (2, 3):
        return int(version)
    if version and version & 0xFFFF == 0:
        raise cursor.unsupported("version", "a big-endian file; convert it to little-endian")
    raise cursor.unsupported(
        "version", f"GGUF version {version}; versions 2 and 3 are supported: convert the model anew"
    )


def _read_metadata(cursor: _Cursor, num_keys: int) -> dict[str, Value]:
    _check_count(cursor, "metadata", num_keys, _MIN_KEY_BYTES, MAX_ENTRIES)
    metadata: dict[str, Value] = {}
    for index in range(num_keys):
        key = cursor.string(f"metadata key {index}", MAX_NAME_BYTES)
        if not key:
            raise cursor.invalid(f"metadata key {index}", "is empty")
        part = _shown(key)
        if key in metadata:
            raise cursor.invalid(part, "this key appears twice")
        (value_type,) = cursor.unpack(_U32, part)
        metadata[key] = _read_value(cursor, value_type, part, nesting=0)
    return metadata


def _read_value(cursor: _Cursor, value_type: int, part: str, nesting: int) -> Value:
    if value_type == _STRING_TYPE:
        return cursor.string(part)
    if value_type == _ARRAY_TYPE:
        return _read_array(cursor, part, nesting + 1)
    value: Value = _read_numbers(cursor, value_type, 1, part)[0]
    return value


def _read_array(cursor: _Cursor, part: str, nesting: int) -> tuple[Value, ...]:
    if nesting > MAX_NESTING:
        raise cursor.invalid(part, f"arrays inside arrays, more than {MAX_NESTING} deep")
    item_type, count = cursor.unpack(_ARRAY, part)
    if item_type == _ARRAY_TYPE:
        _check_count(cursor, part, count, _ARRAY.size, MAX_NESTED_ITEMS)
        return tuple(_read_array(cursor, f"{part}[{i}]", nesting + 1) for i in range(count))
    if item_type == _STRING_TYPE:
        _check_count(cursor, part, count, _U64.size)
        return cursor.strings(count, part)
    return _read_numbers(cursor, item_type, count, part)


def _read_numbers(cursor: _Cursor, value_type: int, count: int, part: str) -> tuple[Value, ...]:
    code = _NUMBER_CODES.get(value_type)
    if code is None:
        raise cursor.invalid(part, f"unknown value type {value_type}")
    _check_count(cursor, part, count, Struct(f"<{code}").size)
    values = cursor.numbers(code, count, part)
    if value_type != _BOOL_TYPE:
        return values
    if values and max(values) > 1:
        raise cursor.invalid(part, f"a boolean must be 0 or 1, not {max(values)}")
    return tuple(map(bool, values))


def _check_count(
    cursor: _Cursor, part: str, count: int, min_bytes: int, limit: int = MAX_ARRAY_ITEMS
) -> None:
    """Refuse a count that the bytes left could not hold, before anything is done for it."""
    if count * min_bytes > cursor.num_left:
        raise cursor.invalid(
            part,
            f"claims {count:,} items where the file has {cursor.num_left:,} bytes left; "
            f"{_FETCH_AGAIN}",
        )
    if count > limit:
        raise cursor.invalid(part, f"has {count:,} items; at most {limit:,} are read")


def _alignment(cursor: _Cursor, metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
        raise cursor.invalid(
            "general.alignment", f"must be a power of two from 8 upward, not {alignment!r}"
        )
    return alignment


def _architecture(cursor: _Cursor, metadata: Mapping[str, Value]) -> str:
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise cursor.invalid("general.architecture", "must name the model's architecture")
    return architecture


def _reject_split(cursor: _Cursor, metadata: Mapping[str, Value]) -> None:
    count = metadata.get("split.count", 0)
    if type(count) is not int:
        raise cursor.invalid("split.count", f"must be a whole number, not {count!r}")
    if count > 1:
        raise cursor.unsupported(
            "split.count",
            f"this is one of {count} parts of a model; merge them into one file first "
            "(llama-gguf-split --merge)",
        )


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


def _read_tensor_entries(cursor: _Cursor, num_tensors: int) -> list[_TensorEntry]:
    _check_count(cursor, "tensor list", num_tensors, _MIN_TENSOR_BYTES, MAX_ENTRIES)
    entries: dict[str, _TensorEntry] = {}
    for index in range(num_tensors):
        entry = _read_tensor_entry(cursor, index)
        if entry.name in entries:
            raise cursor.invalid(entry.part, "this name appears twice")
        entries[entry.name] = entry
    return list(entries.values())


def _read_tensor_entry(cursor: _Cursor, index: int) -> _TensorEntry:
    name = cursor.string(f"name of tensor {index}", MAX_NAME_BYTES)
    part = tensor_part(name)
    (num_dims,) = cursor.unpack(_U32, part)
    if not 1 <= num_dims <= MAX_DIMS:
        raise cursor.invalid(part, f"has {num_dims:,} dimensions; 1 to {MAX_DIMS} are possible")
    # The file has the fastest dimension first, we have it last.
    shape = cursor.numbers("Q", num_dims, part)[::-1]
    type_id, offset = cursor.unpack(_TENSOR_END, part)
    if 0 in shape:
        raise cursor.invalid(part, f"has an empty dimension: {shape}")
    ggml_type = _TYPES_BY_ID.get(type_id)
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


def _place_tensors(
    cursor: _Cursor, entries: list[_TensorEntry], alignment: int
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
                f"ends at byte {end:,}, the file at {cursor.num_bytes:,}; {_FETCH_AGAIN}",
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
    return f"tensor '{_shown(name)}'"


def _shown(name: str) -> str:
    """A name from the file made safe to print: no control characters, no endless ones."""
    plain = name.encode("unicode_escape").decode()
    return plain if len(plain) <= 80 else f"{plain[:77]}..."


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
