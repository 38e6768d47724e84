"""The messages of a conversation, from the wire to what chat templates read.

on the wire                             in `Ask.messages`
text parts                              one text, parts on lines of their own
document parts                          lines of their own, as JSON
role `developer`                        `system`, the one that templates know
`tool_calls[].function.arguments`       the object that the text spells, as templates want it;
                                        the text where it spells none
`function_call`, role `function`        `tool_calls`, role `tool`
`reasoning_content`                     `reasoning`, unless that is there too
null content beside calls               no content
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import orjson

from headrace.errors import InvalidRequest
from headrace.wire.ask import JSON
from headrace.wire.body import BodyLimits, is_deeper
from headrace.wire.fields import Given, Table, Variants, field, ours, unused
from headrace.wire.kinds import Anything, ByType, Many, Object, OneOf, Text, Then
from headrace.wire.reading import Path, Reading, spelled

Message: TypeAlias = dict[str, JSON]

OTHER_MEDIA: Final = frozenset(
    {"image_url", "input_image", "input_audio", "input_file", "file", "video_url"}
)
_DOCUMENT = Table(
    field("type", OneOf("document"), required=True),
    field(
        "document",
        Table(field("data", Object(), required=True), field("id", Text())),
        required=True,
    ),
)


class TextPart:
    """One part of a message's content, as its text."""

    def __init__(self, *names: str, takes_documents: bool) -> None:
        """`names` are the values of `type` that mean text."""
        self._takes_documents = takes_documents
        self._table = Table(
            field("type", OneOf(*names), required=True), field("text", Text(), required=True)
        )

    def read(self, value: JSON, path: Path, reading: Reading) -> str:
        if _kind(value) in OTHER_MEDIA:
            # Groq's words for an image that a text model is given.
            name = spelled(path[:-1])
            raise InvalidRequest(f"{name} must be a string", param=name)
        if self._takes_documents and _kind(value) == "document":
            document = _DOCUMENT.read(value, path, reading)["document"]
            return orjson.dumps(document).decode()
        text: str = self._table.read(value, path, reading)["text"]
        return text

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        text = self._table.schema(limits)
        return {"anyOf": [text, _DOCUMENT.schema(limits)]} if self._takes_documents else text


def _kind(value: JSON) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None


def _joined(content: str | list[str], path: Path, reading: Reading) -> str:
    if reading.strict and content == []:
        raise reading.wrong(path, content, "", said="minimum number of items is 1")
    return content if isinstance(content, str) else "\n".join(content)


def content(*names: str, takes_documents: bool = False) -> Then:
    """A message's text: a string, or parts of these types."""
    parts = Many(TextPart(*names, takes_documents=takes_documents), "text parts", limit="max_parts")
    return Then(
        ByType(
            {str: Text(), list: parts},
            "a string or a list of text parts",
            said="value must be a string",
        ),
        _joined,
    )


_CONTENT = content("text", takes_documents=True)
_NAME = field("name", Text())
_FUNCTION = Table(field("name", Text(), required=True), field("arguments", Text(), required=True))
_CALL = Table(
    field("id", Text(), required=True),
    field("type", OneOf("function")),
    field("function", _FUNCTION, required=True),
)
_CALLS = Many(_CALL, "calls", limit="max_tools")


def _spoken(given: Given, path: Path, reading: Reading) -> Given:
    """An assistant's message says, thinks or calls something."""
    if given.keys() <= {"role", "name"}:
        raise reading.missing((*path, "content"))
    return given


ASSISTANT = Table(
    field("content", _CONTENT),
    _NAME,
    ours("reasoning_content", Text()),
    field("reasoning", Text()),
    field("tool_calls", _CALLS),
    field("function_call", _FUNCTION),
    unused("annotations", Anything()),
    unused("executed_tools", Anything()),
)
SAID = Table(field("content", _CONTENT, required=True), _NAME)
"""By anybody but the assistant."""
_BY_ROLE = Variants(
    "role",
    {
        "system": SAID,
        "developer": SAID,
        "user": SAID,
        "assistant": ASSISTANT,
        "tool": Table(*SAID.fields, field("tool_call_id", Text(), required=True)),
        "function": SAID,
    },
    said="discriminator property 'role' has invalid value",
)


