"""One answer as its client sees it: when tokens came, what it cost, how it ended.

In: pieces of a body. Out: a `Sample`. Thread: the event loop. Next: `report.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import orjson

from headrace.bench.serve.client import Listener
from headrace.wire.sse import EventDecoder

_SPOKEN = ("content", "reasoning", "reasoning_content", "tool_calls")
"""Parts of a delta that hold what the model said, in the dialects of several servers."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request that was sent. Moments are seconds of `perf_counter`."""

    begun_at: float
    """When it was sent; in open loop when it was due, so that nothing hides in the generator."""
    ended_at: float
    token_at: tuple[float, ...]
    """When each chunk with something said came."""
    num_prompt_tokens: int
    num_cached_tokens: int
    num_completion_tokens: int
    has_usage: bool
    """False: the server told no usage, and chunks were counted as tokens."""
    error: str | None = None
    """Status and code, or what went wrong on the way; None where the answer came whole."""

    @property
    def ttft_s(self) -> float:
        """Of an answer that has tokens."""
        return self.token_at[0] - self.begun_at

    @property
    def e2e_s(self) -> float:
        return self.ended_at - self.begun_at

    @property
    def gaps_s(self) -> Iterator[float]:
        return (later - earlier for earlier, later in pairwise(self.token_at))

    @property
    def tokens_per_second(self) -> float | None:
        """From the first token to the last one; None where nothing followed the first."""
        span_s = self.token_at[-1] - self.token_at[0] if self.token_at else 0.0
        return (self.num_completion_tokens - 1) / span_s if span_s > 0 else None


class StreamedAnswer(Listener):
    """Listens to one streamed answer, of `/chat/completions` or `/completions`.

    What comes is only noted, with its time, and read when the answer is looked at: reading takes
    time of the cores that the server needs for its next token.
    """

    def __init__(self) -> None:
        self._status = 0
        self._events = EventDecoder()
        self._refusal = b""
        self._unread: list[tuple[bytes, float]] = []
        self._token_at: list[float] = []
        self._text: list[str] = []
        self._usage: Mapping[str, Any] | None = None
        self._has_ended = False
        self._error: str | None = None

    def hear_status(self, status: int) -> None:
        self._status = status

    def hear_body(self, data: bytes, at: float) -> None:
        if self._status == 200:
            self._unread.append((data, at))
        else:
            self._refusal += data

    @property
    def text(self) -> str:
        """What was said so far, without what was thought."""
        self._read()
        return "".join(self._text)

    def sample(self, begun_at: float, ended_at: float, failure: str | None) -> Sample:
        """`failure`: what went wrong on the way, where something did."""
        self._read()
        usage = self._usage or {}
        details = usage.get("prompt_tokens_details") or {}
        return Sample(
            begun_at,
            ended_at,
            tuple(self._token_at),
            int(usage.get("prompt_tokens") or 0),
            int(details.get("cached_tokens") or 0),
            int(usage.get("completion_tokens") or 0) if usage else len(self._token_at),
            bool(usage),
            self._verdict(failure),
        )

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        for data, at in unread:
            for event in self._events.feed(data):
                if event.data == "[DONE]":
                    self._has_ended = True
                else:
                    self._hear_chunk(event.data, at)

    def _hear_chunk(self, payload: str, at: float) -> None:
        try:
            chunk = orjson.loads(payload)
            if error := chunk.get("error"):
                self._error = f"in mid-stream: {_code(error)}"
                return
            for choice in chunk.get("choices") or ():
                self._hear_choice(choice, at)
            self._hear_usage(chunk)
        except (orjson.JSONDecodeError, AttributeError, TypeError):
            self._error = "a chunk is not what the API promises"

    def _hear_choice(self, choice: Mapping[str, Any], at: float) -> None:
        delta = choice.get("delta") or {}
        said = choice.get("text") or delta.get("content")
        if said:
            self._text.append(said)
        if said or any(delta.get(part) for part in _SPOKEN):
            self._token_at.append(at)
        if choice.get("finish_reason"):
            self._has_ended = True

    def _hear_usage(self, chunk: Mapping[str, Any]) -> None:
        usage = chunk.get("usage") or (chunk.get("x_groq") or {}).get("usage")
        if usage:
            self._usage = usage

    def _verdict(self, failure: str | None) -> str | None:
        if self._status not in (0, 200):
            return f"{self._status} {_refusal_code(self._refusal)}".rstrip()
        if self._error is not None:
            return self._error
        if failure is not None:
            return failure
        if not self._has_ended:
            return "the stream ended without an end"
        return None if self._token_at else "no tokens came"


def _code(error: Any) -> str:
    if not isinstance(error, Mapping):
        return str(error)[:60]
    return str(error.get("code") or error.get("type") or error.get("message") or "")[:60]


def _refusal_code(body: bytes) -> str:
    try:
        return _code(orjson.loads(body)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""
