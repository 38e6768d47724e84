"""Reads a GGUF file's header: its metadata, and where each tensor's bytes are. Trusts nothing.

Only the header is read, never the weights. Each count, length, offset and size is checked against
the bytes that are really there before anything is allocated for it, and every error names the
file and the field.

Strings must be UTF-8, tokens too: the format says so, byte-level vocabularies spell their bytes as
printable characters, and SentencePiece ones as `<0x0A>`; other text means a broken file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from types import MappingProxyType
from typing import Any, TypeVar

from headrace.errors import InvalidModelFile, ModelNotFound, UnsupportedModel
from headrace.model.header.cursor import FETCH_AGAIN, U32, Cursor
from headrace.model.header.metadata import (
    Value,
    alignment_of,
    architecture_of,
    read_metadata,
    reject_split,
)
from headrace.model.header.tensors import (
    TensorInfo,
    place_tensors,
    read_tensor_entries,
    tensor_part,
)
from headrace.model.header.types import COMPUTABLE_TYPES, GGMLType

__all__ = [
    "COMPUTABLE_TYPES",
    "GGMLType",
    "GGUFFile",
    "TensorInfo",
    "Value",
    "read",
    "tensor_part",
]

_HEADER = Struct("<QQ")
_FOREIGN_MAGICS = {
    b"lmgg": "a GGML file from before GGUF",
    b"tjgg": "a GGJT file from before GGUF",
    b"fmgg": "a GGMF file from before GGUF",
    b"vers": "a Git LFS pointer instead of the model",
    b"<!DO": "a web page instead of the model",
    b"<htm": "a web page instead of the model",
    b"PK\x03\x04": "a zip archive or PyTorch checkpoint",
}
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

    def check_tensor(
        self, tensor: TensorInfo, shape: tuple[int, ...], types: tuple[GGMLType, ...]
    ) -> None:
        """Raises InvalidModelFile where it is not of that shape, UnsupportedModel where it is of
        none of these types."""
        if tensor.shape != shape:
            raise self.invalid(
                tensor_part(tensor.name),
                f"its shape is {tensor.shape}, the hyper-parameters ask for {shape}",
            )
        if tensor.type not in types:
            raise self.unsupported(
                tensor_part(tensor.name),
                f"type {tensor.type.name} is not supported here; "
                f"supported: {', '.join(known.name for known in types)}",
            )

    def read_tensor(self, tensor: TensorInfo) -> bytes:
        """The bytes of one tensor as the file stores them."""
        try:
            with self.path.open("rb") as file:
                file.seek(tensor.offset)
                data = file.read(tensor.num_bytes)
        except OSError as error:
            raise self.invalid(tensor_part(tensor.name), f"cannot be read: {error}") from error
        if len(data) != tensor.num_bytes:
            raise self.invalid(tensor_part(tensor.name), f"ends early; {FETCH_AGAIN}")
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
        cursor = Cursor(file, path, os.fstat(file.fileno()).st_size)
        version = _read_version(cursor)
        num_tensors, num_keys = cursor.unpack(_HEADER, "header")
        metadata = MappingProxyType(read_metadata(cursor, num_keys))
        alignment = alignment_of(cursor, metadata)
        architecture = architecture_of(cursor, metadata)
        reject_split(cursor, metadata)
        entries = read_tensor_entries(cursor, num_tensors)
    tensors = place_tensors(cursor, entries, alignment)
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


def _read_version(cursor: Cursor) -> int:
    if cursor.num_bytes < 8:
        raise cursor.invalid("magic", f"{cursor.num_bytes} bytes are no GGUF file; {FETCH_AGAIN}")
    magic = cursor.take(4, "magic")
    if magic != b"GGUF":
        guess = _FOREIGN_MAGICS.get(magic, f"{magic!r} where 'GGUF' should be")
        raise cursor.invalid("magic", f"not a GGUF file: {guess}")
    (version,) = cursor.unpack(U32, "version")
    if version in (2, 3):
        return int(version)
    if version and version & 0xFFFF == 0:
        raise cursor.unsupported("version", "a big-endian file; convert it to little-endian")
    raise cursor.unsupported(
        "version", f"GGUF version {version}; versions 2 and 3 are supported: convert the model anew"
    )
