"""A `headrace serve` process of a test's own: started, waited for, and always stopped."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

READY_S = 60.0
STOP_S = 15.0
EVENTUALLY_S = 10.0
_POLL_S = 0.02
_URL = re.compile(rb"serves at (http://[^/\s]+)/")


@dataclass(frozen=True)
class Server:
    """A running server."""

    base_url: str
    """`http://127.0.0.1:PORT`, as Groq's clients want it."""
    process: subprocess.Popen[bytes]
    folder: Path
    """Its working directory."""

    @property
    def openai_url(self) -> str:
        """As OpenAI's clients want it."""
        return f"{self.base_url}/openai/v1"

    @property
    def welcome(self) -> str:
        """What it has said to the person who started it."""
        return (self.folder / "out.txt").read_text("utf-8")

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text("utf-8")

    def metrics(self) -> dict[str, float]:
        """Each sample by its name and labels, as it is written: `name{label="x"}`."""
        status, body = get(self.base_url, "/metrics")
        assert status == 200
        lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@contextmanager
def running_server(
    *flags: str, home: Path | None = None, environ: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """`headrace serve` with these flags on a free port, until the block ends.

    `home` is its data folder, by default an empty one; `environ` are variables beside those of this
    process, of which none that headrace reads is passed on. Its working directory is empty too.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-serve-") as name:
        folder = Path(name)
        process = _start(folder, flags, home or folder / "home", environ or {})
        try:
            yield Server(_ready_url(process, folder), process, folder)
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> int:
    """Ends it, politely at first; returns its exit code."""
    for end in (process.terminate, process.terminate, process.kill):
        if process.poll() is not None:
            break
        end()
        # The second signal tells it not to wait for answers that are still being read.
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S if end == process.kill else STOP_S / 5)
    return process.wait(STOP_S)


def get(base_url: str, path: str) -> tuple[int, bytes]:
    """Status and body."""
    address = urlsplit(base_url)
    assert address.hostname is not None
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=20)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def eventually(is_so: Callable[[], bool]) -> None:
    """Waits until it is so; ten seconds at most, which only what never happens needs."""
    ends_at = time.monotonic() + EVENTUALLY_S
    while not is_so():
        assert time.monotonic() < ends_at, "it never came true"
        time.sleep(_POLL_S)


def environment(home: Path, more: Mapping[str, str]) -> dict[str, str]:
    """This process's own, without what would change a server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return kept | {"HEADRACE_HOME": str(home)} | dict(more)


def command(*arguments: str) -> list[str]:
    """`headrace` of this environment."""
    return [str(Path(sys.executable).with_name("headrace")), *arguments]


def _start(
    folder: Path, flags: tuple[str, ...], home: Path, environ: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    named_port = () if "HEADRACE_PORT" in environ or "--config" in flags else ("--port", "0")
    with (folder / "out.txt").open("wb") as out, (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            command("serve", *named_port, *flags),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=log,
            cwd=folder,
            env=environment(home, environ),
        )


def _ready_url(process: subprocess.Popen[bytes], folder: Path) -> str:
    """Waits until it takes requests. Raises with all that it said when it does not."""
    ends_at = time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < ends_at:
        found = _URL.search((folder / "out.txt").read_bytes())
        if found is not None and _is_ready(found[1].decode()):
            return found[1].decode()
        time.sleep(_POLL_S)
    said = "".join((folder / name).read_text("utf-8") for name in ("out.txt", "log.txt"))
    raise AssertionError(f"no server after {READY_S:g} s (exit code {process.poll()}):\n{said}")


def _is_ready(base_url: str) -> bool:
    try:
        return get(base_url, "/ready")[0] == 200
    except (OSError, http.client.HTTPException):
        return False
