"""A web server on the loopback address that misbehaves on demand."""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

HOLD_AT_MOST_S = 60.0


@dataclass
class Served:
    """One file of the server, and how it is to misbehave.

    `cuts`: how many body bytes each coming request gets before its connection is closed.
    `statuses`: what the coming requests are answered with instead of the file.
    `hold_after`: stop after so many body bytes until `release` is set; `is_held` says it happened.
    """

    body: bytes
    etag: str = '"one"'
    has_ranges: bool = True
    minds_if_range: bool = True
    has_length: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    hold_after: int | None = None
    is_held: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Asked:
    """One request that the server had."""

    method: str
    path: str
    headers: Message


class FileServer:
    """Serves `files` by path; remembers what was `asked`. Ends with the `with` block."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.asked: list[Asked] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def serve(self, path: str, body: bytes, **how: Any) -> Served:
        self.files[path] = Served(body, **how)
        return self.files[path]

    def ranges(self) -> list[str | None]:
        """The Range header of each GET so far."""
        return [asked.headers["Range"] for asked in self.asked if asked.method == "GET"]

    def __enter__(self) -> FileServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for served in self.files.values():
            served.release.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(Asked(self.command, self.path, self.headers))
                served = server.files.get(urlsplit(self.path).path)
                if served is None:
                    self.send_error(404)
                elif served.statuses:
                    self._refuse(served)
                else:
                    self._serve(served)

            do_HEAD = do_GET  # noqa: N815 (http.server looks these up by name)

            def _refuse(self, served: Served) -> None:
                self.send_response(served.statuses.pop(0))
                for name, value in served.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def _serve(self, served: Served) -> None:
                start = self._start(served)
                body = served.body[start:]
                if start > len(served.body):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                if start:
                    last = len(served.body) - 1
                    self.send_header("Content-Range", f"bytes {start}-{last}/{last + 1}")
                if served.has_length:
                    self.send_header("Content-Length", str(len(body)))
                if served.etag:
                    self.send_header("ETag", served.etag)
                for name, value in served.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self._send(served, body)

            def _start(self, served: Served) -> int:
                found = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
                is_same = self.headers["If-Range"] in (None, served.etag)
                is_same |= not served.minds_if_range
                return int(found[1]) if found and served.has_ranges and is_same else 0

            def _send(self, served: Served, body: bytes) -> None:
                self.close_connection = True
                if served.cuts:
                    body = body[: served.cuts.pop(0)]
                if served.hold_after is not None and not served.release.is_set():
                    self.wfile.write(body[: served.hold_after])
                    self.wfile.flush()
                    served.is_held.set()
                    served.release.wait(HOLD_AT_MOST_S)
                    body = body[served.hold_after :]
                self.wfile.write(body)

            def handle(self) -> None:
                with suppress(ConnectionError):  # The client left, as these tests make it do.
                    super().handle()

            def log_message(self, *args: Any) -> None:
                pass

        return Handler
