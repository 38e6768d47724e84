"""Messages as a model's template wants them, and the words that teach a format it does not know.

In: checked messages, tools and a wished-for JSON. Out: messages for the chat template.

The generic format, for templates without tools. The system message ends with:

    # Functions
    …one JSON line a function: name, description, parameters (JSON schema)…
    To call a function, answer with nothing but
    <tool_call>
    {"name": "<function>", "arguments": {<arguments>}}
    </tool_call>

In history a call is shown as just that, and a tool's answer as a user's message
`<tool_response>…</tool_response>`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from headrace.model.answer.formats import GENERIC, MISTRAL, ToolFormat
from headrace.wire.ask import Tool

Message: TypeAlias = Mapping[str, Any]

MAX_SHOWN_SCHEMA = 4_000
"""Longer schemas are followed but not shown: they would fill the context."""
_ID_CHARS = 9


def prepared(messages: Sequence[Message], form: ToolFormat) -> list[Message]:
    """`messages` with calls and tools' answers as the template knows them."""
    if not form.in_template:
        return [_told(message) for message in messages]
    return [_native(message, form) for message in messages]


def with_instruction(
    messages: Sequence[Message], instruction: str, *, has_system: bool
) -> list[Message]:
    """`messages` with `instruction` at the end of the system message; at the beginning of the first
    message where the template has no system messages."""
    first, *rest = messages
    content = first.get("content")
    text = content if isinstance(content, str) else ""
    if first.get("role") in ("system", "developer"):
        return [{**first, "content": f"{text}\n\n{instruction}".lstrip()}, *rest]
    if has_system:
        return [{"role": "system", "content": instruction}, *messages]
    return [{**first, "content": f"{instruction}\n\n{text}"}, *rest]


def tools_instruction(tools: Sequence[Tool], *, must_call: bool) -> str:
    """Describes `tools`, and how to call them."""
    lines = [
        "# Functions",
        *(json.dumps(tool.as_wire()["function"], ensure_ascii=False) for tool in tools),
        "To call a function, answer with nothing but",
        GENERIC.opening,
        '{"name": "<function>", "arguments": {<arguments>}}',
        GENERIC.closing,
    ]
    if must_call:
        lines.append("You must call a function now.")
    return "\n".join(lines)


def json_instruction(schema: Mapping[str, Any]) -> str | None:
    """Shows the schema that the answer will follow; None where it is too long to show."""
    text = json.dumps(schema, ensure_ascii=False)
    if len(text) > MAX_SHOWN_SCHEMA:
        return None
    return f"Answer with JSON that matches this JSON schema:\n{text}"


def _told(message: Message) -> Message:
    """Calls and tools' answers in words."""
    if message.get("role") in ("tool", "function"):
        content = message.get("content") or ""
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    spoken = message.get("content")
    texts = [spoken] if isinstance(spoken, str) and spoken else []
    texts += [_call_text(call.get("function") or {}) for call in calls]
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": "\n".join(texts)}


def _call_text(function: Mapping[str, Any]) -> str:
    call = {"name": function.get("name"), "arguments": _arguments(function.get("arguments"))}
    text = json.dumps(call, ensure_ascii=False)
    return f"{GENERIC.opening}\n{text}\n{GENERIC.closing}"


def _native(message: Message, form: ToolFormat) -> Message:
    """Arguments as the object that templates write out; ids as they want them."""
    changes: dict[str, Any] = {}
    if message.get("tool_calls"):
        changes["tool_calls"] = [_native_call(call, form) for call in message["tool_calls"]]
    call_id = message.get("tool_call_id")
    if isinstance(call_id, str):
        changes["tool_call_id"] = _id(call_id, form)
    return {**message, **changes} if changes else message


def _native_call(call: Mapping[str, Any], form: ToolFormat) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    function["arguments"] = _arguments(function.get("arguments"))
    return {**call, "id": _id(str(call.get("id", "")), form), "function": function}


def _arguments(text: Any) -> Any:
    """The object in a JSON text; the text itself where it is none."""
    if not isinstance(text, str):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _id(call_id: str, form: ToolFormat) -> str:
    """Mistral's templates refuse ids that do not have nine characters."""
    if form != MISTRAL or len(call_id) == _ID_CHARS:
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:_ID_CHARS]
