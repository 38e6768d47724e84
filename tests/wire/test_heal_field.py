"""`heal`: on unless somebody says otherwise, at every endpoint where a text can be gone on from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from headrace.errors import InvalidRequest
from headrace.wire.ask import Ask
from headrace.wire.body import BodyLimits
from headrace.wire.chat_request import parse_chat
from headrace.wire.completion_request import parse_completion
from headrace.wire.responses_request import parse_responses

LIMITS = BodyLimits()


def chat(extra: Mapping[str, Any]) -> Ask:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "The wat"}]
    return parse_chat({"model": "m", "messages": messages, **extra}, LIMITS)


def completion(extra: Mapping[str, Any]) -> Ask:
    return parse_completion({"model": "m", "prompt": "The wat", **extra}, LIMITS).first


def responses(extra: Mapping[str, Any]) -> Ask:
    parsed = parse_responses({"model": "m", "input": "x", **extra}, LIMITS)
    return parsed if isinstance(parsed, Ask) else parsed.ask


@pytest.mark.parametrize("parse", [chat, completion, responses])
def test_heal_is_on_unless_it_is_off(parse: Callable[[Mapping[str, Any]], Ask]) -> None:
    assert parse({}).heal and parse({"heal": None}).heal and parse({"heal": True}).heal
    off = parse({"heal": False})
    assert not off.heal and not off.ignored
    with pytest.raises(InvalidRequest, match="heal"):
        parse({"heal": "no"})
