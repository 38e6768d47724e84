"""`POST /responses`: its body as an `Ask`, and what the answer repeats of it. Nothing is stored.

In: a JSON object. Out: a `ResponsesAsk`, or `InvalidRequest`. Thread: the event loop.
Next: `server/responses.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Any, Final

from headrace.errors import InvalidRequest
from headrace.wire.answer_shape import FLAT_TOOL_CHOICE, FLAT_TOOLS, TEXT_FORMAT, chosen
from headrace.wire.ask import JSON, Ask
from headrace.wire.body import BodyLimits
from headrace.wire.chat_request import EFFORT
from headrace.wire.common_fields import (
    MODEL,
    OUR_SAMPLING,
    STREAMING,
    TEMPERATURE,
    TEMPLATE_VARIABLES,
    TOP_P,
    USER,
    stream_options,
)
from headrace.wire.fields import Given, Table, Variants, field, refused, unused
from headrace.wire.kinds import Boolean, ByType, Many, MapOf, OneOf, Text, Whole
from headrace.wire.messages import Message, content, is_unfinished, plain
from headrace.wire.reading import Reading

_LOGPROBS: Final = "message.output_text.logprobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesAsk:
    """What was asked, and the fields that the response object repeats as they were sent."""

    ask: Ask
    instructions: str | None = None
    text: Mapping[str, JSON] = attribute(default_factory=lambda: {"format": {"type": "text"}})
    tools: tuple[Mapping[str, JSON], ...] = ()
    tool_choice: JSON = "auto"
    reasoning: Mapping[str, JSON] = attribute(
        default_factory=lambda: {"effort": None, "summary": None}
    )
    metadata: Mapping[str, str] = attribute(default_factory=dict)
    truncation: str = "disabled"

    def echo(self) -> dict[str, JSON]:
        """These and what stands in `ask`, by their names in the response object; what the answer
        says by itself (`model`, `service_tier`, …) is not among them."""
        ask = self.ask
        return {
            "instructions": self.instructions,
            "max_output_tokens": ask.max_tokens,
            "metadata": dict(self.metadata),
            "parallel_tool_calls": ask.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": dict(self.reasoning),
            "store": False,
            "temperature": ask.temperature,
            "text": dict(self.text),
            "tool_choice": self.tool_choice,
            "tools": list(self.tools),
            "top_p": ask.top_p,
            "truncation": self.truncation,
            "user": ask.user,
        }


_NOT_STORED = "nothing is stored here; send the conversation again in `input`"
_CONTENT = content("input_text", "output_text", "text")
_STATUS = (unused("id", Text()), unused("status", Text()))
_THOUGHT = Variants(
    "type",
    {
        name: Table(field("text", Text(), required=True))
        for name in ("reasoning_text", "summary_text")
    },
)
_ITEMS = Variants(
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


RESPONSES: Final = Table(
    MODEL,
    field(
        "input",
        ByType(
            {str: Text(), list: Many(_ITEMS, "items", least=1, limit="max_messages")},
            "a string or a list of items",
        ),
        note="What the model is told: a text, or the conversation so far.",
        required=True,
    ),
    field("instructions", Text(), note="A system message before all others."),
    *STREAMING,
    field("max_output_tokens", Whole(1), "max_tokens", "The most tokens of the answer."),
    TEMPERATURE,
    TOP_P,
    field("top_logprobs", Whole(0, 20), "top_logprobs", "Log probabilities of so many tokens."),
    *OUR_SAMPLING,
    field(
        "text",
        Table(field("format", TEXT_FORMAT), unused("verbosity", Text())),
        note="The answer's format.",
    ),
    field("tools", FLAT_TOOLS, note="Functions that the model may call."),
    field("tool_choice", FLAT_TOOL_CHOICE, note="`auto` where there are tools, else `none`."),
    field("parallel_tool_calls", Boolean(), "parallel_tool_calls", "Several calls in one answer."),
    field(
        "reasoning",
        Table(field("effort", EFFORT), unused("summary", Text())),
        note="How much to think, where models can.",
    ),
    field(
        "service_tier",
        OneOf("auto", "default", "flex"),
        note="`flex` is refused rather than queued.",
    ),
    field(
        "metadata", MapOf(Text(), Text(), "entries", "max_metadata"), note="Repeated in the answer."
    ),
    field("truncation", OneOf("auto", "disabled"), note="Nothing is ever cut off."),
    USER,
    TEMPLATE_VARIABLES,
    refused("store", _NOT_STORED, False),
    refused("background", "answers are given at once; stream them", False),
    refused("previous_response_id", _NOT_STORED),
    refused("conversation", _NOT_STORED),
    refused("prompt", "there are no stored prompts here; send `input`"),
    field("include", Many(Text(), "names", limit="max_parts"), note=f"`{_LOGPROBS}`, or nothing."),
    unused("max_tool_calls", Whole(1)),
)
_TIERS = {"auto": "auto", "default": "on_demand", "flex": "flex"}


def parse_responses(
    body: Mapping[str, JSON], limits: BodyLimits, *, strict: bool = False
) -> ResponsesAsk:
    """What `body` asks for. Raises `InvalidRequest`, naming the field.

    `instructions` become a system message before all others. A run of the assistant's items
    (thoughts, a message, calls) becomes one message. A body that ends with the assistant's message
    is gone on from exactly there.
    """
    reading = Reading(limits, strict=strict)
    given = RESPONSES.read(body, (), reading)
    settings = RESPONSES.settings(given, reading)
    if given.get("truncation") == "auto":
        reading.ignore(("truncation",))
    messages = plain(_messages(given), limits.max_depth)
    tools = given.get("tools", ())
    choice = chosen(given.get("tool_choice"), tools)
    if (effort := given.get("reasoning", {}).get("effort")) is not None:
        settings["reasoning_effort"] = effort
    settings["logprobs"] = _logprobs(given, reading)
    if "service_tier" in given:
        settings["service_tier"] = _TIERS[given["service_tier"]]
    options = stream_options(given)
    ask = Ask(
        messages=messages,
        continues=is_unfinished(messages[-1]),
        include_usage=options["include_usage"],
        resumable=options["resumable"],
        progress=options["progress"],
        response_format=given.get("text", {}).get("format"),
        tools=tools,
        tool_choice=choice,
        **settings,
        ignored=reading.ignored,
    )
    return ResponsesAsk(ask=ask, **_echo(body, given))


def _logprobs(given: Given, reading: Reading) -> bool:
    """Whether they were asked for, by either name."""
    for index, name in enumerate(given.get("include", [])):
        if name != _LOGPROBS:
            reading.ignore(("include", index))
    return bool(given.get("top_logprobs")) or _LOGPROBS in given.get("include", [])


def _echo(body: Mapping[str, JSON], given: Given) -> dict[str, Any]:
    """What the response repeats. Fields that were not given keep their defaults."""
    echo: dict[str, Any] = {
        name: given[name] for name in ("instructions", "metadata", "truncation") if name in given
    }
    if "tools" in given:
        echo["tools"] = tuple(body["tools"])
    if "tool_choice" in given:
        echo["tool_choice"] = body["tool_choice"]
    if (body.get("text") or {}).get("format") is not None:
        echo["text"] = {"format": body["text"]["format"]}
    if "reasoning" in given:
        sent = body["reasoning"]
        echo["reasoning"] = {"effort": sent.get("effort"), "summary": sent.get("summary")}
    return echo


def _messages(given: Given) -> list[Message]:
    """Messages as chat has them."""
    messages: list[Message] = []
    if "instructions" in given:
        messages.append({"role": "system", "content": given["instructions"]})
    if isinstance(given["input"], str):
        return [*messages, {"role": "user", "content": given["input"]}]
    for item in given["input"]:
        _add(item, messages)
    if not messages:
        raise InvalidRequest("`input` holds nothing to answer", param="input")
    return messages


def _add(item: Given, messages: list[Message]) -> None:
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
