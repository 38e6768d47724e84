"""What the machine is and what this process takes of it."""

from __future__ import annotations

import importlib
import os
import platform
import resource
import sys
from pathlib import Path

STREAM_BYTES = 512 << 20
"""Far beyond any cache, so that memory itself is measured."""


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


def load_average() -> float:
    """Runnable threads over the last minute: above a few tenths, somebody else is at work."""
    return os.getloadavg()[0]


def bandwidth_gb_s(num_threads: int, num_bytes: int = STREAM_BYTES) -> float:
    """Measured read bandwidth of `num_threads` over `num_bytes`, in 10^9 bytes a second."""
    native = importlib.import_module("headrace._native")
    return float(native.measure_bandwidth(num_bytes, num_threads))
