"""Prompts with the very tokens of earlier answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.replay import replayed, spelling
from headrace.engine.request import Request
from headrace.errors import InvalidRequest
from headrace.model.prompt import RenderedPrompt
from headrace.testing import END_ID, FakeModel, FakeTemplate, FakeTokenizer, ManualEngine, saying

TOKENIZER, TEMPLATE = FakeTokenizer(), FakeTemplate()


class Pairs(FakeTokenizer):
    """Two ways to spell "ab": token 258 is one, canonical text is two bytes."""

    vocab_size = 259

    def token_bytes(self, token: int) -> bytes:
        return b"ab" if token == 258 else super().token_bytes(token)


def chat(*texts: str) -> list[dict[str, str]]:
    """A user's and the assistant's messages in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


@given(st.lists(st.text(max_size=8), min_size=1, max_size=7))
def test_the_same_tokens_give_the_same_prompt(texts: list[str]) -> None:
    messages = chat(*texts)
    answers = {i: list(texts[i].encode()) for i in range(1, len(texts), 2)}
    prompt = TOKENIZER.encode_prompt(TEMPLATE.render(messages))
    assert replayed(TOKENIZER, TEMPLATE.render, messages, answers) == prompt


def test_a_prompt_goes_on_from_the_one_before_and_its_answers_own_tokens() -> None:
    tokenizer = Pairs()
    first = replayed(tokenizer, TEMPLATE.render, chat("hi"), {})
    answer = [258, ord("c"), END_ID]
    second = replayed(tokenizer, TEMPLATE.render, chat("hi", "abc", "and?"), {1: answer})
    assert second[: len(first) + len(answer)] == [*first, *answer]
    assert second.count(258) == 1


class Forgetful(FakeTemplate):
    """Shows the last message only."""

    def render(self, messages: Sequence[Mapping[str, Any]], *args: Any, **more: Any) -> Any:
        return super().render(messages[-1:])


def test_answers_that_a_template_hides_do_not_count() -> None:
    template = Forgetful()
    messages = chat("hi", "abc", "and?")
    assert replayed(TOKENIZER, template.render, messages, {1: [1, 2]}) == (
        TOKENIZER.encode_prompt(template.render(messages))
    )


class Spaced(FakeTemplate):
    """Writes a space before answers, which it does not ask for."""

    def render(self, messages: Sequence[Mapping[str, Any]], *args: Any, **more: Any) -> Any:
        return super().render(
            [
                {**m, "content": f" {m['content']}"} if m["role"] == "assistant" else m
                for m in messages
            ]
        )


def test_a_space_that_template_and_model_both_write_is_there_once() -> None:
    template = Spaced()
    first = replayed(TOKENIZER, template.render, chat("hi"), {})
    answer = [*b" yes", END_ID]
    second = replayed(TOKENIZER, template.render, chat("hi", "yes", "and?"), {1: answer})
    assert second[: len(first) + len(answer)] == [*first, *answer]
    unspaced = replayed(TOKENIZER, template.render, chat("hi", "yes", "and?"), {1: [*b"yes"]})
    assert unspaced == TOKENIZER.encode_prompt(template.render(chat("hi", "yes", "and?")))


class WithBos(FakeTokenizer):
    """Begins every prompt with token 259."""

    adds_bos = True
    bos_id = 259

    def encode_prompt(self, prompt: RenderedPrompt) -> list[int]:
        return [259, *super().encode_prompt(prompt)]


def test_there_is_one_bos_however_many_answers() -> None:
    messages = chat("a", "b", "c", "d", "e")
    prompt = replayed(WithBos(), TEMPLATE.render, messages, {1: [98], 3: [100]})
    assert prompt.count(259) == 1
    assert prompt[0] == 259


@pytest.mark.parametrize(
    ("ids", "content", "wanted"),
    [
        ([*b"yes", END_ID], "yes", [*b"yes", END_ID]),
        ([*b"yes"], "yes", [*b"yes"]),
        ([*b"\nyes ", END_ID], "yes", [*b"\nyes ", END_ID]),
        ([*b"thinking\n\nyes", END_ID], "yes", [*b"\n\nyes", END_ID]),
        ([*b"yes", END_ID], "no", []),
        ([*b"yesSTOP"], "yes", []),
        ([*b"<think>a</think>b", END_ID], "<think>a</think>b", []),
        ([END_ID], "", [END_ID]),
        ([], "", []),
    ],
)
def test_tokens_count_where_they_spell_what_is_said(
    ids: list[int], content: str, wanted: list[int]
) -> None:
    assert spelling(TOKENIZER, ids, {"role": "assistant", "content": content}) == wanted


def test_calls_are_spelled_by_the_template() -> None:
    message = {"role": "assistant", "content": "x", "tool_calls": [{}]}
    assert spelling(TOKENIZER, [120], message) == []


def test_a_replayed_turn_computes_only_new_tokens() -> None:
    model = FakeModel(rule=saying(b"a long answer to it", then=END_ID), bank_size=4)
    engine = ManualEngine(model)
    messages: list[dict[str, Any]] = []
    answers: dict[int, Sequence[int]] = {}
    num_before = 0
    for question in ("who are you?", "and who am I?", "bye"):
        messages.append({"role": "user", "content": question})
        generation = engine.generate_sync(Request(messages=messages, answer_ids=answers))
        engine.run_until_idle()
        choice = generation.choice
        # The last sampled token was never computed; neither is what shared its bank kept.
        assert choice.usage.num_cached_tokens >= num_before - 4
        num_before = choice.usage.num_prompt_tokens + choice.usage.num_completion_tokens
        answers[len(messages)] = choice.token_ids
        messages.append({"role": "assistant", "content": choice.text})
    assert num_before > 100


@pytest.mark.parametrize("answers", [{0: [1]}, {2: [1]}, {-1: [1]}])
def test_only_the_assistants_messages_have_answers(answers: dict[int, list[int]]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Request(messages=chat("a", "b"), answer_ids=answers)
    assert refused.value.param == "answer_ids"


@pytest.mark.parametrize("ids", [[9999], [-1], []])
def test_tokens_of_another_model_do_not_count(ids: list[int]) -> None:
    engine = ManualEngine()
    messages = chat("a", "b", "c")
    prepared = engine.prepare(Request(messages=messages, answer_ids={1: ids}))
    assert prepared.prompt == engine.prepare(Request(messages=messages)).prompt
