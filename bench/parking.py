"""How soon yesterday's conversation answers: parked on disk, the process ended, the next turn.

    .venv/bin/python bench/parking.py [--model FILE] [--tokens 4000] [--rounds 5]

A first process has the conversation and ends. Then others take turns, each a fresh process with a
loaded model that has computed something else before: *cold* has no folder, *warm* reads what was
parked from the page cache, *disk* from the disk itself (the files are dropped from the cache
before). All ask the same next turn of 32 new tokens, and must say the same. TTFT is from the
submission to the first token.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from headrace.bench import opening
from headrace.commands.telling import told_plainly
from headrace.engine.engine import Engine, EngineConfig
from headrace.engine.parking.parking import ParkingConfig
from headrace.engine.request import Request
from headrace.engine.stream import Generation
from headrace.events import Delta

BAR = 0.25
NUM_NEW = 32
DISK_BYTES = 10 * 10**9
FIRST, COLD, WARM, DISK = "first", "cold", "warm", "disk"


def prompt_of(num_tokens: int, vocab_size: int) -> list[int]:
    source = random.Random(num_tokens)
    return [source.randrange(vocab_size) for _ in range(num_tokens)]


def ttft_s(generation: Generation, began_at: float) -> float:
    for event in generation.events():
        if isinstance(event, Delta):
            break
    return time.perf_counter() - began_at


def child(role: str, model: str, folder: str, num_tokens: int) -> dict[str, Any]:
    """One process of the measurement: what it found."""
    parking = None if role == COLD else ParkingConfig(Path(folder), DISK_BYTES)
    config = EngineConfig(parking=parking, pool_bytes=2 * 10**9)
    with Engine.load(model, config=config) as engine:
        warm_up = prompt_of(300, engine.spec.vocab_size)
        assert engine.generate_sync(Request(token_ids=warm_up, max_tokens=8)).choice
        prompt = prompt_of(num_tokens + NUM_NEW, engine.spec.vocab_size)
        began_at = time.perf_counter()
        generation = engine.generate_sync(
            Request(
                token_ids=prompt[:num_tokens] if role == FIRST else prompt,
                conversation="talk" if role == FIRST else None,
                max_tokens=8,
                ignore_eos=True,
            )
        )
        seconds = ttft_s(generation, began_at)
        choice = generation.choice
        return {
            "ttft_s": seconds,
            "loaded": choice.usage.num_loaded_tokens,
            "said": choice.token_ids,
            "bank_bytes": engine.spec.bank_bytes,
        }


def in_process(role: str, model: str, folder: str, num_tokens: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--model", model, "--tokens", str(num_tokens)]
    done = subprocess.run(
        [*command, "--role", role, "--folder", folder], check=True, stdout=subprocess.PIPE
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def drop_from_cache(folder: str) -> None:
    """Let the system forget what it has of the files in memory."""
    for path in Path(folder).glob("*.bank"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_all(folder: str) -> tuple[int, float]:
    """Bytes, and seconds to read them from the disk one after the other."""
    drop_from_cache(folder)
    began_at = time.perf_counter()
    num_bytes = sum(len(path.read_bytes()) for path in Path(folder).glob("*.bank"))
    return num_bytes, time.perf_counter() - began_at


@click.command(help=__doc__)
@click.option("--model", default=None, help="A catalogue name or a .gguf file.")
@click.option("--tokens", "num_tokens", default=4000, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--role", default=None, hidden=True)
@click.option("--folder", default=None, hidden=True)
def main(
    model: str | None, num_tokens: int, rounds: int, role: str | None, folder: str | None
) -> None:
    with told_plainly():
        path = str(opening.model_path(model))
        if role is not None and folder is not None:
            click.echo(json.dumps(child(role, path, folder, num_tokens)))
            return
        with tempfile.TemporaryDirectory() as made:
            measure(path, made, num_tokens, rounds)


def measure(model: str, folder: str, num_tokens: int, rounds: int) -> None:
    bank_bytes = in_process(FIRST, model, folder, num_tokens)["bank_bytes"]
    found: dict[str, list[dict[str, Any]]] = {COLD: [], WARM: [], DISK: []}
    for _ in range(rounds):
        for role, runs in found.items():
            if role == DISK:
                drop_from_cache(folder)
            runs.append(in_process(role, model, folder, num_tokens))
    report(found, folder, bank_bytes, num_tokens)


def report(
    found: dict[str, list[dict[str, Any]]], folder: str, bank_bytes: int, num_tokens: int
) -> None:
    num_bytes, read_s = read_all(folder)
    num_files = len(list(Path(folder).glob("*.bank")))
    click.echo(
        f"{num_tokens} tokens: {num_files} banks of {bank_bytes:,} bytes, {num_bytes:,} bytes"
    )
    click.echo(f"reading all of them from the disk: {num_bytes / read_s / 1e6:,.0f} MB/s")
    for role, runs in found.items():
        times = sorted(run["ttft_s"] * 1e3 for run in runs)
        loaded = {run["loaded"] for run in runs}
        click.echo(
            f"{role:6}TTFT {statistics.median(times):7.0f} ms "
            f"({times[0]:.0f} to {times[-1]:.0f}), tokens loaded: {loaded}"
        )
    said = {tuple(run["said"]) for runs in found.values() for run in runs}
    verdict("all say the same", len(said) == 1)
    for role in (WARM, DISK):
        pairs = zip(found[role], found[COLD], strict=True)
        ratio = statistics.median(warm["ttft_s"] / cold["ttft_s"] for warm, cold in pairs)
        verdict(f"{role}: TTFT is {ratio:.3f} of cold (bar {BAR})", ratio <= BAR)


def verdict(what: str, is_met: bool) -> None:
    click.echo(f"{'met' if is_met else 'MISSED':7}{what}")


if __name__ == "__main__":
    main()
