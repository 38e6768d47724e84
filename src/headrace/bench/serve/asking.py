"""Whom a load asks: a server over HTTP, or an engine in this process.

In: messages. Out: a sample and the answer's text. Thread: one event loop's.
Next: `client.py` and `answer.py`, or `engine/engine.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import orjson

from headrace.bench.serve.answer import Sample, StreamedAnswer
from headrace.bench.serve.client import Pool, Server
from headrace.bench.serve.load import Messages
from headrace.engine.engine import Engine
from headrace.engine.request import Request
from headrace.errors import BenchError, HeadraceError
from headrace.events import Delta, Failed, Finished, Usage

GREEDY: Mapping[str, Any] = {"temperature": 0}
FULL_LENGTH: Mapping[str, Any] = {"temperature": 0, "ignore_eos": True}


class OverHTTP:
    """Implements `Asker`: streams from `/chat/completions`. A context manager."""

    def __init__(
        self,
        server: Server,
        model: str,
        *,
        fields: Mapping[str, Any] = GREEDY,
        timeout_s: float = 300.0,
    ) -> None:
        """`fields`: what else every body has."""
        self.server = server
        self.model = model
        self._fields = fields
        self._timeout_s = timeout_s
        self._pool = Pool(server)

    async def ask(self, messages: Messages, max_tokens: int, due_at: float) -> tuple[Sample, str]:
        body = self._body(messages, max_tokens)
        request = self.server.request("POST", "/chat/completions", body)
        answer, failure = StreamedAnswer(), None
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._pool.ask(request, answer)
        except TimeoutError:
            failure = "timeout"
        except OSError as error:
            failure = f"connection: {error.strerror or error}"
        return answer.sample(due_at, perf_counter(), failure), answer.text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.close()

    def _body(self, messages: Messages, max_tokens: int) -> bytes:
        return orjson.dumps(
            {
                "model": self.model,
                "messages": messages,
                "max_tokens": max_tokens,
                "stream": True,
                "stream_options": {"include_usage": True},
                **self._fields,
            }
        )


@dataclass(slots=True)
class InProcess:
    """Implements `Asker`: the engine itself, without a server; answers of full length."""

    engine: Engine
    _nothing: Usage = field(default=Usage(0, 0, 0), init=False)

    async def ask(self, messages: Messages, max_tokens: int, due_at: float) -> tuple[Sample, str]:
        token_at: list[float] = []
        said: list[str] = []
        usage, failure = self._nothing, "the stream ended without an end"
        request = Request(messages=messages, max_tokens=max_tokens, ignore_eos=True)
        try:
            async with self.engine.generate(request) as stream:
                async for event in stream:
                    match event:
                        case Delta():
                            token_at.append(perf_counter())
                            said.append(event.text)
                        case Finished():
                            usage, failure = event.usage, ""
                        case Failed():
                            failure = event.error.message
        except HeadraceError as error:
            failure = error.message
        sample = Sample(
            due_at,
            perf_counter(),
            tuple(token_at),
            usage.num_prompt_tokens,
            usage.num_cached_tokens,
            usage.num_completion_tokens,
            has_usage=True,
            error=failure or None,
        )
        return sample, "".join(said)


class _Whole:
    """Listens to an answer that is not streamed."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""

    def hear_status(self, status: int) -> None:
        self.status = status

    def hear_body(self, data: bytes, at: float) -> None:
        self.body += data


async def first_model(server: Server, timeout_s: float = 30.0) -> str:
    """The id of the first model that the server lists. Raises `BenchError`."""
    pool, answer = Pool(server), _Whole()
    try:
        async with asyncio.timeout(timeout_s):
            await pool.ask(server.request("GET", "/models"), answer)
        if answer.status != 200:
            raise BenchError(f"{server.url}/models answered {answer.status}: {answer.body[:200]!r}")
        return str(orjson.loads(answer.body)["data"][0]["id"])
    except TimeoutError:
        raise BenchError(f"{server.url} does not answer within {timeout_s:g} s") from None
    except OSError as error:
        said = error.strerror or error
        raise BenchError(
            f"nothing answers at {server.url} ({said}); start it with `headrace serve`"
        ) from None
    except (ValueError, LookupError, TypeError):
        raise BenchError(f"{server.url}/models lists no model; name one with --model") from None
    finally:
        pool.close()
