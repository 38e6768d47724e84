"""`headrace pull` as a process of its own, to be watched, stopped and killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

PULL = (
    sys.executable,
    "-c",
    "from headrace.commands.models import pull; pull(prog_name='headrace pull')",
)


def start(
    *args: str | Path, env: dict[str, str] | None = None, before: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """`headrace pull ARGS` in its own process group, as a terminal would start it."""
    return subprocess.Popen(
        [*before, *PULL, *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (env or {}),
        start_new_session=True,
    )


def run(
    *args: str | Path, env: dict[str, str] | None = None, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    process = start(*args, env=env, before=before)
    stdout, stderr = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def in_small_disk(num_kib: int, folder: Path) -> list[str]:
    """A command's prefix that gives it a disk of that size at `folder`, for as long as it runs."""
    script = f'mount -t tmpfs -o size={num_kib}k none "$0" && exec "$@"'
    prefix = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, str(folder)]
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine lets no test mount a disk of its own")
    return prefix
