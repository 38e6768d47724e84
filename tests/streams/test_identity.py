"""Where a stream may go on, and where not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.engine.engine import Engine
from headrace.streams import identity
from headrace.streams.identity import differences, identity_of, same_identity
from headrace.testing import FakeModel, ManualEngine
from support.gguf_models import SHAPES, write_model


def of_file(path: Path | None, name: str = "fake") -> ManualEngine:
    model = FakeModel()
    model._spec = replace(model.spec, path=path, identity=name)
    return ManualEngine(model)


def test_the_same(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    kept = json.loads(json.dumps(identity_of(of_file(path), has_grammar=True)))
    assert same_identity(kept, of_file(path))


def test_another_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    before = identity_of(of_file(path), has_grammar=False)
    path.write_bytes(b"Weights")
    assert differences(before, of_file(path)) == ["the model's file"]
    assert not same_identity(before, of_file(None))


def test_other_numerics() -> None:
    before = identity_of(of_file(None, "a/kv-f16/numerics-1"), has_grammar=False)
    assert differences(before, of_file(None, "a/kv-f16/numerics-2")) == [
        "the model or its numerics"
    ]


def test_another_grammar_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with_grammar = identity_of(of_file(None), has_grammar=True)
    without = identity_of(of_file(None), has_grammar=False)
    monkeypatch.setattr(identity, "version", lambda _: "99.0")
    assert differences(with_grammar, of_file(None)) == ["the grammar library, llguidance"]
    assert same_identity(without, of_file(None))


def test_what_a_later_version_asks_for() -> None:
    before = {**identity_of(of_file(None), has_grammar=False), "weather": "rain"}
    assert differences(before, of_file(None)) == ["weather"]


def test_threads_and_instruction_sets_do_not_matter(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.gguf", SHAPES["llama-smol"], "Q4_0")
    with Engine.load(path, threads=1, isa="portable") as first:
        before = identity_of(first, has_grammar=False)
    assert len(before["sha256"]) == 64
    with Engine.load(path, threads=2) as second:
        assert same_identity(before, second)
