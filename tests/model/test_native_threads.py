"""Threads that call a model at once take turns: nothing crashes, and nothing mixes.

The engine calls from one thread; this is what happens when something else does not. Each test runs
in a process of its own, since a race may end it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.gguf_models import ModelShape, write_model

_SCRIPT = """
import sys, threading
from array import array
from headrace.errors import ModelError
from headrace.model import native
from headrace.model.interface import SampleRow, SamplingSettings, Span

def ids(values):
    return array("i", values)

def feed(model, seed, banks):
    tokens = [(seed + 7 * i) % 300 for i in range(64)]
    for start in range(0, 63, 21):
        model.step([Span(ids(tokens[start : start + 21]), start, ids(banks), 1)])

def next_logits(model, banks):
    model.step([Span(ids([5]), 63, ids(banks), 1)])
    return model.logits(0).tobytes()

def together(*bodies):
    threads = [threading.Thread(target=body) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

model = native.load(sys.argv[1], threads=2)
model.allocate(16)
sampler = model.make_sampler(SamplingSettings(temperature=1.0))
sys.setswitchinterval(1e-5)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = ModelShape(hidden_size=128, vocab_size=300, num_layers=4)
    return write_model(tmp_path_factory.mktemp("threads") / "tiny.gguf", shape, "Q8_0")


def run(path: Path, body: str) -> None:
    process = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", _SCRIPT + body, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr


def test_sequences_stepped_from_several_threads(path: Path) -> None:
    body = """
tables = [(0, 1), (2, 3), (4, 5)]
expected = []
for seed, banks in enumerate(tables):
    feed(model, seed, banks)
    expected.append(next_logits(model, banks))
for _ in range(40):
    for bank in range(6):
        model.copy_bank(15, bank)
    together(*(lambda s=s, b=b: feed(model, s, b) for s, b in enumerate(tables)))
    assert [next_logits(model, banks) for banks in tables] == expected
"""
    run(path, body)


def test_everything_else_beside_a_step(path: Path) -> None:
    """Rows of whichever step was last, banks as they are then: a value or a refusal."""
    body = """
is_over = threading.Event()

def step():
    try:
        for _ in range(60):
            feed(model, 1, (0, 1))
    finally:
        is_over.set()

def look():
    while not is_over.is_set():
        for use in (
            lambda: model.logits(0),
            lambda: model.sample([SampleRow(0, sampler, 3, None)] * 5),
            lambda: model.import_bank(9, model.export_bank(1)),
            lambda: model.copy_bank(1, 8),
            lambda: model.shift_bank(8, 3),
            lambda: model.step([]),
        ):
            try:
                use()
            except ModelError:
                pass

together(step, look, look)
"""
    run(path, body)


def test_close_beside_a_step(path: Path) -> None:
    body = """
for round in range(20):
    model = native.load(sys.argv[1], threads=2)
    model.allocate(2)
    has_begun = threading.Event()
    refusals = []

    def step():
        try:
            while True:
                feed(model, 1, (0, 1))
                has_begun.set()
        except ModelError as error:
            refusals.append(str(error))

    def close():
        has_begun.wait()
        model.close()

    together(step, close)
    assert len(refusals) == 1 and "closed" in refusals[0], refusals
"""
    run(path, body)
