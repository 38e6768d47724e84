"""What an answer says so far, as the message that it will be.

In: the log of a generation. Out: an `Answer`. Thread: the event loop. Next: `turns.py`.
"""

from __future__ import annotations

from typing import Any

from headrace.conversations.values import Answer, Status
from headrace.events import Delta, Failed, Finished, ToolCall
from headrace.streams.log import StreamLog
from headrace.wire.messages import arguments_object
from headrace.wire.responses_answer import ended_fields

_MAX_DEPTH = 64


class Said:
    """Folds choice 0 of one log, a bit at a time."""

    def __init__(self, log: StreamLog) -> None:
        self._log = log
        self._num_read = 0
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[ToolCall] = []
        self._token_ids: list[int] = []
        self._status: Status = "in_progress"
        self._end: dict[str, Any] = {}
        self._shown: dict[str, Any] = {}

    def read(self) -> Answer:
        """All that the log has now."""
        events = self._log.since(self._num_read)
        self._num_read += len(events)
        for event in events:
            match event:
                case Delta():
                    self._texts.append(event.text)
                    self._thoughts.append(event.reasoning)
                    self._token_ids += event.token_ids
                case ToolCall():
                    self._calls.append(event)
                case Finished():
                    is_whole = event.reason in ("stop", "tool_calls")
                    self._status = "completed" if is_whole else "incomplete"
                    self._end = {"finish_reason": event.reason}
                    self._shown = ended_fields(event)
                case Failed():
                    self._status = "failed"
                    self._end = {"finish_reason": "error", "error": event.error.code}
                    self._shown = ended_fields(event)
                case _:
                    pass
        ids = tuple(self._token_ids)
        return Answer(self._message(), ids, self._status, self._end, self._shown)

    def _message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant"}
        text, thoughts = "".join(self._texts), "".join(self._thoughts)
        if text or not self._calls:
            message["content"] = text
        if thoughts:
            message["reasoning"] = thoughts
        if self._calls:
            message["tool_calls"] = [_call(call) for call in self._calls]
        return message


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": arguments_object(call.arguments, _MAX_DEPTH)}
    return {"id": call.id, "type": "function", "function": function}
