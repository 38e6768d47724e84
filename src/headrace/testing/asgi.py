"""An ASGI application asked without a socket, message by message: nothing is buffered.

For tests of streams. What `httpx.ASGITransport` and Starlette's `TestClient` cannot do: see a body
grow, read it slowly, leave in the middle of the question or of the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias
from urllib.parse import unquote

App: TypeAlias = Callable[..., Any]
Headers: TypeAlias = Iterable[tuple[str, str]]

_MAX_TURNS = 10_000
"""Of the event loop, for something to happen that needs nothing from outside."""


class Call:
    """One request to `app`, from its first byte to the end of its response.

        call = Call(app, "POST", "/v1/chat/completions", b"{…}")
        await call.until(lambda: call.parts)
        call.leave()
        await call.ended()

    The application runs as a task of the loop that makes the call. `body` None: bytes come with
    `send_body`, one part at a time.
    """

    def __init__(
        self,
        app: App,
        method: str,
        path: str,
        body: bytes | None = b"",
        headers: Headers = (),
        **scope: Any,
    ) -> None:
        """`path` as on the wire: percent signs and all. `scope` changes what the server would say
        of the connection."""
        self.status: int | None = None
        """None until the response has begun."""
        self.headers: list[tuple[str, str]] = []
        self.parts: list[bytes] = []
        """Of the response's body, as they were sent; empty ones left out."""
        self.is_whole = False
        """The response's last byte was sent."""
        self._arriving: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self._may_send = asyncio.Event()
        self._may_send.set()
        self._has_left = False
        if body is not None:
            self.send_body(body, is_last=True)
        self._task = asyncio.create_task(
            app({**_scope(method, path, headers), **scope}, self._receive, self._send)
        )

    @property
    def body(self) -> bytes:
        """What has come of the response's body."""
        return b"".join(self.parts)

    @property
    def has_ended(self) -> bool:
        """The application has returned, or raised."""
        return self._task.done()

    def header(self, name: str) -> str | None:
        """The value of a header that is there once, None where it is not there."""
        values = [value for each, value in self.headers if each == name]
        if len(values) > 1:
            raise ValueError(f"the response has {len(values)} headers {name}")
        return values[0] if values else None

    def send_body(self, part: bytes, *, is_last: bool = False) -> None:
        """More of the request's body."""
        self._arriving.put_nowait({"type": "http.request", "body": part, "more_body": not is_last})

    def leave(self) -> None:
        """Close the connection; what is sent from now on goes nowhere."""
        self._has_left = True
        self._arriving.put_nowait({"type": "http.disconnect"})
        self._may_send.set()

    def stop_reading(self) -> None:
        """Let every `send` wait, as a server does whose client does not read."""
        self._may_send.clear()

    def read_on(self) -> None:
        self._may_send.set()

    async def until(self, is_so: Callable[[], Any]) -> None:
        """Give the loop turns until `is_so()`. Raises `TimeoutError` where that does not help."""
        for _ in range(_MAX_TURNS):
            if is_so():
                return
            await asyncio.sleep(0)
        raise TimeoutError("nothing more happens")

    async def ended(self) -> Call:
        """This call, when the application has returned. Raises what it raised."""
        await self._task
        return self

    async def _receive(self) -> Mapping[str, Any]:
        if self._has_left or self.is_whole:
            return {"type": "http.disconnect"}
        return await self._arriving.get()

    async def _send(self, message: Mapping[str, Any]) -> None:
        await self._may_send.wait()
        if self._has_left:
            return
        match message["type"]:
            case "http.response.start" if self.status is None:
                self.status = message["status"]
                self.headers = [(name.decode(), v.decode()) for name, v in message["headers"]]
            case "http.response.body" if self.status is not None and not self.is_whole:
                if message.get("body"):
                    self.parts.append(bytes(message["body"]))
                self.is_whole = not message.get("more_body", False)
            case kind:
                raise AssertionError(f"{kind} does not belong here")


def _scope(method: str, path: str, headers: Headers) -> dict[str, Any]:
    raw_path, _, query = path.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw_path),
        "raw_path": raw_path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
        "client": ("127.0.0.1", 12345),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
