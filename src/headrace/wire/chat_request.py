"""`POST /chat/completions`: its body as an `Ask`.

In: a JSON object. Out: an `Ask`, or `InvalidRequest`. Thread: the event loop.
Next: `server/chat.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from headrace.errors import InvalidRequest
from headrace.wire.answer_shape import (
    FUNCTION_CALL,
    FUNCTIONS,
    RESPONSE_FORMAT,
    TOOL_CHOICE,
    TOOLS,
    chosen,
)
from headrace.wire.ask import JSON, Ask, JSONObject, NamedTool, ResponseFormat, Tool, ToolChoice
from headrace.wire.body import BodyLimits
from headrace.wire.common_fields import (
    MAX_TOKENS,
    MODEL,
    MOST_CHOICES,
    OUR_SAMPLING,
    SAMPLING,
    STREAMING,
    TEMPLATE_VARIABLES,
    USER,
    stream_options,
)
from headrace.wire.context_field import CONTEXT
from headrace.wire.continue_from import CONTINUE_FROM
from headrace.wire.documents import DOCUMENTS
from headrace.wire.fields import Given, Table, field, ours, unused
from headrace.wire.kinds import MOST_EXACT, Anything, Boolean, Object, OneOf, Text, Whole
from headrace.wire.messages import (
    MESSAGES,
    Message,
    continued,
    is_unfinished,
    mentions_json,
    plain,
)
from headrace.wire.place_fields import CONVERSATION, QUEUE, check_place, place_of
from headrace.wire.reading import Reading

TIERS: Final = ("auto", "on_demand", "flex", "performance")
EFFORT: Final = OneOf("none", "minimal", "low", "medium", "high", "xhigh", "default")

CHAT: Final = Table(
    MODEL,
    field("messages", MESSAGES, note="The conversation so far.", required=True),
    ours("prompt", Text(), note="What was received of the answer so far: it is gone on from."),
    CONTINUE_FROM,
    *STREAMING,
    MAX_TOKENS,
    field(
        "max_completion_tokens",
        Whole(1, MOST_EXACT),
        "max_tokens",
        "The newer name of `max_tokens`.",
    ),
    *SAMPLING,
    *OUR_SAMPLING,
    field("n", Whole(1, MOST_CHOICES), "n", "How many answers to give.", strictly=Whole(1, 1)),
    field("logprobs", Boolean(), note="Tell the log probability of each token."),
    field("top_logprobs", Whole(0, 20), note="And of this many of the likeliest ones."),
    field("response_format", RESPONSE_FORMAT, note="Text, any JSON object, or JSON by a schema."),
    field("functions", FUNCTIONS, note="The older spelling of `tools`."),
    field(
        "tools",
        TOOLS,
        note="Functions that the model may call. A call is told whole, or, where the limit of "
        "tokens cuts it, not at all.",
    ),
    field("function_call", FUNCTION_CALL, note="The older spelling of `tool_choice`."),
    field("tool_choice", TOOL_CHOICE, note="`auto` where there are tools, else `none`."),
    field("parallel_tool_calls", Boolean(), "parallel_tool_calls", "Several calls in one answer."),
    field(
        "disable_tool_validation",
        Boolean(),
        "disable_tool_validation",
        "Give calls as they are, of unknown tools too.",
    ),
    field("include_reasoning", Boolean(), note="Tell the model's thoughts apart from its answer."),
    field(
        "reasoning_format",
        OneOf("raw", "parsed", "hidden"),
        note="Thoughts inside the content, apart from it, or not at all.",
    ),
    field(
        "reasoning_effort",
        EFFORT,
        "reasoning_effort",
        "How much to think, where models can.",
        strictly=OneOf("none", "default", "low", "medium", "high"),
    ),
    TEMPLATE_VARIABLES,
    CONVERSATION,
    QUEUE,
    CONTEXT,
    field(
        "service_tier",
        OneOf(*TIERS, synonyms={"default": "on_demand"}),
        "service_tier",
        "`flex` is refused rather than queued.",
        strictly=OneOf(*TIERS),
    ),
    field("documents", DOCUMENTS, note="Texts to answer from."),
    USER,
    unused("metadata", Object()),
    unused("store", Boolean()),
    unused("citation_options", OneOf("enabled", "disabled")),
    unused("compound_custom", Object()),
    unused("search_settings", Object()),
    unused("exclude_domains", Anything()),
    unused("include_domains", Anything()),
    unused("debug", Boolean()),
)


def parse_chat(body: Mapping[str, JSON], limits: BodyLimits, *, strict: bool = False) -> Ask:
    """What `body` asks for. Raises `InvalidRequest`, naming the field.

    What is unknown or has no effect is in `Ask.ignored`; with `strict` the unknown is an error. So
    is what contradicts itself, which is resolved else, the loser being named as ignored:

        max_tokens, max_completion_tokens       the latter counts
        functions, tools                        `tools` counts; `functions` alone become tools
        function_call, tool_choice              `tool_choice` counts
        top_logprobs without logprobs: true     no log probabilities
        include_reasoning, reasoning_format     `reasoning_format` counts
        reasoning_format: raw with tools, JSON  `parsed`, so that the answer stays readable
        prompt                                  what was received of the answer so far: it grows the
                                                last message where that is the assistant's, else
                                                becomes the assistant's; an empty one does nothing
        stream_options without stream           without effect, and no error
    """
    reading = Reading(limits, strict=strict)
    given = CHAT.read(body, (), reading)
    settings = CHAT.settings(given, reading)
    tools, tool_choice = _tools(given, reading)
    response_format: ResponseFormat = given.get("response_format")
    messages, continues = _messages(given, reading)
    options = stream_options(given)
    if strict:
        _check_strictly(given, messages)
    settings |= _logprobs(given, reading)
    settings |= _reasoning(given, bool(tools) or response_format is not None, reading)
    if (place := place_of(given)) is not None:
        check_place(messages[-1], "messages", settings.get("n", 1))
    return Ask(
        place=place,
        messages=messages,
        documents=given.get("documents", ()),
        continues=continues,
        include_usage=options["include_usage"],
        resumable=options["resumable"],
        progress=options["progress"],
        response_format=response_format,
        tools=tools,
        tool_choice=tool_choice,
        **settings,
        ignored=reading.ignored,
    )


def _messages(given: Given, reading: Reading) -> tuple[tuple[Message, ...], bool]:
    messages = plain(given["messages"], reading.limits.max_depth)
    if prompt := given.get("prompt"):
        messages = continued(messages, prompt)
    return messages, is_unfinished(messages[-1])


def _tools(given: Given, reading: Reading) -> tuple[tuple[Tool, ...], ToolChoice]:
    tools = _newer(given, "tools", "functions", reading) or ()
    return tools, chosen(_newer(given, "tool_choice", "function_call", reading), tools)


def _newer(given: Given, name: str, older: str, reading: Reading) -> Any:
    """The value of a field that has an older spelling."""
    if name in given and older in given:
        reading.ignore((older,))
    return given.get(name, given.get(older))


def _logprobs(given: Given, reading: Reading) -> dict[str, Any]:
    top = given.get("top_logprobs", 0)
    if given.get("logprobs"):
        return {"logprobs": True, "top_logprobs": top}
    if top and reading.strict:
        raise InvalidRequest("`top_logprobs` needs `logprobs` to be true", param="top_logprobs")
    if top:
        reading.ignore(("top_logprobs",))
    return {}


def _reasoning(given: Given, must_parse: bool, reading: Reading) -> dict[str, Any]:
    """`must_parse`: thoughts inside the content would spoil it."""
    wanted = given.get("reasoning_format")
    if wanted is None:
        return {"include_reasoning": given.get("include_reasoning", True)}
    if "include_reasoning" in given:
        if reading.strict:
            raise InvalidRequest(
                "`include_reasoning` and `reasoning_format` exclude each other; send one of them",
                param="include_reasoning",
            )
        reading.ignore(("include_reasoning",))
    if wanted == "raw" and must_parse:
        if reading.strict:
            raise InvalidRequest(
                "`reasoning_format` must be `parsed` or `hidden` with tools or JSON",
                param="reasoning_format",
            )
        reading.ignore(("reasoning_format",))
        wanted = "parsed"
    return {"reasoning_format": wanted}


def _check_strictly(given: Given, messages: tuple[Message, ...]) -> None:
    """What Groq refuses and we could do."""
    if isinstance(given.get("response_format"), JSONObject) and not mentions_json(messages):
        raise InvalidRequest(
            "'messages' must contain the word 'json' in some form, to use 'response_format' of "
            "type 'json_object'.",
            param="messages",
        )
    if given.get("disable_tool_validation") and isinstance(given.get("tool_choice"), NamedTool):
        raise InvalidRequest(
            "`tool_choice` cannot name a tool while `disable_tool_validation` is true",
            param="tool_choice",
        )
