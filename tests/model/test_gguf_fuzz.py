"""Whatever the bytes are: a described model or a HeadraceError, and memory like the file's."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.model import gguf
from headrace.model.architecture import describe
from headrace.model.roles import layout
from support import gguf_bytes as raw

SOUND = raw.tiny_llama()
HEADER_BYTES = len(SOUND) - 4 * (40 + 8 + 64 + 32 + 32 + 64 + 8 + 128 * 3 + 8 + 2)
HUGE = (2**64 - 1, 2**63, 2**62 + 1, 2**48, 2**32, 2**31, 2**24, 70_000)

fuzzed = settings(
    max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fuzzed.gguf"


def is_sound(path: Path, data: bytes) -> bool:
    """Whether `data` describes a model; anything but a HeadraceError otherwise goes through."""
    path.write_bytes(data)
    try:
        file = gguf.read(path)
        for tensor in file.tensors.values():
            assert tensor.offset >= 0
            assert tensor.offset + tensor.num_bytes <= len(data)
        layout(file, describe(file))
    except HeadraceError as error:
        assert str(path) in str(error)
        return False
    return True


def test_the_file_to_break_is_sound(path: Path) -> None:
    assert is_sound(path, SOUND)


def test_every_truncation_is_an_error(path: Path) -> None:
    assert not any(is_sound(path, SOUND[:length]) for length in range(len(SOUND)))


@fuzzed
@given(edits=st.lists(st.tuples(st.integers(0, HEADER_BYTES), st.integers(1, 255)), max_size=4))
def test_flipped_bytes(path: Path, edits: list[tuple[int, int]]) -> None:
    data = bytearray(SOUND)
    for position, flip in edits:
        data[position] ^= flip
    is_sound(path, bytes(data))


@fuzzed
@given(
    start=st.integers(0, HEADER_BYTES),
    stop=st.integers(0, HEADER_BYTES),
    insert=st.binary(max_size=40),
)
def test_cut_and_spliced(path: Path, start: int, stop: int, insert: bytes) -> None:
    is_sound(path, SOUND[:start] + insert + SOUND[stop:])


@fuzzed
@given(
    version=st.integers(2, 3),
    counts=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    tail=st.binary(),
)
def test_random_headers(path: Path, version: int, counts: tuple[int, int], tail: bytes) -> None:
    is_sound(path, b"GGUF" + struct.pack("<IQQ", version, *counts) + tail)


@fuzzed
@given(data=st.binary(max_size=200))
def test_random_bytes(path: Path, data: bytes) -> None:
    assert not is_sound(path, data)


VALUES = st.recursive(
    st.builds(
        lambda kind, data: (kind, data),
        st.integers(0, 14),
        st.binary(max_size=12) | st.text(max_size=4).map(raw.string),
    ),
    lambda inner: st.builds(
        lambda kind, count, items: (
            raw.ARRAY,
            struct.pack("<IQ", kind, count) + b"".join(data for _, data in items),
        ),
        st.integers(0, 14),
        st.sampled_from([0, 1, 2, 3, *HUGE]),
        st.lists(inner, max_size=3),
    ),
    max_leaves=8,
)


@fuzzed
@given(
    keys=st.lists(st.tuples(st.text(max_size=6) | st.just("general.alignment"), VALUES), max_size=4)
)
def test_random_values(path: Path, keys: list[tuple[str, tuple[int, bytes]]]) -> None:
    entries = [raw.key(name, kind, data) for name, (kind, data) in keys]
    assert not is_sound(path, raw.header([raw.ARCHITECTURE, *entries]))


@fuzzed
@given(
    tensors=st.lists(
        st.builds(
            raw.RawTensor,
            name=st.sampled_from(["a", "b", "c", "token_embd.weight"]),
            dims=st.lists(st.sampled_from([0, 1, 32, 256, *HUGE]), max_size=5),
            type_id=st.integers(0, 45),
            offset=st.sampled_from([0, 4, 32, 64, 2**64 - 32, 2**63]),
        ),
        max_size=3,
    )
)
def test_random_tensors(path: Path, tensors: list[raw.RawTensor]) -> None:
    assert not is_sound(path, raw.padded(raw.header([raw.ARCHITECTURE], tensors)) + bytes(512))


def test_huge_numbers_anywhere_take_no_memory(path: Path) -> None:
    """Every 8 bytes of the header replaced by huge numbers in turn: never more than a buffer."""
    tracemalloc.start()
    try:
        for position in range(4, HEADER_BYTES - 8):
            huge = struct.pack("<Q", HUGE[position % len(HUGE)])
            is_sound(path, SOUND[:position] + huge + SOUND[position + 8 :])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The reader's buffer is at most a megabyte here, and the file four kilobytes.
    assert peak < 2_000_000


def test_memory_follows_the_bytes_that_are_there(path: Path) -> None:
    """Half a million tokens cost their objects; a claim of half a million costs nothing."""
    token = raw.string("ab")
    for items, most in ((token * 200_000, 60_000_000), (token, 100_000)):
        value = struct.pack("<IQ", raw.STRING, 200_000) + items
        tracemalloc.start()
        is_sound(path, raw.header([raw.ARCHITECTURE, raw.key("t", raw.ARRAY, value)]))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < most
