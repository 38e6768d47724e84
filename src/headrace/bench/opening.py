"""Opens a model for measuring: the core alone or the whole engine, and what opening it cost.

In: a model's name or file. Out: an `Opened`, ready to run. Thread: the caller's.
Next: `core.py` or `whole.py`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.bench import machine
from headrace.bench.core import CoreRunner
from headrace.bench.whole import EngineRunner
from headrace.engine.engine import Engine, EngineConfig
from headrace.engine.memory import free_memory, num_pool_banks
from headrace.model import architecture, catalogue, gguf, pull
from headrace.model.interface import ModelSpec

PARTS = ("plan", "model", "rows", "sample", "text", "publish")
"""Of a step; `model` and `sample` are the native core's, the others are Python's."""
MAX_SEQUENCES = 32
POOL_POSITIONS = MAX_SEQUENCES * 272
"""What the core's pool holds: 32 sequences of 128 + 128 tokens, or two of 4,096 and some."""


@dataclass
class Opened:
    """A model ready to be measured. A context manager that closes it."""

    spec: ModelSpec
    runner: CoreRunner | EngineRunner
    load_s: float
    """From nothing to ready, with the KV pool."""
    pool_mb: float
    close: Callable[[], None]

    def profile(self) -> dict[str, float]:
        """Where the time of the last decode's steps went, in µs a step; empty for the core."""
        profile = self.runner.profile if isinstance(self.runner, EngineRunner) else None
        if profile is None or not profile.num_steps:
            return {}
        parts = {part: getattr(profile, f"{part}_s") for part in PARTS}
        per_step = {part: round(s / profile.num_steps * 1e6, 1) for part, s in parts.items()}
        return {**per_step, "python_share": round(profile.python_share, 4)}

    def about(self) -> dict[str, Any]:
        """What every report begins with; memory as it is now."""
        spec = self.spec
        return {
            "model": spec.name,
            "quantization": spec.quantization,
            "identity": spec.identity,
            "isa": spec.isa,
            "threads": spec.num_threads,
            "vocab_size": spec.vocab_size,
            "weight_bytes": spec.weight_bytes,
            "load_s": round(self.load_s, 3),
            "rss_mb": round(machine.rss_mb(), 1),
            "peak_rss_mb": round(machine.peak_rss_mb(), 1),
            "kv_pool_mb": round(self.pool_mb, 1),
        }

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def model_path(name: str | None) -> Path:
    """The file of a catalogue name or path (None: the default model), fetched if need be."""
    return pull.ensure(name or catalogue.DEFAULT_MODEL)


def bytes_per_token(path: Path) -> int:
    """Bytes of the file that one decode step must read: all tensors, but of a token embedding
    that is not the output head too only one row, which is not counted."""
    file = gguf.read(path)
    is_tied = architecture.describe(file).tied_head
    return sum(
        tensor.num_bytes
        for name, tensor in file.tensors.items()
        if is_tied or name != "token_embd.weight"
    )


def num_threads() -> int:
    """Threads to give to peers: what we take ourselves where nothing else is said."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tokenize(path: Path, text: str) -> list[int]:
    """`text` as the file's own tokenizer reads it, without a beginning-of-sequence token."""
    from headrace.model.tokenizer import Tokenizer

    return Tokenizer.from_metadata(gguf.read(path).metadata).encode(text)


def open_core(path: Path, threads: int | None, isa: str | None) -> Opened:
    """Raises `ModelError`."""
    from headrace.model import native

    begun = time.perf_counter()
    model = native.load(path, threads=threads, isa=isa)
    num_banks = -(-POOL_POSITIONS // model.spec.bank_size)
    model.allocate(num_banks)
    load_s = time.perf_counter() - begun
    pool_mb = num_banks * model.spec.bank_bytes / 1e6
    return Opened(model.spec, CoreRunner(model), load_s, pool_mb, model.close)


def open_engine(path: Path, threads: int | None, isa: str | None) -> Opened:
    """With the settings that everybody gets. Raises `ModelError`."""
    free, config = free_memory(), EngineConfig()
    begun = time.perf_counter()
    engine = Engine.load(path, threads=threads, isa=isa, config=config)
    load_s = time.perf_counter() - begun
    num_banks = num_pool_banks(engine.spec, config.scheduler.max_running, config.pool_bytes, free)
    pool_mb = num_banks * engine.spec.bank_bytes / 1e6
    runner = EngineRunner(engine)
    return Opened(engine.spec, runner, load_s, pool_mb, runner.close)
