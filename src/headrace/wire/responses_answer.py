"""An answer of `/responses` as bytes: event by event, or whole.

In: events. Out: SSE frames. Thread: the event loop. Next: `server/sse.py`.

An answer is a list of items: thoughts, a message, calls of functions. One item is open at a time;
whatever comes that does not belong to it closes it. Item ids follow from the answer's id, so the
same events give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Literal, TypeAlias

from headrace.errors import HeadraceError
from headrace.events import (
    Choice,
    Delta,
    Event,
    Failed,
    Finished,
    FinishReason,
    Started,
    ToolCall,
)
from headrace.wire.answer_parts import Spelling, logprobs_content, x_headrace
from headrace.wire.ask import DEFAULT_TEMPERATURE, JSON, Stamp
from headrace.wire.ids import item_id
from headrace.wire.json_bytes import body, compact, quoted
from headrace.wire.sse import json_frame
from headrace.wire.usage import Ended, responses_usage, times_in_words

Status: TypeAlias = Literal["in_progress", "completed", "incomplete", "cancelled", "failed"]

_Kind: TypeAlias = Literal["reasoning", "message"]

_PREFIXES = {"reasoning": "rs", "message": "msg", "function_call": "fc"}
_PARTS = {"reasoning": "reasoning_text", "message": "output_text"}
_OWN = frozenset({"id", "object", "status", "created_at", "output", "model"}) | {
    "service_tier",
    "error",
    "incomplete_details",
    "usage",
}
"""What the answer says of itself, and no echo may change."""
_TIERS = {"on_demand": "default", "performance": "priority"}
"""This endpoint's names of service tiers, where they differ."""


class ResponsesStream:
    """One answer's frames. Encode every event of its one choice in order.

    There is no `[DONE]`: `response.completed`, `.incomplete` or `.failed` is the end.
    """

    def __init__(
        self,
        stamp: Stamp,
        *,
        echo: Mapping[str, JSON] | None = None,
        spelling: Spelling | None = None,
    ) -> None:
        """`echo`: fields of the request that the answer repeats (`instructions`, `tools`, …).
        `spelling`: where log probabilities were asked for. Raises `ValueError` for an echo of what
        is the answer's own."""
        self._stamp = stamp
        self._echo = _checked(echo)
        self._spelling = spelling
        self._numbers = count()
        self._items: list[JSON] = []
        self._open: _OpenItem | None = None
        self._pending: list[JSON] = []
        self._is_begun = False
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
                return self._begin()
            case ToolCall():
                return self._call(event)
            case Finished():
                return self._finish(event)
            case Failed():
                return self._fail(event)

    def _begin(self) -> bytes:
        self._is_begun = True
        response = self._response("in_progress")
        kinds = ("response.created", "response.in_progress")
        return b"".join([self._frame(kind, response=response) for kind in kinds])

    def _say(self, delta: Delta) -> bytes:
        if self._spelling is not None and delta.new_logprobs:
            self._pending += logprobs_content(delta.new_logprobs, self._spelling)
        frames = b""
        if delta.reasoning:
            frames = self._opened("reasoning") + self._extend(delta.reasoning)
        if delta.text:
            frames += self._opened("message") + self._extend(delta.text)
        return frames

    def _opened(self, kind: _Kind) -> bytes:
        """Frames until an item of this kind is open; none where it is already."""
        if self._open is not None and self._open.kind == kind:
            return b""
        closing = self._close("completed")
        item = self._open = _OpenItem(kind, len(self._items), self._id_of_next(kind))
        added = self._frame(
            "response.output_item.added", output_index=item.index, item=item.beginning()
        )
        part = self._frame("response.content_part.added", **item.place(), part=item.part(""))
        return closing + added + part

    def _extend(self, text: str) -> bytes:
        item = self._open
        assert item is not None
        item.texts.append(text)
        before, after = item.around_text
        if item.kind == "message" and self._pending:
            item.logprobs += self._pending
            after = b',"logprobs":' + compact(self._pending) + b"}\n\n"
            self._pending = []
        return before + b"%d" % next(self._numbers) + item.before_text + quoted(text) + after

    def _call(self, call: ToolCall) -> bytes:
        closing = self._close("completed")
        index, name = len(self._items), self._id_of_next("function_call")
        place = {"item_id": name, "output_index": index}
        self._items.append(_call_item(name, call, "completed"))
        begun = {**_call_item(name, call, "in_progress"), "arguments": ""}
        arguments = "response.function_call_arguments"
        return (
            closing
            + self._frame("response.output_item.added", output_index=index, item=begun)
            + self._frame(f"{arguments}.delta", **place, delta=call.arguments)
            + self._frame(f"{arguments}.done", **place, arguments=call.arguments)
            + self._frame("response.output_item.done", output_index=index, item=self._items[-1])
        )

    def _close(self, status: Status) -> bytes:
        """Frames that end the open item, if there is one."""
        item = self._open
        if item is None:
            return b""
        if item.kind == "message":
            item.logprobs += self._pending
            self._pending = []
        self._open = None
        whole, text = item.whole(status), "".join(item.texts)
        self._items.append(whole)
        done = {"text": text, **({"logprobs": item.logprobs} if item.kind == "message" else {})}
        return (
            self._frame(f"response.{item.part_kind}.done", **item.place(), **done)
            + self._frame("response.content_part.done", **item.place(), part=item.part(text))
            + self._frame("response.output_item.done", output_index=item.index, item=whole)
        )

    def _finish(self, end: Finished) -> bytes:
        frames = b"" if self._is_begun else self._begin()
        if self._open is None and not self._items:
            frames += self._opened("message")
        status = _status(end.reason)
        frames += self._close(_item_status(status))
        self.is_ended = True
        # There is no event for what was stopped.
        kind = "response.incomplete" if status == "cancelled" else f"response.{status}"
        return frames + self._frame(kind, response=self._response(status, end))

    def _fail(self, end: Failed) -> bytes:
        frames = b"" if self._is_begun else self._begin()
        frames += self._close("incomplete")
        self.is_ended = True
        response = self._response("failed", end, end.error)
        return frames + self._frame("response.failed", response=response)

    def _response(
        self, status: Status, end: Ended | None = None, error: HeadraceError | None = None
    ) -> dict[str, JSON]:
        return _response(self._stamp, self._echo, status, list(self._items), end, error)

    def _id_of_next(self, kind: str) -> str:
        return item_id(_PREFIXES[kind], self._stamp.id, len(self._items))

    def _frame(self, kind: str, **fields: JSON) -> bytes:
        event = {"type": kind, "sequence_number": next(self._numbers), **fields}
        return json_frame(event, kind)


