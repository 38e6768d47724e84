"""A real browser without a window, and a proxy that cuts its connections."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def browser_page() -> Iterator[Page]:
    """An empty page of the browser of this machine; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, headless=True, args=["--no-sandbox"]
        )
        try:
            yield browser.new_page()
        finally:
            browser.close()


@dataclass
class CuttingProxy:
    """Stands before a server: shows `page` at `/`, passes all else on, and cuts one response after
    another after so many bytes."""

    upstream: str
    page: str
    cuts: list[int]
    """How long the next responses become; those that follow are whole."""
    asked: list[bytes] = field(default_factory=list)
    """The heads of the requests that were passed on."""
    url: str = ""

    @contextmanager
    def running(self) -> Iterator[CuttingProxy]:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            threading.Thread(target=self._accept, args=(listening,), daemon=True).start()
            yield self
            listening.shutdown(socket.SHUT_RDWR)

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            head = _head(client)
            path = head.split(b" ")[1] if head else b"/nothing"
            if path == b"/":
                body = self.page.encode()
                client.sendall(_OK % len(body) + body)
            elif path.startswith(b"/v1/"):
                self.asked.append(head)
                self._pass_on(client, head, self.cuts.pop(0) if self.cuts else None)
            else:
                client.sendall(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

    def _pass_on(self, client: socket.socket, head: bytes, num_left: int | None) -> None:
        address = urlsplit(self.upstream)
        assert address.hostname and address.port
        with socket.create_connection((address.hostname, address.port)) as server:
            server.sendall(head.replace(b"keep-alive", b"close"))
            while data := server.recv(65_536):
                client.sendall(data if num_left is None else data[:num_left])
                if num_left is not None:
                    num_left -= len(data)
                    if num_left <= 0:
                        break


_OK = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
)


def _head(client: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n") and (data := client.recv(65_536)):
        head += data
    return head
