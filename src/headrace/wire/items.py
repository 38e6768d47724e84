"""Items, as the responses and conversations endpoints have them, and the messages that they are.

A run of the assistant's items (thoughts, a message, calls) is one message. A message's items are
its thoughts, its text and its calls, in this order; their ids are made from the message's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from headrace.wire.ask import JSON
from headrace.wire.fields import Given, Table, Variants, field, unused
from headrace.wire.ids import item_id
from headrace.wire.json_bytes import compact
from headrace.wire.kinds import Many, OneOf, Text
from headrace.wire.messages import Message, content

_CONTENT = content("input_text", "output_text", "text")
_STATUS = (unused("id", Text()), unused("status", Text()))
_THOUGHT = Variants(
    "type",
    {
        name: Table(field("text", Text(), required=True))
        for name in ("reasoning_text", "summary_text")
    },
)
ITEM: Final = Variants(
    "type",
    {
        "message": Table(
            field("role", OneOf("system", "developer", "user", "assistant"), required=True),
            field("content", _CONTENT, required=True),
            *_STATUS,
        ),
        "function_call": Table(
            field("call_id", Text(), required=True),
            field("name", Text(), required=True),
            field("arguments", Text(), required=True),
            *_STATUS,
        ),
        "function_call_output": Table(
            field("call_id", Text(), required=True),
            field("output", _CONTENT, required=True),
            *_STATUS,
        ),
        "reasoning": Table(
            field("summary", Many(_THOUGHT, "texts", limit="max_parts")),
            field("content", Many(_THOUGHT, "texts", limit="max_parts")),
            unused("encrypted_content", Text()),
            *_STATUS,
        ),
    },
    default="message",
)


def messages_of(items: Sequence[Given]) -> list[Message]:
    """What `ITEM` read, as messages."""
    messages: list[Message] = []
    for item in items:
        add_item(item, messages)
    return messages


def add_item(item: Given, messages: list[Message]) -> None:
    """Add an item to the messages before it."""
    match item["type"]:
        case "message" if item["role"] != "assistant":
            messages.append({"role": item["role"], "content": item["content"]})
        case "message":
            _assistant(messages, "content", "tool_calls")["content"] = item["content"]
        case "function_call":
            call = {
                "id": item["call_id"],
                "function": {"name": item["name"], "arguments": item["arguments"]},
            }
            _assistant(messages).setdefault("tool_calls", []).append(call)
        case "function_call_output":
            messages.append(
                {"role": "tool", "content": item["output"], "tool_call_id": item["call_id"]}
            )
        case "reasoning":
            thoughts = item.get("content") or item.get("summary") or []
            text = "\n".join(thought["text"] for thought in thoughts)
            if text:
                _assistant(messages, "content", "tool_calls", "reasoning")["reasoning"] = text


def _assistant(messages: list[Message], *closed_by: str) -> Message:
    """The assistant's message that the next item is part of: the last one, unless it is somebody
    else's or has one of `closed_by` already."""
    if messages and messages[-1]["role"] == "assistant" and not messages[-1].keys() & {*closed_by}:
        return messages[-1]
    messages.append({"role": "assistant"})
    return messages[-1]


_OURS_TO_THEIRS = {"in_progress": "in_progress", "completed": "completed"}
"""Items know no other ends than these and `incomplete`."""


def items_of(message: Mapping[str, Any], message_id: str, status: str) -> list[dict[str, JSON]]:
    """A kept message as its items."""
    parts = [*_reasoning_part(message), *_text_part(message), *_call_parts(message)]
    state = _OURS_TO_THEIRS.get(status, "incomplete")
    return [
        {"id": item_id(prefix, message_id, index), "status": state, **part}
        for index, (prefix, part) in enumerate(parts)
    ]


def left_of(message: Mapping[str, Any], index: int) -> Message | None:
    """What is left of a message without one of its items; None: nothing."""
    names = [*(["reasoning"] if message.get("reasoning") else [])]
    names += ["content"] if _text_part(message) else []
    num_before = len(names)
    if index < num_before:
        left = {name: value for name, value in message.items() if name != names[index]}
    else:
        calls = [*message["tool_calls"]]
        del calls[index - num_before]
        left = {**message, "tool_calls": calls}
        if not calls:
            del left["tool_calls"]
    return left if any(left.get(name) for name in ("content", "reasoning", "tool_calls")) else None


def _reasoning_part(message: Mapping[str, Any]) -> list[tuple[str, dict[str, JSON]]]:
    if not (text := message.get("reasoning")):
        return []
    thought = {"type": "reasoning_text", "text": text}
    return [("rs", {"type": "reasoning", "summary": [], "content": [thought]})]


def _text_part(message: Mapping[str, Any]) -> list[tuple[str, dict[str, JSON]]]:
    role, text = message["role"], message.get("content")
    if role == "tool":
        given = {"call_id": message.get("tool_call_id", ""), "output": text or ""}
        return [("fco", {"type": "function_call_output", **given})]
    if not text and (message.get("tool_calls") or message.get("reasoning")):
        return []
    part: dict[str, JSON] = {"type": "input_text", "text": text or ""}
    if role == "assistant":
        part = {"type": "output_text", "text": text or "", "annotations": [], "logprobs": []}
    return [("msg", {"type": "message", "role": role, "content": [part]})]


def _call_parts(message: Mapping[str, Any]) -> list[tuple[str, dict[str, JSON]]]:
    return [
        (
            "fc",
            {
                "type": "function_call",
                "call_id": call["id"],
                "name": call["function"]["name"],
                "arguments": _spelled(call["function"]["arguments"]),
            },
        )
        for call in message.get("tool_calls") or ()
    ]


def _spelled(arguments: JSON) -> str:
    return arguments if isinstance(arguments, str) else compact(arguments).decode()
