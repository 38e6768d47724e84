"""The GGUF reader: equal to the `gguf` package on sound files, a clear error on all others."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as gguf_package
import numpy as np
import pytest

from headrace.errors import HeadraceError, InvalidModelFile, ModelNotFound, UnsupportedModel
from headrace.model import gguf
from headrace.model.gguf import GGMLType
from headrace.model.header import cursor
from support import gguf_bytes as raw
from support.gguf_models import QUANTS, SHAPES, write_model

Writer = Callable[[bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    def write_file(data: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return write_file


def assert_same_as_package(path: Path) -> None:
    ours, theirs = gguf.read(path), gguf_package.GGUFReader(path)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert set(ours.metadata) == set(fields)
    for key, field in fields.items():
        contents = field.contents()
        assert ours.metadata[key] == (tuple(contents) if isinstance(contents, list) else contents)
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.type.type_id == int(tensor.tensor_type)
        assert info.shape == tuple(int(size) for size in reversed(tensor.shape))
        assert (info.offset, info.num_bytes) == (tensor.data_offset, tensor.n_bytes)


@pytest.mark.parametrize("quant", QUANTS)
def test_reads_what_the_gguf_package_reads(tmp_path: Path, quant: str) -> None:
    path = write_model(tmp_path / "model.gguf", SHAPES["llama-rope-factors"], quant)
    assert_same_as_package(path)
    ours, theirs = gguf.read(path), gguf_package.GGUFReader(path)
    for tensor in theirs.tensors:
        data = np.frombuffer(ours.read_tensor(ours.tensors[tensor.name]), np.uint8)
        assert np.array_equal(data, np.ascontiguousarray(tensor.data).view(np.uint8).ravel())


def test_reads_the_default_model(default_model_path: Path) -> None:
    assert_same_as_package(default_model_path)


def test_knows_every_type_and_its_size() -> None:
    theirs = {int(kind): sizes for kind, sizes in gguf_package.GGML_QUANT_SIZES.items()}
    ours = {kind.type_id: (kind.block_size, kind.block_bytes) for kind in GGMLType}
    assert {type_id: ours.get(type_id) for type_id in theirs} == theirs
    assert [kind.name for kind in gguf.COMPUTABLE_TYPES] == list(QUANTS)


VALUES: dict[int, object] = {
    raw.U8: 255,
    raw.I8: -128,
    raw.U16: 65_535,
    raw.I16: -32_768,
    raw.U32: 4_294_967_295,
    raw.I32: -2_147_483_648,
    raw.F32: 0.5,
    raw.BOOL: True,
    raw.STRING: "grüße\n\0",
    raw.U64: 2**64 - 1,
    raw.I64: -(2**63),
    raw.F64: 1e300,
}


@pytest.mark.parametrize("value_type", VALUES)
def test_every_value_type(write: Writer, value_type: int) -> None:
    value = VALUES[value_type]
    item = raw.scalar(value_type, value)
    keys = [
        raw.ARCHITECTURE,
        raw.key("one", value_type, item),
        raw.key("none", raw.ARRAY, raw.array(value_type, [])),
        raw.key("three", raw.ARRAY, raw.array(value_type, [item] * 3)),
        raw.text_key("last", "still in step"),
    ]
    metadata = gguf.read(write(raw.header(keys))).metadata
    assert metadata["one"] == value and type(metadata["one"]) is type(value)
    assert metadata["none"] == ()
    assert metadata["three"] == (value,) * 3
    assert metadata["last"] == "still in step"


def test_arrays_in_arrays(write: Writer) -> None:
    inner = raw.array(raw.U8, [b"\1", b"\2"])
    outer = raw.array(raw.ARRAY, [inner, raw.array(raw.STRING, [raw.string("x")])])
    nested = gguf.read(write(raw.header([raw.ARCHITECTURE, raw.key("a", raw.ARRAY, outer)])))
    assert nested.metadata["a"] == ((1, 2), ("x",))


@pytest.mark.parametrize("tokens", [[""], ["", ""], ["\0", "a"], ["a\0b"], ["\n", "", "é", "🦙"]])
def test_odd_tokens_stay_apart(write: Writer, tokens: list[str]) -> None:
    items = raw.array(raw.STRING, [raw.string(token) for token in tokens])
    keys = [raw.ARCHITECTURE, raw.key("tokens", raw.ARRAY, items)]
    assert gguf.read(write(raw.header(keys))).metadata["tokens"] == tuple(tokens)


def test_a_header_longer_than_the_buffer(
    write: Writer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = write_model(tmp_path / "model.gguf", SHAPES["qwen2"], "Q8_0")
    whole = gguf.read(path)
    monkeypatch.setattr(cursor, "_CHUNK_BYTES", 5)
    piecemeal = gguf.read(path)
    assert piecemeal.metadata == whole.metadata
    assert piecemeal.tensors == whole.tensors


def test_only_the_header_is_read(tmp_path: Path) -> None:
    """A model of many gigabytes costs no more than its header; here the weights are a hole."""
    path = tmp_path / "sparse.gguf"
    rows = 1 << 22
    path.write_bytes(
        raw.header([raw.ARCHITECTURE], [raw.RawTensor("t", (1024, rows), GGMLType.F32.type_id, 0)])
    )
    os.truncate(path, (1 << 34) + 4096)
    assert gguf.read(path).tensors["t"].num_bytes == 1 << 34


def test_version_2_and_another_alignment(write: Writer) -> None:
    keys = [raw.ARCHITECTURE, raw.key("general.alignment", raw.U32, raw.scalar(raw.U32, 64))]
    tensors = [raw.RawTensor("a", (3,), 0, 0), raw.RawTensor("b", (1, 2), 0, 64)]
    data = raw.padded(raw.header(keys, tensors, version=2), 64) + bytes(64 + 8)
    file = gguf.read(write(data))
    assert (file.version, file.alignment, file.num_bytes) == (2, 64, len(data))
    assert file.tensors["b"].shape == (2, 1)
    assert file.tensors["b"].offset == file.tensors["a"].offset + 64 == len(data) - 8


def tensor_file(*tensors: raw.RawTensor, num_data_bytes: int = 4096, **options: Any) -> bytes:
    keys = options.pop("keys", [raw.ARCHITECTURE])
    return raw.padded(raw.header(keys, tensors, **options)) + bytes(num_data_bytes)


def value_file(value_type: int, value: bytes) -> bytes:
    return raw.header([raw.ARCHITECTURE, raw.key("some.key", value_type, value)])


def strings_claiming(count: int) -> bytes:
    return struct.pack("<IQ", raw.STRING, count)


def nest(depth: int) -> bytes:
    value = raw.array(raw.U8, [])
    for _ in range(depth - 1):
        value = raw.array(raw.ARRAY, [value])
    return value


TENSOR = raw.RawTensor("t", (32, 2), GGMLType.Q8_0.type_id, 0)
SPLIT = raw.key("split.count", raw.U16, raw.scalar(raw.U16, 3))
ALIGNMENT_24 = raw.key("general.alignment", raw.U32, raw.scalar(raw.U32, 24))
ALIGNMENT_TEXT = raw.text_key("general.alignment", "32")

INVALID = {
    "empty": (b"", "magic"),
    "short": (b"GGUF\3\0\0", "magic"),
    "other magic": (b"\x7fELF" + bytes(60), "magic: not a GGUF file"),
    "before GGUF": (b"tjgg" + bytes(60), "magic: not a GGUF file: a GGJT file from before"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
    "web page": (b"<!DOCTYPE html><html></html>", "a web page"),
    "no counts": (b"GGUF\3\0\0\0", "header"),
    "absurd keys": (raw.header([raw.ARCHITECTURE], num_keys=2**63), "metadata: claims"),
    "too many keys": (
        raw.header([raw.ARCHITECTURE], num_keys=70_000) + bytes(2_000_000),
        "metadata: has 70,000",
    ),
    "absurd tensors": (raw.header([raw.ARCHITECTURE], num_tensors=2**62), "tensor list: claims"),
    "too many tensors": (
        raw.header([raw.ARCHITECTURE], num_tensors=70_000) + bytes(4_000_000),
        "tensor list: has 70,000",
    ),
    "no architecture": (raw.header([raw.text_key("a", "b")]), "general.architecture"),
    "architecture 7": (
        raw.header([raw.key("general.architecture", raw.U32, raw.scalar(raw.U32, 7))]),
        "general.architecture",
    ),
    "empty key": (raw.header([raw.text_key("", "b")]), "metadata key 0: is empty"),
    "key is not UTF-8": (
        raw.header([raw.key(b"\xff", raw.BOOL, b"\1")]),
        "metadata key 0: is not UTF-8",
    ),
    "key too long": (raw.header([raw.text_key("k" * 65_536, "b")]), "metadata key 0: is 65,536"),
    "key twice": (raw.header([raw.ARCHITECTURE] * 2), "general.architecture: this key appears"),
    "value type": (value_file(13, b""), "some.key: unknown value type 13"),
    "item type": (value_file(raw.ARRAY, struct.pack("<IQ", 99, 0)), "some.key: unknown value type"),
    "boolean": (value_file(raw.BOOL, b"\2"), "some.key: a boolean must be 0 or 1"),
    "booleans": (value_file(raw.ARRAY, raw.array(raw.BOOL, [b"\1", b"\3"])), "some.key: a boolean"),
    "string is not UTF-8": (value_file(raw.STRING, raw.string(b"\xc3(")), "some.key: is not UTF-8"),
    "token is not UTF-8": (
        value_file(raw.ARRAY, raw.array(raw.STRING, [raw.string("ok"), raw.string(b"\xe2\x82")])),
        "some.key: near item 1: is not UTF-8",
    ),
    "string past the end": (value_file(raw.STRING, struct.pack("<Q", 9)), "some.key: claims 9"),
    "string of 2**64": (value_file(raw.STRING, b"\xff" * 8), "some.key: claims"),
    "string too long": (
        value_file(raw.STRING, struct.pack("<Q", 1 << 25)) + bytes(1 << 25),
        "some.key: is 33,554,432 bytes long",
    ),
    "token past the end": (
        value_file(raw.ARRAY, raw.array(raw.STRING, [raw.string("a"), b"\xff" * 8])),
        r"some.key\[1\]: claims",
    ),
    "numbers past the end": (
        value_file(raw.ARRAY, struct.pack("<IQ", raw.F64, 2**61)),
        "some.key: claims 2,305,843,009,213,693,952",
    ),
    "strings past the end": (value_file(raw.ARRAY, strings_claiming(2**40)), "some.key: claims"),
    "too many strings": (
        value_file(raw.ARRAY, strings_claiming((1 << 22) + 1)) + bytes(8 << 22) + bytes(8),
        "some.key: has 4,194,305",
    ),
    "too deep": (value_file(raw.ARRAY, nest(5)), "arrays inside arrays"),
    "far too deep": (value_file(raw.ARRAY, nest(5_000)), "arrays inside arrays"),
    "too many arrays": (
        value_file(raw.ARRAY, raw.array(raw.ARRAY, [raw.array(raw.U8, [])] * 65_537)),
        "some.key: has 65,537",
    ),
    "alignment 24": (tensor_file(TENSOR, keys=[raw.ARCHITECTURE, ALIGNMENT_24]), "general.align"),
    "alignment text": (tensor_file(keys=[raw.ARCHITECTURE, ALIGNMENT_TEXT]), "general.alignment"),
    "name is not UTF-8": (
        tensor_file(raw.RawTensor(b"\xff", (32,), 0, 0)),
        "name of tensor 0: is not UTF-8",
    ),
    "tensor twice": (
        tensor_file(TENSOR, raw.RawTensor("t", (32,), 0, 128)),
        "tensor 't': this name appears twice",
    ),
    "no dimensions": (tensor_file(raw.RawTensor("t", (), 0, 0)), "tensor 't': has 0 dimensions"),
    "five dimensions": (
        tensor_file(raw.RawTensor("t", (1,) * 5, 0, 0)),
        "tensor 't': has 5 dimensions",
    ),
    "zero dimension": (tensor_file(raw.RawTensor("t", (32, 0), 0, 0)), "tensor 't': has an empty"),
    "partial block": (
        tensor_file(raw.RawTensor("t", (48, 2), GGMLType.Q8_0.type_id, 0)),
        "tensor 't': rows of 48 are no multiple of Q8_0's block of 32",
    ),
    "misaligned": (tensor_file(raw.RawTensor("t", (32,), 0, 4)), "tensor 't': offset 4 is no"),
    "one byte short": (
        tensor_file(raw.RawTensor("t", (32,), 0, 0), num_data_bytes=127),
        "tensor 't': ends at byte",
    ),
    "offset past the end": (
        tensor_file(raw.RawTensor("t", (1,), 0, 2**64 - 32)),
        "tensor 't': ends at byte",
    ),
    "product of 2**256": (
        tensor_file(raw.RawTensor("t", (2**63,) * 4, 0, 0)),
        "tensor 't': ends at byte",
    ),
    "overlap": (
        tensor_file(raw.RawTensor("a", (32,), 0, 0), raw.RawTensor("b", (32,), 0, 96)),
        "tensor 'b': overlaps tensor 'a'",
    ),
    "same place": (
        tensor_file(raw.RawTensor("a", (32,), 0, 32), raw.RawTensor("b", (1,), 0, 32)),
        "overlaps tensor",
    ),
}
UNSUPPORTED = {
    "version 1": (raw.header([], version=1), "version: GGUF version 1;"),
    "version 4": (raw.header([], version=4), "version: GGUF version 4;"),
    "version 0": (raw.header([], version=0), "version: GGUF version 0;"),
    "big-endian": (raw.header([], version=3 << 24), "version: a big-endian file"),
    "split": (raw.header([raw.ARCHITECTURE, SPLIT]), "split.count: this is one of 3 parts"),
    "unknown type": (
        tensor_file(raw.RawTensor("t", (32,), 1000, 0)),
        "tensor 't': unknown quantization type 1000; supported: F32, F16",
    ),
    "removed type": (tensor_file(raw.RawTensor("t", (32,), 4, 0)), "unknown quantization type 4"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_files(write: Writer, name: str) -> None:
    data, message = INVALID[name]
    path = write(data)
    with pytest.raises(InvalidModelFile, match=message) as caught:
        gguf.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_files(write: Writer, name: str) -> None:
    data, message = UNSUPPORTED[name]
    path = write(data)
    with pytest.raises(UnsupportedModel, match=message) as caught:
        gguf.read(path)
    assert str(path) in str(caught.value)


def test_neighbours_may_touch_and_come_in_any_order(write: Writer) -> None:
    tensors = [raw.RawTensor("b", (8,), 0, 32), raw.RawTensor("a", (8,), 0, 0)]
    assert set(gguf.read(write(tensor_file(*tensors, num_data_bytes=64))).tensors) == {"a", "b"}


def test_one_part_is_no_split(write: Writer) -> None:
    keys = [raw.ARCHITECTURE, raw.key("split.count", raw.U16, raw.scalar(raw.U16, 1))]
    assert gguf.read(write(raw.header(keys))).architecture == "llama"


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such file"):
        gguf.read(tmp_path / "missing.gguf")
    with pytest.raises(ModelNotFound):
        gguf.read("a\0b.gguf")
    with pytest.raises(InvalidModelFile, match="not a regular file"):
        gguf.read(tmp_path)
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    with pytest.raises(InvalidModelFile, match="not a regular file"):
        gguf.read(pipe)


def test_a_file_that_cannot_be_opened(write: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(raw.tiny_llama())

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InvalidModelFile, match="cannot be read: Permission denied"):
        gguf.read(path)


def test_a_file_that_shrinks_after_the_header(write: Writer) -> None:
    path = write(raw.tiny_llama())
    file = gguf.read(path)
    last = max(file.tensors.values(), key=lambda tensor: tensor.offset)
    os.truncate(path, last.offset)
    with pytest.raises(InvalidModelFile, match=f"tensor '{last.name}': ends early"):
        file.read_tensor(last)
    path.unlink()
    with pytest.raises(InvalidModelFile, match="cannot be read"):
        file.read_tensor(last)


def test_names_are_printed_without_control_characters(write: Writer) -> None:
    tensor = raw.RawTensor("\x1b[2Jevil" + "x" * 500, (0,), 0, 0)
    with pytest.raises(InvalidModelFile) as caught:
        gguf.read(write(tensor_file(tensor)))
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 400


def test_typed_getters(write: Writer) -> None:
    keys = [
        raw.ARCHITECTURE,
        raw.key("int", raw.U64, raw.scalar(raw.U64, 5)),
        raw.key("float", raw.F64, raw.scalar(raw.F64, 0.25)),
        raw.key("flag", raw.BOOL, raw.scalar(raw.BOOL, False)),
        raw.key("ints", raw.ARRAY, raw.array(raw.I32, [raw.scalar(raw.I32, -1)])),
    ]
    file = gguf.read(write(raw.header(keys)))
    assert file.text("general.architecture") == "llama"
    assert (file.integer("int"), file.number("int"), file.number("float")) == (5, 5.0, 0.25)
    assert file.flag("flag") is False
    assert file.array("ints", int) == (-1,)
    missing = (file.text("x"), file.integer("x"), file.number("x"), file.flag("x"))
    assert missing == (None,) * 4 and file.array("x", str) is None
    for wrong in (
        lambda: file.text("int"),
        lambda: file.integer("flag"),
        lambda: file.integer("float"),
        lambda: file.number("general.architecture"),
        lambda: file.flag("int"),
        lambda: file.array("ints", str),
        lambda: file.array("int", int),
    ):
        with pytest.raises(InvalidModelFile, match=r"model\.gguf: (int|float|flag|general)"):
            wrong()


def test_the_header_cannot_be_changed(write: Writer) -> None:
    file = gguf.read(write(raw.tiny_llama()))
    with pytest.raises(TypeError):
        file.metadata["general.architecture"] = "qwen2"  # type: ignore[index]
    with pytest.raises(TypeError):
        file.tensors["x"] = file.tensors["token_embd.weight"]  # type: ignore[index]


def test_errors_are_of_the_tree() -> None:
    assert issubclass(InvalidModelFile, HeadraceError)
    assert issubclass(UnsupportedModel, HeadraceError)
