"""`POST /responses`: its body as an `Ask`, and what the answer repeats of it.

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
from headrace.wire.ask import JSON, Ask, Place
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
from headrace.wire.context_field import CONTEXT
from headrace.wire.documents import DOCUMENTS
from headrace.wire.fields import Given, Table, field, ours, refused, unused
from headrace.wire.items import ITEM, add_item
from headrace.wire.kinds import (
    MOST_EXACT,
    Boolean,
    ByType,
    Many,
    MapOf,
    OneOf,
    Refused,
    Text,
    Whole,
)
from headrace.wire.messages import Message, is_unfinished, plain
from headrace.wire.place_fields import CONVERSATION, QUEUE, REFERENCE, check_place, place_of
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
            "previous_response_id": ask.place.previous_response_id if ask.place else None,
            "reasoning": dict(self.reasoning),
            "store": ask.place is not None and ask.place.stores,
            "temperature": ask.temperature,
            "text": dict(self.text),
            "tool_choice": self.tool_choice,
            "tools": list(self.tools),
            "top_p": ask.top_p,
            "truncation": self.truncation,
            "user": ask.user,
        }


_NOT_GROQS = "Groq stores nothing; send the conversation again in `input`"
RESPONSES: Final = Table(
    MODEL,
    field(
        "input",
        ByType(
            {str: Text(), list: Many(ITEM, "items", least=1, limit="max_messages")},
            "a string or a list of items",
        ),
        note="What the model is told: a text, or the conversation so far.",
        required=True,
    ),
    field("instructions", Text(), note="A system message before all others."),
    *STREAMING,
    field(
        "max_output_tokens", Whole(1, MOST_EXACT), "max_tokens", "The most tokens of the answer."
    ),
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
    field(
        "store",
        Boolean(),
        note="Keep the answer, so that `previous_response_id` may name it; absent: true.",
        strictly=Refused(_NOT_GROQS, (False,)),
    ),
    refused("background", "answers are given at once; stream them", False),
    field(
        "previous_response_id",
        REFERENCE,
        note="The stored response that this one follows.",
        strictly=Refused(_NOT_GROQS),
    ),
    CONVERSATION,
    QUEUE,
    CONTEXT,
    ours("documents", DOCUMENTS, "documents", "Texts to answer from."),
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
    place = _place(given, messages[-1], strict)
    ask = Ask(
        place=place,
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


def _place(given: Given, last: Message, strict: bool) -> Place | None:
    """Where it is kept. Of a conversation and a response before it, there may be one."""
    previous = given.get("previous_response_id")
    if "conversation" in given and previous is not None:
        raise InvalidRequest(
            "`previous_response_id` and `conversation` exclude each other; send one of them",
            param="previous_response_id",
        )
    num_passing = 1 if "instructions" in given else 0
    if (place := place_of(given, num_passing=num_passing)) is not None:
        check_place(last, "input")
        return place
    stores = given.get("store", not strict)
    if previous is not None:
        check_place(last, "input")
    elif not stores or is_unfinished(last):
        return None
    return Place(previous_response_id=previous, stores=stores, num_passing=num_passing)


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
        add_item(item, messages)
    if not messages:
        raise InvalidRequest("`input` holds nothing to answer", param="input")
    return messages
