"""What the machine is and what this process takes of it."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from pathlib import Path

from headrace import _native


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def rss_mb() -> float:
    """Resident memory of this process now, in 10^6 bytes."""
    return _status_mb("VmRSS")


def peak_rss_mb() -> float:
    """The most resident memory this process has had, in 10^6 bytes."""
    return _status_mb("VmHWM")


def _status_mb(field: str) -> float:
    """`getrusage` is second choice: on Linux a child starts with its parent's peak."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
    [kilobytes] = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(kilobytes) * 1024 / 1e6


class ForeignLoad:
    """How many cores others kept busy, on average, since this was made."""

    def __init__(self) -> None:
        self._begun = time.monotonic(), _busy_s(), _own_s()

    def cores(self) -> float:
        """Not counting this process and children that have ended and been waited for."""
        begun_at, busy_s, own_s = self._begun
        foreign_s = (_busy_s() - busy_s) - (_own_s() - own_s)
        return max(0.0, foreign_s) / max(time.monotonic() - begun_at, 1e-9)


def _busy_s() -> float:
    """Seconds that all cores were not idle, time stolen by other guests included; 0 unknown."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def bandwidth_gb_s(num_threads: int, num_bytes: int) -> float:
    """Measured read bandwidth of `num_threads` over `num_bytes`, in 10^9 bytes a second."""
    return _native.measure_bandwidth(num_bytes, num_threads) / 1e9
