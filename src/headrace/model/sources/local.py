"""A file on this machine: copied, so that the model stays when the original goes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from headrace.errors import SourceUnavailable
from headrace.model.sources.base import (
    Phase,
    Progress,
    Report,
    Workspace,
    copy_bytes,
    new_part,
    require_space,
    sha256_of,
)
from headrace.model.sources.spec import PathSpec


@dataclass(frozen=True)
class LocalOffer:
    spec: PathSpec

    @property
    def file_name(self) -> str:
        return self.spec.file_name

    @cached_property
    def num_bytes(self) -> int:
        self._require_readable()
        return self.spec.path.stat().st_size

    @cached_property
    def sha256(self) -> str:
        self._require_readable()
        return sha256_of(self.spec.path)

    def fetch(self, workspace: Workspace, report: Report) -> Path:
        total = self.num_bytes
        done = 0

        def advance(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            report(Progress(Phase.COPYING, done, total))

        with self.spec.path.open("rb") as original, new_part(workspace) as copy:
            require_space(workspace.folder, total)
            copy_bytes(original, copy, workspace.part, advance)
        return workspace.part

    def _require_readable(self) -> None:
        path = self.spec.path
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "does not exist"
            raise SourceUnavailable(f"{path} {problem}; name a .gguf file.")
        try:
            path.open("rb").close()
        except OSError as error:
            raise SourceUnavailable(f"cannot read {path}: {error.strerror}.") from error
