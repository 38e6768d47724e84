"""An answer of `/completions`, the older shape, as bytes: chunk by chunk, or whole.

In: events. Out: SSE frames. Thread: the event loop. Next: `server/sse.py`.

A request may have several prompts, each with `n` choices. Choices are numbered through: those of
the second prompt follow those of the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headrace.events import (
    Choice,
    Delta,
    Event,
    Failed,
    Finished,
    FinishReason,
    Started,
    TokenLogprob,
    ToolCall,
)
from headrace.wire.answer_parts import (
    Spelling,
    finite,
    spoken,
    x_groq_last,
    x_groq_whole,
)
from headrace.wire.ask import JSON, Stamp
from headrace.wire.error_body import error_frame
from headrace.wire.json_bytes import body, compact, quoted
from headrace.wire.sse import DONE
from headrace.wire.usage import Ends, cached_where, usage_object

_AFTER_TEXT = b',"logprobs":null,"finish_reason":null}]}\n\n'


class CompletionStream:
    """One answer's frames. Encode every event in order; join or send the results."""

    def __init__(
        self,
        stamp: Stamp,
        *,
        n: int = 1,
        num_prompts: int = 1,
        include_usage: bool = False,
        spelling: Spelling | None = None,
    ) -> None:
        """`spelling`: where log probabilities were asked for."""
        self._stamp = stamp
        self._include_usage = include_usage
        self._spelling = spelling
        self._ends = Ends(num_prompts, n)
        self._head = b"data: " + compact(_head(stamp))[:-1] + b',"choices":['
        num_choices = num_prompts * n
        self._before = [self._head + b'{"index":%d,"text":' % i for i in range(num_choices)]
        self._num_characters = [0] * num_choices
        self.is_ended = False
        """The last frame has been given; what comes now is nothing."""

    def encode(self, event: Event) -> bytes:
        """The frames that `event` is; none for a delta whose text is still held back."""
        if self.is_ended:
            return b""
        match event:
            case Delta():
                return self._say(event)
            case Finished():
                return self._finish(event)
            case Failed():
                self.is_ended = True
                return error_frame(event.error)
            case Started() | ToolCall():
                return b""

    def _say(self, delta: Delta) -> bytes:
        index = delta.choice
        if self._spelling is None or not delta.new_logprobs:
            if not delta.text:
                return b""
            if not delta.token_ids:  # a prompt that is echoed: tokens are counted from behind it
                self._num_characters[index] += len(delta.text)
            return self._before[index] + quoted(delta.text) + _AFTER_TEXT
        columns = _Columns.of(delta.new_logprobs, self._spelling, self._num_characters[index])
        if not delta.text and not columns.tokens:
            return b""
        self._num_characters[index] = columns.end
        after = b',"logprobs":' + compact(columns.as_wire()) + b',"finish_reason":null}]}\n\n'
        return self._before[index] + quoted(delta.text) + after

    def _finish(self, end: Finished) -> bytes:
        """The choice's last chunk; the last choice's has the usage, and what ends the stream."""
        reason = quoted(_reason(end.reason))
        start = self._before[end.choice] + b'"","logprobs":null,"finish_reason":' + reason
        self._ends.add(end.choice, end)
        if not self._ends.are_all:
            return start + b"}]}\n\n"
        self.is_ended = True
        usage = self._ends.usage_object()
        x_groq = x_groq_last(self._stamp, usage, self._ends.cached_where())
        tail = compact({"usage": usage, "x_groq": x_groq})[1:]
        return start + b"}]," + tail + b"\n\n" + self._usage_chunk(usage) + DONE

    def _usage_chunk(self, usage: JSON) -> bytes:
        if not self._include_usage:
            return b""
        return self._head + b"]," + compact({"usage": usage})[1:] + b"\n\n"


def completion_answer(
    stamp: Stamp,
    prompts: Sequence[Sequence[Choice]],
    *,
    seed: int,
    spelling: Spelling | None = None,
    echoes: Sequence[str] = (),
) -> bytes:
    """The whole answer, of each prompt's choices. `spelling` as for `CompletionStream`; `echoes`:
    what each choice says before what was generated."""
    choices = [choice for prompt in prompts for choice in prompt]
    before = list(echoes) or [""] * len(choices)
    return body(
        {
            **_head(stamp),
            "choices": [
                _choice(index, choice, spelling, before[index])
                for index, choice in enumerate(choices)
            ],
            "usage": usage_object(prompts),
            "x_groq": x_groq_whole(stamp, seed, cached_where(prompts)),
        }
    )


def _head(stamp: Stamp) -> dict[str, JSON]:
    return {
        "id": stamp.id,
        "object": "text_completion",
        "created": stamp.created,
        "model": stamp.model,
        "system_fingerprint": stamp.fingerprint,
    }


def _choice(index: int, choice: Choice, spelling: Spelling | None, echo: str) -> dict[str, JSON]:
    return {
        "index": index,
        "text": echo + choice.text,
        "logprobs": spelling and _Columns.of(choice.logprobs, spelling, len(echo)).as_wire(),
        "finish_reason": _reason(choice.reason),
    }


def _reason(reason: FinishReason) -> str:
    return "length" if reason == "length" else "stop"


@dataclass(frozen=True, slots=True)
class _Columns:
    """Log probabilities as this endpoint has them: a column for each property."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]
    """Characters of the text before each token."""
    end: int
    """Characters of the text with all of them."""

    @classmethod
    def of(cls, logprobs: Iterable[TokenLogprob], spelling: Spelling, start: int) -> _Columns:
        """`start`: characters of the text before the first of them."""
        tokens, values, tops, offsets = [], [], [], []
        for said in spoken(logprobs, spelling):
            tokens.append(_spell(said.token, spelling))
            values.append(finite(said.logprob))
            tops.append(_top(said, spelling))
            offsets.append(start)
            start += _num_characters(spelling.token_bytes(said.token))
        return cls(tokens, values, tops, offsets, start)

    def as_wire(self) -> dict[str, JSON]:
        return {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }


def _top(said: TokenLogprob, spelling: Spelling) -> dict[str, float]:
    """The alternatives and the sampled token by spelling; of two spelt alike, the better."""
    top: dict[str, float] = {}
    for token, logprob in (*said.top, (said.token, said.logprob)):
        top.setdefault(_spell(token, spelling), finite(logprob))
    return top


def _spell(token: int, spelling: Spelling) -> str:
    """Its text; where a character is cut, its bytes, so that two of them differ as names."""
    data = spelling.token_bytes(token)
    try:
        return data.decode() or spelling.token_text(token)
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _num_characters(data: bytes) -> int:
    """Characters that begin in `data`."""
    return sum(byte & 0xC0 != 0x80 for byte in data)
