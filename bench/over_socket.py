"""A load's questions over WebSockets: one socket for each client, or one for all of them.

Used by `server_cost.py`. Implements `headrace.bench.serve.load.Asker`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from itertools import count
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect

from headrace.bench.serve.answer import Sample
from headrace.bench.serve.load import Messages


class OverSocket:
    """An asynchronous context manager."""

    def __init__(
        self, url: str, model: str, *, fields: Mapping[str, Any], num_sockets: int
    ) -> None:
        """`url` is the base of an API; questions take the sockets in turns."""
        self._url = url.replace("http://", "ws://") + "/chat/completions"
        self._body = {"model": model, "stream_options": {"include_usage": True}, **fields}
        self._num_sockets = num_sockets
        self._ids = count()
        self._answers: dict[str, asyncio.Queue[Any]] = {}

    async def __aenter__(self) -> Self:
        self._sockets = [
            await connect(self._url, compression=None) for _ in range(self._num_sockets)
        ]
        self._readers = [asyncio.create_task(self._read(socket)) for socket in self._sockets]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for socket in self._sockets:
            await socket.close()
        await asyncio.gather(*self._readers)

    async def ask(self, messages: Messages, max_tokens: int, due_at: float) -> tuple[Sample, str]:
        number = next(self._ids)
        answer_id = str(number)
        came = self._answers[answer_id] = asyncio.Queue()
        body = {"id": answer_id, "messages": messages, "max_tokens": max_tokens, **self._body}
        await self._sockets[number % self._num_sockets].send(json.dumps(body))
        token_at: list[float] = []
        said: list[str] = []
        usage: Mapping[str, Any] = {}
        error = None
        while (data := (message := await came.get()).get("data")) != "[DONE]" and error is None:
            error = message["error"]["message"] if "error" in message else None
            for choice in (data or {}).get("choices", ()):
                if content := choice["delta"].get("content"):
                    token_at.append(perf_counter())
                    said.append(content)
            usage = (data or {}).get("usage") or usage
        del self._answers[answer_id]
        num_prompt, num_said = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
        ended_at = perf_counter()
        return Sample(
            due_at, ended_at, tuple(token_at), num_prompt, 0, num_said, bool(usage), error
        ), "".join(said)

    async def _read(self, socket: ClientConnection) -> None:
        async for text in socket:
            message = json.loads(text)
            self._answers[message["id"]].put_nowait(message)
