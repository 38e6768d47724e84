from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from headrace.errors import HeadraceError, InvalidModelFile, ModelError
from headrace.model.embedding import safetensors
from support.embedding_models import write_safetensors


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_file_that_the_library_wrote(tmp_path: Path) -> None:
    arrays = {
        "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.array([1.5, 2.5], np.float16),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(7, np.int64),
    }
    path = tmp_path / "model.safetensors"
    save_file(arrays, path, metadata={"format": "np"})
    file = safetensors.read(path)
    assert set(file.tensors) == set(arrays)
    raw = path.read_bytes()
    for name, array in arrays.items():
        tensor = file.tensors[name]
        assert tensor.shape == array.shape
        assert raw[tensor.offset : tensor.offset + tensor.num_bytes] == array.tobytes()


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        (b"{ ", b"", "header: is not valid JSON"),
        (b"[[[[]", b"", "header: is not valid JSON"),
        (b"[" * 5000, b"", "header: is not valid JSON"),
        (b"\xff\xff", b"", "header: is not valid JSON"),
        (b'{"a":1,"a":2}', b"", "'a' is there twice"),
        ([], b"", "header: is not a JSON object"),
        ({"a": 1}, b"", "tensor 'a': is not an object"),
        ({"a": {}}, b"", "tensor 'a': dtype: 'None' is not known"),
        ({"a": entry(dtype="F33")}, bytes(8), "tensor 'a': dtype: 'F33' is not known"),
        ({"a": entry(dtype=["F32"])}, bytes(8), "tensor 'a': dtype"),
        ({"a": entry(shape=2)}, bytes(8), "tensor 'a': shape: is not a list"),
        ({"a": entry(shape=[-2])}, bytes(8), "tensor 'a': shape: '-2' is no size"),
        ({"a": entry(shape=[2.0])}, bytes(8), "tensor 'a': shape: '2.0' is no size"),
        ({"a": entry(shape=[True])}, bytes(8), "tensor 'a': shape: 'True' is no size"),
        ({"a": entry(shape=[1 << 63])}, bytes(8), "tensor 'a': shape"),
        ({"a": entry(shape=[1 << 62, 4])}, bytes(8), "tensor 'a': data_offsets: hold 8 bytes"),
        ({"a": entry(shape=[1] * 9)}, bytes(8), "tensor 'a': shape: has 9 dimensions"),
        ({"a": entry(offsets=[0])}, bytes(8), "tensor 'a': data_offsets"),
        ({"a": entry(offsets=[8, 0])}, bytes(8), "tensor 'a': data_offsets"),
        ({"a": entry(offsets=[0, 9])}, bytes(8), "lie outside the 8 bytes of data"),
        ({"a": entry(offsets=[0, 4])}, bytes(4), "hold 4 bytes, its shape needs 8"),
        ({"a": entry(), "b": entry()}, bytes(8), "overlaps another tensor"),
        ({"a": entry(), "b": entry(offsets=[9, 17])}, bytes(17), "tensor 'b'.*leaves a gap"),
        ({"a": entry()}, bytes(10), "2 bytes after the last tensor"),
    ],
)
def test_what_is_broken_is_named(tmp_path: Path, header: Any, data: bytes, said: str) -> None:
    path = write(tmp_path / "weights.safetensors", header, data)
    with pytest.raises(InvalidModelFile, match=said) as raised:
        safetensors.read(path)
    assert raised.value.message.startswith("weights.safetensors: ")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "has 0 bytes"),
        (b"1234567", "has 7 bytes"),
        (b"GGUF" + bytes(60), "is a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ((1 << 63).to_bytes(8, "little") + b"{}", "header: says it has"),
        ((3).to_bytes(8, "little") + b"{}", "header: says it has 3 bytes, in a file of 10"),
        (bytes(8) + b"{}", "header: says it has 0 bytes"),
        (b"<!DOCTYPE html><html></html>", "not safetensors"),
    ],
)
def test_what_is_no_such_file(tmp_path: Path, raw: bytes, said: str) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(raw)
    with pytest.raises(InvalidModelFile, match=said):
        safetensors.read(path)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        safetensors.read(tmp_path / "nothing")
    with pytest.raises(ModelError, match="cannot be read"):
        safetensors.read(tmp_path)


@given(cut=st.integers(0, 400), flips=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255))))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_a_broken_file_is_an_error_or_stays_within_its_bytes(
    tmp_path: Path, cut: int, flips: list[tuple[int, int]]
) -> None:
    path = tmp_path / "weights.safetensors"
    write_safetensors(path, {"a": ("F32", (4,), bytes(16)), "b": ("F16", (2, 3), bytes(12))})
    raw = bytearray(path.read_bytes())[: cut if cut < 300 else None]
    for at, value in flips:
        if at < len(raw):
            raw[at] = value
    path.write_bytes(raw)
    try:
        file = safetensors.read(path)
    except HeadraceError:
        return
    for tensor in file.tensors.values():
        assert 0 <= tensor.offset <= tensor.offset + tensor.num_bytes <= len(raw)
