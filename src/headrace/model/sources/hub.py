"""A repository on the Hugging Face hub, through its own library and shared cache.

The library is an optional extra. It keeps the file in the cache that all its users share, knows
the user's token, mirror (`HF_ENDPOINT`) and offline setting, and brings its own locks.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import PullError, SourceUnavailable
from headrace.model.sources.base import (
    DISK_ERRORS,
    FolderOffer,
    Phase,
    Progress,
    Report,
    Workspace,
    require_space,
    storage_error,
)
from headrace.model.sources.spec import HubSpec

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

PREFERRED_QUANTS = (
    *("Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q6_K", "Q8_0"),
    *("BF16", "F16", "F32"),
)
"""Which file `hf:ORG/REPO` means, where the repository has several: the first of these."""

_CACHE_VARIABLE = "HF_HOME"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


@dataclass(frozen=True)
class HubOffer:
    """One file of one commit, with what the hub promises about it."""

    spec: HubSpec
    commit: str
    path: str
    num_bytes: int | None
    sha256: str | None

    @property
    def file_name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    def fetch(self, workspace: Workspace, report: Report) -> Path:
        """Where the file lies in the hub's cache; it is not copied."""
        hub = _library(self.spec)
        cached = hub.try_to_load_from_cache(self.spec.repo, self.path, revision=self.commit)
        if self.num_bytes is not None and not isinstance(cached, str):
            cache = Path(hub.constants.HF_HUB_CACHE)
            require_space(cache, self.num_bytes, _CACHE_VARIABLE)
        report(Progress(Phase.DOWNLOADING, 0, self.num_bytes))
        with _explained(self.spec):
            return Path(
                hub.hf_hub_download(
                    self.spec.repo,
                    self.path,
                    revision=self.commit,
                    tqdm_class=_bar(report, self.num_bytes),
                )
            )


@dataclass(frozen=True)
class HubFolder(FolderOffer):
    """An embedding model: several files of one commit."""

    spec: HubSpec
    commit: str
    paths: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.spec.repo.rsplit("/", 1)[-1]

    @property
    def source(self) -> str:
        return str(self.spec)

    def fetch(self, report: Report) -> Mapping[str, Path]:
        """Where the files lie in the hub's cache, by their paths in the repository."""
        hub = _library(self.spec)
        with _explained(self.spec):
            return {
                path: Path(
                    hub.hf_hub_download(
                        self.spec.repo,
                        path,
                        revision=self.commit,
                        tqdm_class=_bar(report, None),
                    )
                )
                for path in self.paths
            }


def look_up(spec: HubSpec, report: Report) -> HubOffer | HubFolder:
    """Ask the hub what `spec` means: one GGUF file, or, where the repository has none, an embedding
    model. Raises SourceUnavailable."""
    hub = _library(spec)
    report(Progress(Phase.ASKING))
    with _explained(spec):
        info = hub.HfApi().model_info(spec.repo, files_metadata=True)
    siblings = info.siblings or ()
    if spec.quant is None and (paths := _embedder(siblings)):
        return HubFolder(spec, info.sha or "main", paths)
    chosen = _choose(spec, siblings)
    return HubOffer(
        spec=spec,
        commit=info.sha or "main",
        path=chosen.rfilename,
        num_bytes=chosen.size,
        sha256=chosen.lfs.sha256 if chosen.lfs else None,
    )


def _embedder(files: Sequence[RepoSibling]) -> tuple[str, ...]:
    """The files of an embedding model, where this is one."""
    from headrace.model.embedding.elsewhere import PARTS
    from headrace.model.embedding.folder import FILES

    names = {file.rfilename for file in files}
    if not names.issuperset(FILES) or any(name.lower().endswith(".gguf") for name in names):
        return ()
    return tuple(part for part in PARTS if part in names)


def _choose(spec: HubSpec, files: Sequence[RepoSibling]) -> RepoSibling:
    """The file of the wanted quantization, else of the most usual one."""
    models = [
        file
        for file in files
        if file.rfilename.lower().endswith(".gguf")
        and not file.rfilename.rsplit("/", 1)[-1].lower().startswith("mmproj")
    ]
    whole = [file for file in models if not _SHARD.search(file.rfilename)]
    for quant in [spec.quant] if spec.quant else PREFERRED_QUANTS:
        for file in whole:
            if _is_of(file.rfilename, quant):
                return file
    if not spec.quant and len(whole) == 1:
        return whole[0]
    raise _no_such_file(spec, [f.rfilename for f in models], [f.rfilename for f in whole])


