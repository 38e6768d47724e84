"""How much memory is free for this process, inside its container, and how many banks to make of it.

In: files of the kernel. Out: bytes, a number of banks. Thread: the caller's, once, at start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from headrace.errors import ModelError
from headrace.model.interface import ModelSpec

MAX_SHARE = 4
"""The pool takes at most one part in this many of what is free."""


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still use: the machine's available memory, and no more than any
    control group (v1 or v2) above the process has left. `root` is where `proc` and `sys` are."""
    return min([_machine(root), *_groups(root)])


def num_pool_banks(spec: ModelSpec, num_sequences: int, pool_bytes: int | None, free: int) -> int:
    """Banks for `num_sequences` whole contexts, within `pool_bytes`, or a share of `free` bytes.

    Raises `ModelError` where not even two banks fit.
    """
    wanted = num_sequences * -(-spec.context_length // spec.bank_size)
    limit = pool_bytes if pool_bytes is not None else free // MAX_SHARE
    num_banks = min(wanted, limit // spec.bank_bytes)
    if num_banks < 2:
        raise ModelError(
            f"a KV pool of {limit} bytes holds fewer than two banks of {spec.bank_bytes} bytes; "
            "free some memory, or set `pool_bytes`"
        )
    return num_banks


def _machine(root: Path) -> int:
    for line in _lines(root / "proc/meminfo"):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    # macOS says how much there is, not how much is free; half of it is a careful guess.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _groups(root: Path) -> Iterator[int]:
    """What each control group above this process has left, in bytes."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
            reclaimable = "inactive_file"
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            reclaimable = "total_inactive_file"
        else:
            continue
        # Inside a container the path may be the host's, and only the mount's top be there.
        for folder in (mount / part.relative_to("/") for part in _upward(path)):
            limit, used = _number(folder / names[0]), _number(folder / names[1])
            if limit is not None and used is not None:
                yield max(0, limit - used + _stat(folder / "memory.stat", reclaimable))


def _upward(path: str) -> list[PurePosixPath]:
    here = PurePosixPath("/") / path
    return [here, *here.parents]


def _stat(path: Path, name: str) -> int:
    """One figure of a `memory.stat`: page cache that counts as used but would make room."""
    for line in _lines(path):
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None  # "max" is no limit


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
