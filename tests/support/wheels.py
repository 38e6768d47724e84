"""Small wheels that carry model files, made as `pip` wants them."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path


def make_wheel(
    folder: Path,
    distribution: str,
    version: str,
    files: dict[str, bytes],
    *,
    requires: str = "",
    recorded: dict[str, bytes] | None = None,
) -> Path:
    """A wheel of `files` in `folder`; its RECORD gives the hashes of `recorded` in their place.

    `requires` is a dependency that no index has, for showing that none is fetched.
    """
    escaped = distribution.replace("-", "_")
    path = folder / f"{escaped}-{version}-py3-none-any.whl"
    info = f"{escaped}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    if requires:
        metadata += f"Requires-Dist: {requires}\n"
    wheel = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    told = files | (recorded or {})
    record = "".join(f"{name},sha256={_hash(told[name])},{len(files[name])}\n" for name in files)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", wheel)
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return path


def _hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
