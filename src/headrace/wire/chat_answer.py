"""A chat answer as bytes: chunk by chunk, or whole.

In: events. Out: SSE frames. Thread: the event loop. Next: `server/sse.py`.

The first chunk has `content: ""` also where a tool call may follow: it is sent before anybody knows
what the model will say. Where a call is forced it has `content: null`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headrace.events import Choice, Delta, Event, Failed, Finished, Started, TokenLogprob, ToolCall
from headrace.wire.answer_parts import (
    Spelling,
    finish_reason,
    logprobs_content,
    tool_call_object,
    x_groq_first,
    x_groq_last,
    x_groq_whole,
    x_headrace,
)
from headrace.wire.ask import JSON, Stamp
from headrace.wire.error_body import error_frame
from headrace.wire.json_bytes import body, compact, quoted
from headrace.wire.sse import DONE
from headrace.wire.usage import Ends, cached_where, prompt_usage, usage_object

_AFTER_TEXT = b'},"logprobs":null,"finish_reason":null}]}\n\n'


class ChatStream:
    """One answer's frames. Encode every event in order; join or send the results.

    The bytes that all chunks of a choice share are made once; a token costs its own text.
    """

    def __init__(
        self,
        stamp: Stamp,
        *,
        seed: int,
        n: int = 1,
        include_usage: bool = False,
        spelling: Spelling | None = None,
        must_call: bool = False,
    ) -> None:
        """`spelling`: where log probabilities were asked for. `must_call`: a tool is called, so
        nothing is said."""
        self._stamp = stamp
        self._first_content = b"null" if must_call else b'""'
        self._seed = seed
        self._include_usage = include_usage
        self._spelling = spelling
        self._ends = Ends(1, n)
        self._opened = [False] * n
        self._head = b"data: " + compact(_head(stamp))[:-1] + b',"choices":['
        deltas = [self._head + b'{"index":%d,"delta":{' % choice for choice in range(n)]
        self._before = deltas
        self._before_content = [before + b'"content":' for before in deltas]
        self._before_reasoning = [before + b'"reasoning":' for before in deltas]
        self.is_ended = False
        """The last frame has been given; what comes now is nothing."""

    def encode(self, event: Event) -> bytes:
        """The frames that `event` is; none for a delta whose text is still held back."""
        if self.is_ended:
            return b""
        match event:
            case Delta():
                return self._say(event)
            case Started():
                return self._open(event.choice)
            case ToolCall():
                return self._call(event)
            case Finished():
                return self._finish(event)
            case Failed():
                self.is_ended = True
                return error_frame(event.error)

    def _say(self, delta: Delta) -> bytes:
        if self._spelling is None or not delta.new_logprobs:
            after = _AFTER_TEXT
        else:
            after = _after_text(delta.new_logprobs, self._spelling)
        choice, text = delta.choice, delta.text
        if delta.reasoning:
            thought = self._before_reasoning[choice] + quoted(delta.reasoning)
            if not text:
                return thought + after
            return thought + _AFTER_TEXT + self._before_content[choice] + quoted(text) + after
        if text or after is not _AFTER_TEXT:
            return self._before_content[choice] + quoted(text) + after
        return b""

    def _open(self, choice: int) -> bytes:
        self._opened[choice] = True
        tail = compact({"x_groq": x_groq_first(self._stamp, self._seed)})[1:]
        start = self._before[choice] + b'"role":"assistant","content":' + self._first_content
        return start + b'},"logprobs":null,"finish_reason":null}],' + tail + b"\n\n"

    def _call(self, call: ToolCall) -> bytes:
        calls = [{**tool_call_object(call), "index": call.index}]
        return self._before[call.choice] + b'"tool_calls":' + compact(calls) + _AFTER_TEXT

    def _finish(self, end: Finished) -> bytes:
        """The choice's last chunk; the last choice's has the usage, and what ends the stream."""
        opening = b"" if self._opened[end.choice] else self._open(end.choice)
        reason = quoted(finish_reason(end.reason))
        start = opening + self._before[end.choice] + b'},"logprobs":null,"finish_reason":' + reason
        self._ends.add(end.choice, end)
        if not self._ends.are_all:
            return start + b"}]}\n\n"
        self.is_ended = True
        usage = self._ends.usage_object()
        x_groq = x_groq_last(self._stamp, usage, self._ends.cached_where())
        ours = x_headrace(self._stamp, self._ends.usage())
        tail = compact({"x_groq": x_groq, "usage": usage, **ours})[1:]
        return start + b"}]," + tail + b"\n\n" + self._usage_chunk(usage) + DONE

    def _usage_chunk(self, usage: JSON) -> bytes:
        if not self._include_usage:
            return b""
        tail = compact({"usage": usage, "service_tier": self._stamp.service_tier})[1:]
        return self._head + b"]," + tail + b"\n\n"


def chat_answer(
    stamp: Stamp, choices: Sequence[Choice], *, seed: int, spelling: Spelling | None = None
) -> bytes:
    """The whole answer: what folding its stream gives. `spelling` as for `ChatStream`."""
    return body(
        {
            "id": stamp.id,
            "object": "chat.completion",
            "created": stamp.created,
            "model": stamp.model,
            "choices": [_choice(choice, spelling) for choice in choices],
            "usage": usage_object([choices]),
            "usage_breakdown": None,
            "system_fingerprint": stamp.fingerprint,
            "x_groq": x_groq_whole(stamp, seed, cached_where([choices])),
            "service_tier": stamp.service_tier,
            **x_headrace(stamp, prompt_usage(choices)),
        }
    )


def _head(stamp: Stamp) -> dict[str, JSON]:
    return {
        "id": stamp.id,
        "object": "chat.completion.chunk",
        "created": stamp.created,
        "model": stamp.model,
        "system_fingerprint": stamp.fingerprint,
    }


def _after_text(logprobs: Iterable[TokenLogprob], spelling: Spelling) -> bytes:
    content = logprobs_content(logprobs, spelling)
    if not content:
        return _AFTER_TEXT
    return b'},"logprobs":' + compact({"content": content}) + b',"finish_reason":null}]}\n\n'


def _choice(choice: Choice, spelling: Spelling | None) -> dict[str, JSON]:
    return {
        "index": choice.index,
        "message": _message(choice),
        "logprobs": spelling and {"content": logprobs_content(choice.logprobs, spelling)},
        "finish_reason": finish_reason(choice.reason),
    }


def _message(choice: Choice) -> dict[str, JSON]:
    """Keys that have nothing to say are absent; only calls make the content one of them."""
    message: dict[str, JSON] = {"role": "assistant"}
    if choice.text or not choice.tool_calls:
        message["content"] = choice.text
    if choice.reasoning:
        message["reasoning"] = choice.reasoning
    if choice.tool_calls:
        message["tool_calls"] = [tool_call_object(call) for call in choice.tool_calls]
    return message
