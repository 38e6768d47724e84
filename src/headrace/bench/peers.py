"""llama.cpp beside us: a Python that has it, its Q4_0 copy of a file, its best settings.

In: a model file. Out: running workers. Thread: the caller's. Next: `llama_worker.py`, at the other
end of a pipe.

llama.cpp is never a dependency: it runs in a process of its own, under this Python where it has
`llama_cpp`, else under one that we make in the cache folder and build it in.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import platformdirs
from filelock import FileLock

from headrace.bench import remote
from headrace.bench.figures import Figure, measure
from headrace.errors import BenchError

REQUIREMENT = "llama-cpp-python>=0.3.36,<0.4"
"""Older ones lack settings that `llama_worker.py` makes use of."""
PYTHON_VARIABLE = "HEADRACE_PEER_PYTHON"
LONG_RUN_S = 3.0
"""A run this long averages noise out by itself."""
WORKER = Path(__file__).with_name("llama_worker.py")

Say: TypeAlias = Callable[[str], None]
"""Tells the person at the terminal what takes long."""
Settings: TypeAlias = dict[str, Any]


def cache_dir() -> Path:
    """Where things are kept that can be made again."""
    if named := os.environ.get("HEADRACE_HOME"):
        return Path(named).expanduser().absolute() / "cache"
    return platformdirs.user_cache_path("headrace", appauthor=False)


def peer_python(chosen: Path | None, say: Say) -> Path:
    """A Python that can `import llama_cpp`: the chosen one, this one, or one made for it.

    Raises `BenchError` where the chosen one cannot, or the build fails.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    python = chosen or (Path(named) if named else None)
    if python is not None:
        _check_import(python)
        return python
    if importlib.util.find_spec("llama_cpp"):
        return Path(sys.executable)
    return _built_python(say)


def _check_import(python: Path) -> None:
    try:
        code = subprocess.run([python, "-c", "import llama_cpp"], capture_output=True).returncode
    except OSError as error:
        raise BenchError(f"cannot run {python}: {error.strerror}") from None
    if code:
        raise BenchError(
            f"{python} cannot import llama_cpp; install it with: {python} -m pip install "
            f'"{REQUIREMENT}"'
        )


def _built_python(say: Say) -> Path:
    """A virtual environment in the cache folder, with llama.cpp built for this processor."""
    folder = cache_dir() / "peer"
    ready = folder / "ready"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not ready.exists():
            say("building llama.cpp for this processor: about 5 to 10 minutes, once …")
            _run([sys.executable, "-m", "venv", "--clear", folder], folder)
            install: list[str | Path] = [
                folder / "bin/python",
                "-m",
                "pip",
                "install",
                "--no-cache-dir",
            ]
            _run([*install, "--no-binary", "llama-cpp-python", REQUIREMENT], folder)
            ready.touch()
    return folder / "bin/python"


def _run(command: list[str | Path], folder: Path) -> None:
    # A cached wheel may have been built for another processor, or without GGML_NATIVE.
    environment = {**os.environ, "CMAKE_ARGS": "-DGGML_NATIVE=ON"}
    log = folder.with_name("peer.log")
    with log.open("wb") as out:
        status = subprocess.run(command, env=environment, stdout=out, stderr=out).returncode
    if status:
        raise BenchError(
            f"cannot build llama.cpp in {folder}: see {log}. It needs a C++ compiler and cmake; "
            f"or name a Python that has llama_cpp in {PYTHON_VARIABLE}"
        )


def requantized(path: Path, python: Path, num_threads: int, say: Say) -> Path:
    """`path` as llama.cpp requantizes it to Q4_0, the format it has its fastest kernels for."""
    status = path.stat()
    identity = f"{path.absolute()}/{status.st_size}/{status.st_mtime_ns}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    target = cache_dir() / f"{path.stem}.{digest}.requantized-Q4_0.gguf"
    if not target.exists():
        say(f"requantizing {path.name} to Q4_0 …")
        target.parent.mkdir(parents=True, exist_ok=True)
        command: list[str | Path] = [python, WORKER, "quantize", path, target, str(num_threads)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise BenchError(f"llama.cpp cannot requantize {path}: {lines[-1]}")
    return target


def start(name: str, python: Path, path: Path, num_threads: int) -> remote.Worker:
    """A llama.cpp worker on `path`, with settings that are good where `tune` is not called."""
    settings = {"threads": num_threads, "flash": True, "unified": False, "micro_batch": 512}
    return remote.Worker(name, [str(python), str(WORKER), "serve", str(path)], settings)


def candidates(figure: Figure) -> list[Settings]:
    """Settings that can be best for `figure`. On two cores a cache of its own for each sequence
    (`unified` off) always beat one for all, so that is not tried again."""
    choices = [{"flash": True, "micro_batch": 512}, {"flash": False, "micro_batch": 512}]
    if figure.kind == "prefill":
        choices[1]["micro_batch"] = 256
        choices.append({"flash": True, "micro_batch": 256})
    return choices


def tune(worker: remote.Worker, figure: Figure) -> Settings:
    """Give `worker` the fastest of the candidates for `figure`; it also warms it up."""
    common = worker.settings

    def best_speed(choice: Settings) -> float:
        worker.settings = {**common, **choice}
        begun = time.monotonic()
        speed = measure(worker, figure, -1)
        if time.monotonic() - begun > LONG_RUN_S:
            return speed
        return max(speed, measure(worker, figure, -2))

    best = max(candidates(figure), key=best_speed)
    worker.settings = {**common, **best}
    return best
