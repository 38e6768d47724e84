"""`context`: how a conversation is to become a prompt, as a request or a conversation says it."""

from __future__ import annotations

from typing import Final

from headrace.wire.ask import JSON, Context
from headrace.wire.body import DEFAULT_LIMITS, BodyLimits
from headrace.wire.fields import Given, Table, ours
from headrace.wire.kinds import Boolean, Number, OneOf, Then, Whole
from headrace.wire.reading import Path, Reading

STRATEGIES: Final = ("full", "sliding_window", "summary", "retrieval")
LEAST_TOKENS: Final = 16
MOST_K: Final = 100

_FIELDS: Final = {
    # field: the strategies in which it means something
    "keep_turns": ("sliding_window", "retrieval"),
    "keep_first": ("sliding_window",),
    "mode": ("sliding_window",),
    "trigger_at_ratio": ("summary",),
    "k": ("retrieval",),
    "fallback": ("full",),
}

_TABLE: Final = Table(
    ours("strategy", OneOf(*STRATEGIES), note="What becomes of older turns."),
    ours("keep_turns", Whole(0), note="So many turns before the new one stay."),
    ours("keep_first", Whole(0, 64), note="`sliding_window`: so many first turns stay for ever."),
    ours("max_tokens", Whole(LEAST_TOKENS), note="The most tokens of the prompt."),
    ours(
        "trigger_at_ratio",
        Number(0.1, 1),
        note="`summary`: from this part of `max_tokens` on, the oldest turns are condensed.",
    ),
    ours("k", Whole(1, MOST_K), note="`retrieval`: at most so many passages."),
    ours(
        "mode",
        OneOf("recompute", "shift"),
        note="`sliding_window`: how banks follow when turns are dropped.",
    ),
    ours(
        "fallback",
        OneOf(*STRATEGIES[1:]),
        note="`full`: the strategy where all does not fit, instead of an error.",
    ),
    ours("report", Boolean(), note="Tell in `x_headrace.context` what became of the messages."),
)


def _checked(given: Given, path: Path, reading: Reading) -> Context:
    strategy = given.get("strategy")
    for name, strategies in _FIELDS.items():
        if name in given and strategy is not None and strategy not in strategies:
            reading.ignore((*path, name))
    return Context(**given)


CONTEXT = ours(
    "context",
    Then(_TABLE, _checked),
    "context",
    "How the conversation becomes a prompt.",
)


KEPT_CONTEXT = ours(
    "context",
    Then(_TABLE, lambda given, path, reading: _checked(given, path, reading).as_wire()),
    note="How the conversation becomes a prompt, where a request does not say.",
)
"""As it is kept with a conversation: JSON."""


def parse_context(value: JSON, limits: BodyLimits = DEFAULT_LIMITS) -> Context:
    """A `context` object, as a request or a conversation has it. Raises `InvalidRequest`, naming
    the field."""
    context: Context = CONTEXT.kind.read(value, ("context",), Reading(limits))
    return context
