"""`context`: what it may say, what is refused by name, and what holds over what."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidRequest
from headrace.wire.api_chat import parse_api_chat
from headrace.wire.ask import Context
from headrace.wire.body import BodyLimits
from headrace.wire.chat_request import parse_chat
from headrace.wire.context_field import STRATEGIES, parse_context
from headrace.wire.conversation_requests import UPDATE
from headrace.wire.reading import Reading
from headrace.wire.responses_request import parse_responses
from support.bodies import chat_body

LIMITS = BodyLimits()

contexts = st.builds(
    Context,
    strategy=st.none() | st.sampled_from(STRATEGIES),
    keep_turns=st.none() | st.integers(0, 100),
    keep_first=st.none() | st.integers(0, 64),
    max_tokens=st.none() | st.integers(16, 10**6),
    trigger_at_ratio=st.none() | st.floats(0.1, 1),
    k=st.none() | st.integers(1, 100),
    mode=st.none() | st.sampled_from(["recompute", "shift"]),
    fallback=st.none() | st.sampled_from(STRATEGIES[1:]),
    report=st.none() | st.booleans(),
)


@given(contexts)
def test_what_was_said_is_read_by_every_endpoint(context: Context) -> None:
    said = context.as_wire()
    assert parse_chat(chat_body(context=said), LIMITS).context == context
    asked = parse_responses({"model": "m", "input": "Hi", "context": said}, LIMITS)
    assert asked.ask.context == context
    assert parse_context(said) == context


@pytest.mark.parametrize(
    ("context", "param"),
    [
        ("full", "context"),
        ({"strategy": "sliding"}, "context.strategy"),
        ({"keep_turns": -1}, "context.keep_turns"),
        ({"keep_first": 65}, "context.keep_first"),
        ({"max_tokens": 15}, "context.max_tokens"),
        ({"max_tokens": "many"}, "context.max_tokens"),
        ({"trigger_at_ratio": 0}, "context.trigger_at_ratio"),
        ({"trigger_at_ratio": 1.01}, "context.trigger_at_ratio"),
        ({"k": 0}, "context.k"),
        ({"mode": "fast"}, "context.mode"),
        ({"report": "yes"}, "context.report"),
        ({"fallback": "full"}, "context.fallback"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(context: Any, param: str) -> None:
    for parse in (
        lambda: parse_chat(chat_body(context=context), LIMITS),
        lambda: parse_context(context),
    ):
        with pytest.raises(InvalidRequest) as refused:
            parse()
        assert refused.value.param == param
        assert f"`{param}`" in refused.value.message


def test_what_a_strategy_does_not_know_is_told_as_ignored() -> None:
    context = {"strategy": "summary", "keep_turns": 3, "k": 2, "foo": 1}
    ask = parse_chat(chat_body(context=context), LIMITS)
    assert set(ask.ignored) == {"context.keep_turns", "context.k", "context.foo"}


def test_what_is_kept_holds_nothing_unknown() -> None:
    body = {"context": {"strategy": "full", "foo": 1, "report": None}}
    given = UPDATE.read(body, (), Reading(LIMITS))
    assert given == {"context": {"strategy": "full"}}


def test_what_is_kept_is_checked() -> None:
    with pytest.raises(InvalidRequest) as refused:
        UPDATE.read({"context": {"k": 0}}, (), Reading(LIMITS))
    assert refused.value.param == "context.k"


def test_the_guides_endpoint_slides_where_nobody_says_otherwise() -> None:
    ask = parse_api_chat({"prompt": "Hi", "context": {"keep_turns": 3}}, LIMITS)
    assert ask.context == Context(keep_turns=3)
    assert ask.place is not None
    assert ask.place.custom == Context(strategy="sliding_window")


@given(contexts)
def test_who_says_nothing_changes_nothing(context: Context) -> None:
    assert Context().over(context) == context


@given(contexts, contexts)
def test_the_upper_word_holds(upper: Context, lower: Context) -> None:
    held = upper.over(lower).as_wire()
    assert held == held | upper.as_wire()
    if upper.strategy in (None, lower.strategy):
        assert held == lower.as_wire() | upper.as_wire()


def test_another_strategy_leaves_the_lower_ones_numbers() -> None:
    lower = Context(strategy="sliding_window", keep_turns=3, max_tokens=99, report=True)
    assert Context(strategy="summary").over(lower) == Context(strategy="summary", report=True)