@dataclass(slots=True)
class _OpenItem:
    """Thoughts or a message that more text may come to."""

    kind: _Kind
    index: int
    id: str
    texts: list[str] = field(default_factory=list)
    logprobs: list[JSON] = field(default_factory=list)
    part_kind: str = field(init=False)
    around_text: tuple[bytes, bytes] = field(init=False)
    before_text: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.part_kind = _PARTS[self.kind]
        kind = f"response.{self.part_kind}.delta".encode()
        before = b"event: " + kind + b'\ndata: {"type":"' + kind + b'","sequence_number":'
        after = b',"logprobs":[]}\n\n' if self.kind == "message" else b"}\n\n"
        self.around_text = before, after
        self.before_text = b"," + compact(self.place())[1:-1] + b',"delta":'

    def place(self) -> dict[str, JSON]:
        return {"item_id": self.id, "output_index": self.index, "content_index": 0}

    def part(self, text: str) -> dict[str, JSON]:
        return _part(self.kind, text, self.logprobs)

    def beginning(self) -> dict[str, JSON]:
        return _text_item(self.kind, self.id, [], "in_progress")

    def whole(self, status: Status) -> dict[str, JSON]:
        return _text_item(self.kind, self.id, [self.part("".join(self.texts))], status)


def responses_answer(
    stamp: Stamp,
    choice: Choice,
    *,
    echo: Mapping[str, JSON] | None = None,
    spelling: Spelling | None = None,
) -> bytes:
    """The whole answer: what folding its stream gives. Arguments as for `ResponsesStream`."""
    status = _status(choice.reason)
    output = _output(stamp, choice, status, spelling)
    return body(_response(stamp, _checked(echo), status, output, choice, None))


def begun_response(stamp: Stamp, echo: Mapping[str, JSON] | None = None) -> dict[str, JSON]:
    """The response object before its first word."""
    return _response(stamp, _checked(echo), "in_progress", [], None, None)


def ended_fields(event: Finished | Failed) -> dict[str, JSON]:
    """What the end of an answer says in its response object."""
    if isinstance(event, Failed):
        return _ended("failed", event, event.error)
    return _ended(_status(event.reason), event, None)


