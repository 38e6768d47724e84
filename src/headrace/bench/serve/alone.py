"""The same load on the engine itself, in a process without a server: what a server can reach.

    python -m headrace.bench.serve.alone MODEL.gguf '{"concurrency": 4, "requests": 32}'

In: a model file and a load. Out: one JSON object on stdout. Thread: the process's own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from headrace.bench.serve import report
from headrace.bench.serve.asking import InProcess
from headrace.bench.serve.load import Closed, Load, Plan
from headrace.bench.serve.workloads import WORKLOADS
from headrace.engine.engine import Engine
from headrace.errors import BenchError


def ask(path: Path, concurrency: int, num_requests: int, seed: int) -> dict[str, Any]:
    """A summary of the load on the engine alone, from a new process. Raises `BenchError`."""
    load = {"concurrency": concurrency, "requests": num_requests, "seed": seed}
    command = [sys.executable, "-m", __name__, str(path), json.dumps(load)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise BenchError(f"the engine alone failed; it last said: {said[-1]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def plan_of(load: dict[str, int]) -> Plan:
    """Closed loop, as the servers get it."""
    return Plan(
        workload=WORKLOADS["fixed"],
        arrivals=Closed(load["concurrency"]),
        num_requests=load["requests"],
        num_warmup=load["concurrency"],
        seed=load["seed"],
    )


def main() -> None:
    path, load = Path(sys.argv[1]), json.loads(sys.argv[2])
    with Engine.load(path) as engine:
        outcome = asyncio.run(Load(plan_of(load), InProcess(engine)).run())
    sys.stdout.write(json.dumps(report.summary(outcome, report.Targets())))


if __name__ == "__main__":
    main()