class _AnyMessage:
    """A message of any role."""

    def read(self, value: JSON, path: Path, reading: Reading) -> Given:
        try:
            given = _BY_ROLE.read(value, path, reading)
            return _spoken(given, path, reading) if given["role"] == "assistant" else given
        except InvalidRequest as error:
            if not reading.strict or "discriminator" in error.message:
                raise
            raise _in_role(error, value, path) from None

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        return _BY_ROLE.schema(limits)


def _in_role(error: InvalidRequest, message: JSON, path: Path) -> InvalidRequest:
    """As Groq's validator wraps what is wrong in a message."""
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or not error.message.startswith("'messages."):
        return error
    return InvalidRequest(
        f"'{'.'.join(map(str, path))}' : for 'role:{role}' the following must be satisfied"
        f"[({error.message})]",
        param=error.param,
    )


MESSAGES = Many(_AnyMessage(), "messages", least=1, limit="max_messages")


def plain(messages: list[Given], max_depth: int) -> tuple[Message, ...]:
    """What `MESSAGES` read, as chat templates read it. `max_depth`: of a call's arguments."""
    last_call_id = ""
    result = []
    for index, given in enumerate(messages):
        if "function_call" in given and "tool_calls" not in given:
            last_call_id = f"call_{index}"
        result.append(_plain(given, last_call_id, max_depth))
    return tuple(result)


def _plain(given: Given, legacy_id: str, max_depth: int) -> Message:
    message: Message = {"role": _ROLES.get(given["role"], given["role"])}
    message |= {name: given[name] for name in ("content", "name") if name in given}
    reasoning = given.get("reasoning", given.get("reasoning_content"))
    if reasoning is not None:
        message["reasoning"] = reasoning
    calls = given.get("tool_calls") or []
    if not calls and "function_call" in given:
        calls = [{"id": legacy_id, "function": given["function_call"]}]
    if calls:
        message["tool_calls"] = [_call(call, max_depth) for call in calls]
    elif given["role"] == "assistant":
        message.setdefault("content", "")
    if "tool_call_id" in given:
        message["tool_call_id"] = given["tool_call_id"]
    elif given["role"] == "function":
        message["tool_call_id"] = legacy_id
    return message


_ROLES = {"developer": "system", "function": "tool"}


def _call(call: Given, max_depth: int) -> dict[str, JSON]:
    function: dict[str, Any] = call["function"]
    arguments = arguments_object(function["arguments"], max_depth)
    return {
        "id": call["id"],
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def arguments_object(text: str, max_depth: int) -> dict[str, JSON] | str:
    """The object that a call's arguments spell; `text` itself where they spell none, or one that
    nests too deeply. No text at all is no arguments."""
    try:
        value = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return text
    return value if isinstance(value, dict) and not is_deeper(value, max_depth) else text


def stored_message(value: Any, path: Path, limits: BodyLimits) -> Message:
    """A message as it was kept, where a call's arguments may be the object that they spell. Raises
    `InvalidRequest`."""
    spelled_out = dict(value)
    if isinstance(calls := value.get("tool_calls"), list):
        spelled_out["tool_calls"] = [_spelled_out(call) for call in calls]
    given = _AnyMessage().read(spelled_out, path, Reading(limits))
    return plain([given], limits.max_depth)[0]


def _spelled_out(call: JSON) -> JSON:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
        return call
    arguments = orjson.dumps(function["arguments"]).decode()
    return {**call, "function": {**function, "arguments": arguments}}


def is_unfinished(message: Message) -> bool:
    """The assistant's, and not the end of its turn: an answer may go on from there."""
    return message["role"] == "assistant" and "tool_calls" not in message


def continued(messages: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    """`messages` whose last one is the answer so far, grown by `text`."""
    *earlier, last = messages
    if not is_unfinished(last):
        return (*messages, {"role": "assistant", "content": text})
    return (*earlier, last | {"content": last["content"] + text})


def mentions_json(messages: tuple[Message, ...]) -> bool:
    """Whether the word stands anywhere in the texts: JSON mode demands it of Groq's users."""
    return any("json" in message.get("content", "").lower() for message in messages)
