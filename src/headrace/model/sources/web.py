"""One file behind a URL, continued where it stopped.

A part is continued only when the server can promise that the rest belongs to it: the validator
(a strong ETag, else Last-Modified) that came with its first bytes is kept beside the part and sent
back as `If-Range`, so a changed file arrives whole, from its first byte.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from typing import IO, BinaryIO, cast
from urllib.parse import urlsplit

from headrace import __version__
from headrace.errors import SourceUnavailable
from headrace.model.sources.base import (
    CHUNK_BYTES,
    Phase,
    Progress,
    Report,
    Workspace,
    require_space,
    storing,
    writing,
)
from headrace.model.sources.spec import UrlSpec

TIMEOUT_S = 30.0
RETRY_WAITS_S: tuple[float, ...] = (0.5, 1, 2, 4, 8)
"""Waits between attempts that bring no new byte; any new byte starts the count again."""

_LONGEST_WAIT_S = 60.0
_TRY_AGAIN = {408, 429, 500, 502, 503, 504}
_WITHHELD = {401, 403, 407, 451}


class _InterruptedError(Exception):
    """This attempt ended early; another may go on from where it stopped."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class _PartFacts:
    """What a part is a part of."""

    source: str
    validator: str
    total_bytes: int | None


@dataclass(frozen=True)
class UrlOffer:
    """A URL promises neither size nor hash before it answers."""

    spec: UrlSpec
    num_bytes: int | None = None
    sha256: str | None = None

    @property
    def file_name(self) -> str:
        return self.spec.file_name

    def fetch(self, workspace: Workspace, report: Report) -> Path:
        num_vain = 0
        while True:
            before = _size(workspace)
            try:
                self._attempt(workspace, report)
                return workspace.part
            except _InterruptedError as error:
                num_vain = num_vain + 1 if _size(workspace) <= before else 0
                if num_vain >= len(RETRY_WAITS_S):
                    raise SourceUnavailable(
                        f"{self.spec}: {error}, after {num_vain} attempts without progress. "
                        "What came so far is kept; the same command goes on from there."
                    ) from error
                wait_s = max(RETRY_WAITS_S[num_vain], error.wait_s)
                report(_note(workspace, f"{error}; trying again in {wait_s:g} s"))
                time.sleep(wait_s)

    def _attempt(self, workspace: Workspace, report: Report) -> None:
        facts = _read_facts(workspace)
        if facts is None or facts.source != str(self.spec) or not facts.validator:
            workspace.clear()
        offset = _size(workspace)
        headers = {"User-Agent": f"headrace/{__version__}", "Accept-Encoding": "identity"}
        if facts is not None and offset:
            if offset == facts.total_bytes:
                return
            headers |= {"Range": f"bytes={offset}-", "If-Range": facts.validator}
        with self._open(headers, workspace) as response:
            if facts is not None and offset and not _continues(response, offset, facts):
                report(_note(workspace, "the file has changed at its source; starting over"))
                workspace.clear()
                if response.status != 200:
                    raise _InterruptedError("the server sent another range than asked for")
                offset = 0
            self._receive(response, offset, workspace, report)

    def _receive(
        self,
        response: http.client.HTTPResponse,
        offset: int,
        workspace: Workspace,
        report: Report,
    ) -> None:
        length = response.headers.get("Content-Length", "")
        total = offset + int(length) if length.isdecimal() else None
        if total is not None:
            require_space(workspace.folder, total - offset)
        if offset == 0:
            _write_facts(workspace, _PartFacts(str(self.spec), _validator(response.headers), total))
        with writing(workspace.part, "ab") as part:
            _pour(response, part, offset, total, workspace, report)

    def _open(self, headers: dict[str, str], workspace: Workspace) -> http.client.HTTPResponse:
        request = urllib.request.Request(self.spec.url, headers=headers)
        opener = urllib.request.build_opener(_Redirects())
        try:
            return cast(http.client.HTTPResponse, opener.open(request, timeout=TIMEOUT_S))
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, workspace) from error
        except urllib.error.URLError as error:
            raise self._unreachable(error.reason, workspace) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._unreachable(error, workspace) from error

    def _refusal(self, error: urllib.error.HTTPError, workspace: Workspace) -> Exception:
        status = f"{error.code} {error.reason}".strip()
        if error.code == 416:  # The part is not what the server has: begin again.
            workspace.clear()
            return _InterruptedError("the server has no such range")
        if error.code in _TRY_AGAIN:
            asked = error.headers.get("Retry-After", "")
            wait_s = min(float(asked), _LONGEST_WAIT_S) if asked.isdecimal() else 0.0
            return _InterruptedError(f"the server answered {status}", wait_s)
        if error.code in _WITHHELD:
            return SourceUnavailable(
                f"{self.spec} is not given to everyone: the server answered {status}. Fetch the "
                "file with a tool that can log in there, then `headrace pull FILE.gguf`."
            )
        return SourceUnavailable(
            f"{self.spec} cannot be fetched: the server answered {status}. Check the address."
        )

    def _unreachable(self, reason: object, workspace: Workspace) -> Exception:
        host = urlsplit(self.spec.url).hostname
        if _size(workspace):  # It answered before; networks come back.
            return _InterruptedError(f"no connection to {host} ({_plain(reason)})")
        if isinstance(reason, ssl.SSLCertVerificationError):
            return SourceUnavailable(
                f"{host} has no certificate that this machine trusts ({reason.verify_message}). "
                "Behind a company's proxy let SSL_CERT_FILE name its certificates."
            )
        return SourceUnavailable(
            f"cannot reach {host}: {_plain(reason)}. Check the address, the connection and the "
            "proxy settings (HTTPS_PROXY); without a network, bring the file and "
            "`headrace pull FILE.gguf`."
        )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to what can be read or changed on the way."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme != "https" and scheme != urlsplit(req.full_url).scheme:
            raise SourceUnavailable(
                f"{urlsplit(req.full_url).hostname} redirects from https to {scheme}, "
                "which would be unprotected; refused."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _pour(
    response: http.client.HTTPResponse,
    part: BinaryIO,
    offset: int,
    total: int | None,
    workspace: Workspace,
    report: Report,
) -> None:
    """Append what the response holds; a short one is an interruption, not an end."""
    done = offset
    report(Progress(Phase.DOWNLOADING, done, total))
    try:
        while chunk := response.read1(CHUNK_BYTES):
            with storing(workspace.part):
                part.write(chunk)
            done += len(chunk)
            report(Progress(Phase.DOWNLOADING, done, total))
    except (http.client.HTTPException, OSError) as error:
        raise _InterruptedError(f"the connection broke ({_plain(error)})") from error
    if total is not None and done < total:
        raise _InterruptedError("the server closed the connection early")


def _continues(response: http.client.HTTPResponse, offset: int, facts: _PartFacts) -> bool:
    """Whether the response is exactly the rest of our part."""
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    is_rest = response.status == 206 and found is not None and int(found[1]) == offset
    validator = _validator(response.headers)
    return is_rest and validator in ("", facts.validator)


def _validator(headers: Message[str, str]) -> str:
    """What `If-Range` may hold: a strong ETag, else the date; "" when the server gives neither."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")


def _read_facts(workspace: Workspace) -> _PartFacts | None:
    try:
        return _PartFacts(**json.loads(workspace.part_facts.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write_facts(workspace: Workspace, facts: _PartFacts) -> None:
    with storing(workspace.part_facts):
        workspace.part_facts.write_text(json.dumps(asdict(facts)), "utf-8")


def _size(workspace: Workspace) -> int:
    return workspace.part.stat().st_size if workspace.part.exists() else 0


def _note(workspace: Workspace, note: str) -> Progress:
    return Progress(Phase.DOWNLOADING, _size(workspace), note=note)


def _plain(reason: object) -> str:
    """A network error in words that need no traceback."""
    if isinstance(reason, socket.gaierror):
        return "its name is not known here, or this machine is offline"
    if isinstance(reason, TimeoutError):
        return f"no answer in {TIMEOUT_S:g} s"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return str(reason) or type(reason).__name__
