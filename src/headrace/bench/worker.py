"""headrace as a benchmark worker: answers like `llama_worker.py`, in a process of its own.

In: one JSON request a line on stdin. Out: one JSON answer a line on stdout (`logits`: raw float32
after it). Thread: the process's own. Next: `core.py` or `whole.py`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

from headrace.bench.core import CoreRunner
from headrace.bench.figures import Runner
from headrace.bench.opening import Opened, open_core, open_engine
from headrace.errors import HeadraceError


def command(path: Path, level: str, threads: int | None, isa: str | None) -> list[str]:
    """How to start this worker; `level` is `core` or `engine`."""
    return [sys.executable, "-m", __name__, str(path), level, json.dumps([threads, isa])]


def serve(opened: Opened, requests: BinaryIO, out: BinaryIO) -> None:
    """Say what was opened, then answer until the requests end."""
    _answer(out, opened.about())
    for line in requests:
        try:
            _handle(opened, json.loads(line), out)
        except HeadraceError as error:
            _answer(out, {"error": error.message})


def _handle(opened: Opened, request: dict[str, Any], out: BinaryIO) -> None:
    match request["do"]:
        case "decode":
            seconds = opened.runner.decode(request["prompts"], request["num_generated"])
            _answer(out, {"seconds": seconds})
        case "prefill":
            _answer(out, {"seconds": opened.runner.prefill(request["prompts"])})
        case "logits":
            _write_logits(opened.runner, request, out)
        case "profile":
            _answer(out, opened.profile())
        case "forget":  # nothing is kept but what the next request overwrites
            _answer(out, {})
        case unknown:
            _answer(out, {"error": f"unknown request {unknown!r}"})


def _write_logits(runner: Runner, request: dict[str, Any], out: BinaryIO) -> None:
    if not isinstance(runner, CoreRunner):
        _answer(out, {"error": "only the core has logits to show"})
        return
    _answer(out, {"rows": len(request["tokens"])})
    for row in runner.logits(request["tokens"], request["chunk"]):
        out.write(row)
    out.flush()


def _answer(out: BinaryIO, value: dict[str, Any]) -> None:
    out.write(json.dumps(value).encode() + b"\n")
    out.flush()


def main() -> None:
    path, level, options = sys.argv[1:]
    threads, isa = json.loads(options)
    # Answers go to the real stdout; whatever a library prints there goes to stderr.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    opener = {"core": open_core, "engine": open_engine}[level]
    try:
        opened = opener(Path(path), threads, isa)
    except HeadraceError as error:
        _answer(out, {"error": error.message})
        return
    with opened:
        serve(opened, sys.stdin.buffer, out)


if __name__ == "__main__":
    main()
