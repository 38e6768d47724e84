"""A benchmark worker in a process of its own, asked one thing at a time.

In: requests as JSON lines to its stdin. Out: answers from its stdout. Thread: the caller's.
Next: `worker.py` (headrace) or `llama_worker.py` (llama.cpp) at the other end.

Only one worker is ever asked at a time; the others block on their stdin, and `SETTLE_S` passes
between two turns, so that nobody's threads still spin while another is timed.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from headrace.bench.figures import Prompts
from headrace.errors import BenchError

SETTLE_S = 0.05


class Worker:
    """A running worker. Implements `figures.Runner`; `settings` go with every request."""

    def __init__(
        self, name: str, command: Sequence[str], settings: dict[str, Any] | None = None
    ) -> None:
        self.name = name
        self.settings = settings or {}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
        )
        try:
            self.about = self._answer()
        except BenchError:
            self.close()
            raise

    @property
    def vocab_size(self) -> int:
        return int(self.about["vocab_size"])

    def decode(self, prompts: Prompts, num_generated: int) -> float:
        return float(self.ask("decode", prompts=prompts, num_generated=num_generated)["seconds"])

    def prefill(self, prompts: Prompts) -> float:
        return float(self.ask("prefill", prompts=prompts, num_generated=0)["seconds"])

    def forget(self) -> None:
        """Drop what is kept for repeats of one figure."""
        self.ask("forget")

    def logits(self, tokens: Sequence[int], chunk: int) -> Iterator[bytes]:
        """Float32 logits of every position of one sequence, `chunk` positions at a time."""
        self.ask("logits", tokens=list(tokens), chunk=chunk)
        for start in range(0, len(tokens), chunk):
            num_rows = min(chunk, len(tokens) - start)
            yield self._read(num_rows * self.vocab_size * 4)

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its answer. Raises `BenchError` where that is an error."""
        time.sleep(SETTLE_S)
        request = {"do": what, "settings": self.settings, **arguments}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        return self._answer()

    def close(self) -> None:
        """End the process; its stdin's end tells it to."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(f"the {self.name} worker says: {answer['error']}")
        return answer

    def _read(self, num_bytes: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(num_bytes)
        if len(data) < num_bytes:
            raise self._died()
        return data

    def _died(self) -> BenchError:
        self._process.kill()
        status = self._process.wait()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        last = f"; it last said: {said[-1]}" if said else ""
        return BenchError(f"the {self.name} worker ended early (status {status}){last}")
