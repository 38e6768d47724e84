"""The parts that answers of several endpoints share: reasons, tool calls, log probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

from headrace.events import FinishReason, TokenLogprob, ToolCall, Usage
from headrace.wire.ask import JSON, Stamp

_UNLIKELY = -9999.0
"""What the API writes for a probability of 0, whose logarithm JSON cannot say."""


class Spelling(Protocol):
    """How tokens are written: a tokenizer."""

    def token_text(self, token: int) -> str:
        """For people to read; broken UTF-8 as U+FFFD."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """What the token adds to the text; nothing for control tokens."""
        ...


def finish_reason(reason: FinishReason) -> str:
    """The wire has no word for an answer that somebody stopped: it ended where it ended."""
    return "stop" if reason == "cancelled" else reason


def tool_call_object(call: ToolCall) -> dict[str, JSON]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def logprobs_content(logprobs: Iterable[TokenLogprob], spelling: Spelling) -> list[JSON]:
    """One entry for each token that says something, so that the tokens join to the text.

    What says nothing, like the token that ends the answer, is left out.
    """
    return [
        {
            **_token_logprob(said.token, said.logprob, spelling),
            "top_logprobs": [_token_logprob(token, value, spelling) for token, value in said.top],
        }
        for said in spoken(logprobs, spelling)
    ]


def spoken(logprobs: Iterable[TokenLogprob], spelling: Spelling) -> list[TokenLogprob]:
    """Without those of control tokens."""
    return [said for said in logprobs if spelling.token_bytes(said.token)]


def finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _UNLIKELY


def x_groq_first(stamp: Stamp, seed: int) -> dict[str, JSON]:
    return {"id": stamp.request_id, "seed": seed}


def x_groq_last(stamp: Stamp, usage: dict[str, JSON], cached: dict[str, JSON]) -> dict[str, JSON]:
    """`cached` says where cached tokens came from; empty where there were none."""
    return {"id": stamp.request_id, "usage": {**usage, **cached}}


def x_groq_whole(stamp: Stamp, seed: int, cached: dict[str, JSON]) -> dict[str, JSON]:
    """Of an answer that is not streamed; `cached` as for `x_groq_last`."""
    said = x_groq_first(stamp, seed)
    return {**said, "usage": cached} if cached else said


def x_headrace(stamp: Stamp, usage: Usage) -> dict[str, JSON]:
    """What is ours alone in an answer, at its end; nothing where nothing was asked for."""
    if stamp.context is None:
        return {}
    told = {**stamp.context, "cached_tokens": usage.num_cached_tokens}
    if "shifted_tokens" in told:
        told["shifted_tokens"] = usage.num_shifted_tokens
    return {"x_headrace": {"context": told}}


def _token_logprob(token: int, logprob: float, spelling: Spelling) -> dict[str, JSON]:
    return {
        "token": spelling.token_text(token),
        "logprob": finite(logprob),
        "bytes": list(spelling.token_bytes(token)),
    }