def _is_of(path: str, quant: str) -> bool:
    """Whether `quant` is the file's name, the end of its stem, or the folder that it is in."""
    if path == quant:
        return True
    stem = path.removesuffix(path[-len(".gguf") :])
    return re.search(rf"(^|[-._/]){re.escape(quant)}(/[^/]*)?$", stem, re.IGNORECASE) is not None


def _no_such_file(spec: HubSpec, models: list[str], whole: list[str]) -> SourceUnavailable:
    if not models:
        return SourceUnavailable(
            f"hf:{spec.repo} holds no .gguf file; look for a repository of the same model whose "
            "name ends in -GGUF."
        )
    wanted = f"no file for {spec.quant!r}" if spec.quant else "no file of a usual quantization"
    is_cut = any(spec.quant and _is_of(_SHARD.sub(".gguf", path), spec.quant) for path in models)
    if is_cut or not whole:
        return SourceUnavailable(
            f"hf:{spec.repo} has this model only as split files (…-00001-of-…), which headrace "
            f"does not read; choose another quantization or repository. {_listed(whole)}"
        )
    return SourceUnavailable(f"hf:{spec.repo} has {wanted}. {_listed(whole)}")


def _listed(names: list[str]) -> str:
    return "It has " + ", ".join(names) + "." if names else ""


def _library(spec: HubSpec) -> Any:
    try:
        import huggingface_hub  # Optional, and slow to import: only where it is asked for.
    except ImportError:
        raise SourceUnavailable(
            f"{spec} needs the package huggingface_hub, which is not installed: "
            "pip install 'headrace[hf]'"
        ) from None
    return huggingface_hub


def _bar(report: Report, total: int | None) -> type:
    """What the library takes for its progress bar: it reports and draws nothing.

    Some downloads have two bars, for bytes that came and for bytes on disk: the further one counts.
    """
    base: Any = importlib.import_module("huggingface_hub.utils").tqdm
    furthest = 0

    class Reporting(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._num_bytes = int(kwargs.get("initial") or 0)
            super().__init__(*args, **kwargs | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest
            self._num_bytes += int(n or 0)
            furthest = max(furthest, self._num_bytes)
            report(Progress(Phase.DOWNLOADING, furthest, total))

    return Reporting


@contextmanager
def _explained(spec: HubSpec) -> Iterator[None]:
    """The library's many errors as ours, each with what to do about it."""
    try:
        yield
    except Exception as error:  # Its network errors come from whichever HTTP library it uses.
        raise _explain(spec, error) from error


def _explain(spec: HubSpec, error: Exception) -> PullError:
    from huggingface_hub import constants, errors

    where = constants.ENDPOINT
    if isinstance(error, errors.GatedRepoError):
        return SourceUnavailable(
            f"hf:{spec.repo} asks for a licence to be accepted: do so on {where}/{spec.repo}, "
            "then log in with `hf auth login`."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return SourceUnavailable(
            f"{where} has no repository {spec.repo!r}, or it is private: check the spelling, or "
            "log in with `hf auth login`."
        )
    if isinstance(error, errors.HFValidationError):
        return SourceUnavailable(f"{where} can have no repository {spec.repo!r}: {error}")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return SourceUnavailable(
            f"{spec} is not here and HF_HUB_OFFLINE forbids to ask for it; unset it and pull again."
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        remedy = "Log in with `hf auth login`." if status in (401, 403) else "Try again later."
        return SourceUnavailable(f"{where} does not give {spec} ({status}). {remedy}")
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return storage_error(Path(constants.HF_HUB_CACHE), error, _CACHE_VARIABLE)
    return SourceUnavailable(
        f"cannot fetch {spec} from {where}: {_first_line(error)}. "
        "Check the connection and the proxy settings (HTTPS_PROXY, HF_ENDPOINT)."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
