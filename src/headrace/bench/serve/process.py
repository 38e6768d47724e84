"""A server in a process of its own that is always stopped, and what it costs.

In: a command line. Out: a server that is ready, its processor time. Thread: the caller's.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from headrace.errors import BenchError

HOST = "127.0.0.1"
POLL_S = 0.01
STOP_S = 10.0


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def headrace_command(*arguments: str) -> list[str]:
    """`headrace` of this environment."""
    return [str(Path(sys.executable).with_name("headrace")), *arguments]


class ServerProcess:
    """Runs while the block does. `ready_s`: from its start to its first 200 at `ready_path`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        *,
        ready_path: str = "/ready",
        timeout_s: float = 120.0,
    ) -> None:
        self.name = name
        self.port = port
        self.ready_s = 0.0
        self._command = list(command)
        self._ready_path = ready_path
        self._timeout_s = timeout_s

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/v1"

    def cpu_s(self) -> float:
        """Processor seconds of all its threads that run, user and system, since its start."""
        tasks = Path(f"/proc/{self._process.pid}/task")
        try:
            # Nanoseconds; the times in `stat` are counted in ticks of 10 ms.
            return sum(_task_s(task) for task in tasks.iterdir())
        except FileNotFoundError:
            return _ticks_s(Path(f"/proc/{self._process.pid}/stat"))

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile()
        begun_at = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
            )
        except OSError as error:
            self._log.close()
            raise BenchError(f"cannot run {self._command[0]}: {error.strerror}") from None
        try:
            self._wait(begun_at + self._timeout_s)
        except BaseException:
            self._stop()
            raise
        self.ready_s = time.perf_counter() - begun_at
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def _wait(self, until: float) -> None:
        while not self._is_ready():
            if self._process.poll() is not None:
                raise BenchError(f"{self.name} ended at once{self._last_words()}")
            if time.perf_counter() > until:
                raise BenchError(
                    f"{self.name} is not ready after {self._timeout_s:g} s{self._last_words()}"
                )
            time.sleep(POLL_S)

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", self._ready_path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        return f"; it last said: {said[-1]}" if said else ""


def _task_s(task: Path) -> float:
    with contextlib.suppress(ProcessLookupError):  # a thread that ended meanwhile
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    return 0.0


def _ticks_s(stat: Path) -> float:
    # The name in parentheses may hold spaces.
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
