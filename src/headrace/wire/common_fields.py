"""The rows that several endpoints share: the model, how to sample, how to stream."""

from __future__ import annotations

from typing import Any

from headrace.errors import InvalidRequest
from headrace.wire.ask import JSON
from headrace.wire.fields import Given, Table, field, ours
from headrace.wire.kinds import (
    MOST_EXACT,
    Boolean,
    ByType,
    Many,
    MapOf,
    Number,
    Object,
    Text,
    Then,
    Whole,
)
from headrace.wire.reading import Path, Reading, spelled

MOST_CHOICES = 128
_RESERVED_VARIABLES = frozenset(
    {"self", "messages", "tools", "add_generation_prompt", "continue_final_message"}
)


def _stops(stop: str | list[str], path: Path, reading: Reading) -> tuple[str, ...]:
    """An empty string stops nothing; some clients send one for "none"."""
    stops = [stop] if isinstance(stop, str) else stop
    for index, text in enumerate(stops):
        if not text:
            reading.ignore(path if isinstance(stop, str) else (*path, index))
    return tuple(filter(None, stops))


def _by_token(given: dict[str, float], path: Path, reading: Reading) -> dict[int, float]:
    return {int(token): bias for token, bias in given.items()}


def _variables(given: dict[str, JSON], path: Path, reading: Reading) -> dict[str, JSON]:
    for name in given:
        if name in _RESERVED_VARIABLES:
            raise InvalidRequest(
                f"`{spelled((*path, name))}` is a name that chat templates get from the request "
                "itself; leave it out",
                param=spelled((*path, name)),
            )
    return given


BIASES = Then(
    MapOf(
        Text(r"0|[1-9][0-9]{0,8}", "a map whose keys are token ids"),
        Number(-100, 100),
        "tokens",
        "max_biases",
    ),
    _by_token,
)
STOP = Then(
    ByType(
        {str: Text(), list: Many(Text(), "strings", limit="max_stops")},
        "a string or a list of strings",
    ),
    _stops,
)
STREAM_OPTIONS = Table(
    field("include_usage", Boolean(), note="One more chunk with the usage alone."),
    ours("resumable", Boolean(), note="Keep the stream, so that readers may leave and come back."),
    ours(
        "progress",
        Boolean(),
        note="Tell the place in the queue, and in the prompt, until tokens come.",
    ),
)

MODEL = field(
    "model",
    Text(r"[\s\S]+", "the name of a model"),
    "model",
    "One of `/models`, or an alias.",
    required=True,
)
STREAMING = (
    field(
        "stream",
        Boolean(),
        "stream",
        "Send the answer as server-sent events, token by token. Where it is absent, an `Accept` "
        "header that names `text/event-stream` decides.",
    ),
    field("stream_options", STREAM_OPTIONS, note="How to stream."),
)
TEMPERATURE = field(
    "temperature", Number(0, 2), "temperature", "0 takes the likeliest token always."
)
TOP_P = field(
    "top_p", Number(0, 1), "top_p", "Keep the likeliest tokens that have this probability together."
)
USER = field("user", Text(), "user", "Whom you ask for.")
MAX_TOKENS = field(
    "max_tokens", Whole(1, MOST_EXACT), "max_tokens", "The most tokens of an answer."
)

SAMPLING = (
    TEMPERATURE,
    TOP_P,
    field("frequency_penalty", Number(-2, 2), "frequency_penalty", "For each earlier use."),
    field("presence_penalty", Number(-2, 2), "presence_penalty", "For any earlier use."),
    field("logit_bias", BIASES, "logit_bias", "-100 to 100, by token id."),
    field("seed", Whole(-(2**63), 2**64 - 1), "seed", "Same seed, same answer, bit for bit."),
    field("stop", STOP, "stop", "Strings that end the answer; they are never part of it."),
)
"""How the next token is chosen and where the answer ends."""

OUR_SAMPLING = (
    ours("top_k", Whole(0), "top_k", "Keep this many of the likeliest tokens; 0 keeps all."),
    ours("min_p", Number(0, 1), "min_p", "Keep tokens at least this likely beside the likeliest."),
    ours("repetition_penalty", Number(0.01, 100), "repetition_penalty", "1 changes nothing."),
    ours("ignore_eos", Boolean(), "ignore_eos", "Go on after the answer's end: for benchmarks."),
    ours(
        "heal",
        Boolean(),
        "heal",
        "Where a text is gone on from, choose its last tokens anew, so that it may end anywhere, "
        "also inside a word.",
    ),
)
TEMPLATE_VARIABLES = ours(
    "chat_template_kwargs",
    Then(Object(), _variables),
    "template_variables",
    "Further variables of the model's chat template.",
)


_OPTIONS = ("include_usage", "resumable", "progress")


def stream_options(given: Given) -> dict[str, bool]:
    """What of `stream_options` goes into an `Ask`."""
    options: dict[str, Any] = given.get("stream_options", {})
    return {name: bool(options.get(name, False)) for name in _OPTIONS}
