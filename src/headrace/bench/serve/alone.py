"""The same load on the engine itself, in a process without a server: what a server can reach.

In: loads as JSON lines on stdin, as `bench/remote.py` sends them. Out: summaries on stdout.
Thread: the process's own. Next: `asking.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from headrace.bench.serve import report
from headrace.bench.serve.asking import InProcess
from headrace.bench.serve.load import Closed, Load, Plan, run
from headrace.bench.serve.workloads import WORKLOADS
from headrace.engine.engine import Engine


def command(path: Path) -> list[str]:
    """For a `Worker`; ask it to `load` with what `plan_of` takes."""
    return [sys.executable, "-m", __name__, str(path)]


def plan_of(concurrency: int, num_requests: int, seed: int) -> Plan:
    """What each side of a comparison is asked."""
    return Plan(
        workload=WORKLOADS["fixed"],
        arrivals=Closed(concurrency),
        num_requests=num_requests,
        num_warmup=max(2, concurrency),
        seed=seed,
    )


def answer(engine: Engine, line: str) -> dict[str, Any]:
    """The summary of the load that `line` asks for."""
    asked = json.loads(line)
    plan = plan_of(asked["concurrency"], asked["num_requests"], asked["seed"])
    return report.summary(run(Load(plan, InProcess(engine)).run()), report.Targets())


def main() -> None:
    with Engine.load(Path(sys.argv[1])) as engine:
        _say({"model": engine.spec.name})
        for line in sys.stdin:
            _say(answer(engine, line))


def _say(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
