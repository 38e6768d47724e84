"""Conversations of several turns on the default model: what each turn computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from headrace.engine.engine import Engine
from headrace.engine.request import Request
from headrace.events import Choice
from support.models import default_model_path

QUESTIONS = ("What is a mill?", "And what is a river?", "Name one.")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(default_model_path()) as opened:
        yield opened


def played(engine: Engine) -> list[Choice]:
    """Each turn's answer, warm enough that some do not tokenize to what was generated."""
    messages: list[dict[str, Any]] = []
    answers: dict[int, tuple[int, ...]] = {}
    choices = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        request = Request(
            messages=messages,
            answer_ids=answers,
            max_tokens=60,
            temperature=1.5,
            seed=7,
        )
        choice = engine.generate_sync(request).choice
        choices.append(choice)
        answers[len(messages)] = choice.token_ids
        messages.append({"role": "assistant", "content": choice.text})
    return choices


def test_a_turn_whose_tokens_are_kept_computes_only_its_own(engine: Engine) -> None:
    bank_size = engine.spec.bank_size
    before = 0
    for choice in played(engine):
        usage = choice.usage
        # All of the turn before but its last token, in whole banks.
        assert usage.num_cached_tokens >= before - 1 - bank_size
        before = usage.num_prompt_tokens + usage.num_completion_tokens