def _output(
    stamp: Stamp, choice: Choice, status: Status, spelling: Spelling | None
) -> list[dict[str, JSON]]:
    texts: list[tuple[_Kind, str]] = []
    if choice.reasoning:
        texts.append(("reasoning", choice.reasoning))
    if choice.text or not (choice.reasoning or choice.tool_calls):
        texts.append(("message", choice.text))
    said = logprobs_content(choice.logprobs, spelling) if spelling else []
    items = []
    for index, (kind, text) in enumerate(texts):
        is_last = index == len(texts) - 1 and not choice.tool_calls
        name = item_id(_PREFIXES[kind], stamp.id, index)
        part = _part(kind, text, said)
        items.append(
            _text_item(kind, name, [part], _item_status(status) if is_last else "completed")
        )
    for index, call in enumerate(choice.tool_calls, len(items)):
        items.append(_call_item(item_id("fc", stamp.id, index), call, "completed"))
    return items


def _text_item(kind: _Kind, name: str, content: list[JSON], status: Status) -> dict[str, JSON]:
    if kind == "reasoning":
        return {
            "type": kind,
            "id": name,
            "status": status,
            "content": content,
            "summary": [],
        }
    return {"type": kind, "id": name, "status": status, "role": "assistant", "content": content}


def _part(kind: _Kind, text: str, logprobs: list[JSON]) -> dict[str, JSON]:
    part: dict[str, JSON] = {"type": _PARTS[kind], "text": text}
    if kind == "message":
        part["annotations"] = []
        if logprobs:
            part["logprobs"] = logprobs
    return part


def _call_item(name: str, call: ToolCall, status: Status) -> dict[str, JSON]:
    return {
        "type": "function_call",
        "id": name,
        "status": status,
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }


def _status(reason: FinishReason) -> Status:
    """Of a response whose answer ended so."""
    if reason == "cancelled":
        return "cancelled"
    return "incomplete" if reason == "length" else "completed"


def _item_status(status: Status) -> Status:
    """Of a response's last item, which knows fewer."""
    return "incomplete" if status == "cancelled" else status


def _response(
    stamp: Stamp,
    echo: Mapping[str, JSON],
    status: Status,
    output: list[dict[str, JSON]],
    end: Ended | None,
    error: HeadraceError | None,
) -> dict[str, JSON]:
    """The response object, as it is at this moment; its fields in the order of the API's pages."""
    fields: dict[str, JSON] = {
        "id": stamp.id,
        "object": "response",
        "status": status,
        "created_at": stamp.created,
        "output": output,
        "previous_response_id": None,
        "model": stamp.model,
        "reasoning": {"effort": None, "summary": None},
        "max_output_tokens": None,
        "instructions": None,
        "text": {"format": {"type": "text"}},
        "tools": [],
        "tool_choice": "auto",
        "truncation": "disabled",
        "metadata": {},
        "temperature": DEFAULT_TEMPERATURE,
        "top_p": 1.0,
        "user": None,
        "service_tier": _TIERS.get(stamp.service_tier, stamp.service_tier),
        "error": None,
        "incomplete_details": None,
        "usage": None,
        "parallel_tool_calls": True,
        "store": False,
    }
    ours = x_headrace(stamp, end.usage) if end else {}
    said = {**fields, **_ended(status, end, error), **echo, **ours}
    if stamp.tells_times and end is not None:
        said["metadata"] = {**said["metadata"], **times_in_words(end)}
    return said


def _ended(status: Status, end: Ended | None, error: HeadraceError | None) -> dict[str, JSON]:
    is_cut = status == "incomplete"
    return {
        "status": status,
        "error": error and _error(error),
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "usage": end and responses_usage(end),
    }


def _error(error: HeadraceError) -> dict[str, JSON]:
    """The endpoint knows few codes; what the error calls itself stands in `type`."""
    if error.status == 429:
        code = "rate_limit_exceeded"
    else:
        code = "invalid_prompt" if error.status < 500 else "server_error"
    said = {"code": code, "message": error.message, "type": error.code or error.wire_type}
    extras = {"param": error.param, "failed_generation": error.failed_generation}
    return said | {name: value for name, value in extras.items() if value is not None}


def _checked(echo: Mapping[str, JSON] | None) -> Mapping[str, JSON]:
    own = sorted(_OWN.intersection(echo or ()))
    if own:
        raise ValueError(f"the answer says {', '.join(own)} itself; leave it out of the echo")
    return echo or {}
