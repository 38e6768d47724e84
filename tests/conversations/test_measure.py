"""Counts of messages add up to the prompts that templates make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.conversations.measure import Counts, Measure
from headrace.engine.loading import open_model
from headrace.engine.replay import replayed
from headrace.errors import InvalidRequest
from headrace.model.template import ChatTemplate
from headrace.testing import FakeTemplate, FakeTokenizer
from support import golden
from support.models import default_model_path

Prompt = Callable[[Sequence[Mapping[str, Any]], Mapping[int, Sequence[int]]], Sequence[int]]


def prompt_of(template: Any, tokenizer: Any) -> Prompt:
    return lambda messages, ids: replayed(tokenizer, template.render, messages, ids)


FAKE = prompt_of(FakeTemplate(), FakeTokenizer())
words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Co")), max_size=30)


@st.composite
def chats(draw: st.DrawFn) -> list[dict[str, str]]:
    messages = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(words)})
    for _ in range(draw(st.integers(0, 4))):
        messages.append({"role": "user", "content": draw(words)})
        if draw(st.integers(0, 4)) == 0:
            messages.append({"role": "assistant", "content": draw(words)})
            messages.append({"role": "tool", "content": draw(words)})
        messages.append({"role": "assistant", "content": draw(words)})
    return [*messages, {"role": "user", "content": draw(words)}]


def assert_exact(prompt: Prompt, messages: list[dict[str, str]]) -> None:
    measure = Measure(prompt, Counts())
    items = measure.items(messages)
    head = [message for message in messages[:1] if message["role"] == "system"]
    whole = len(prompt(messages, {}))
    assert measure.fixed(head) + sum(item.num_tokens for item in items) == whole
    assert all(item.num_tokens >= 0 for item in items)
    assert measure.fixed(head) >= 0
    assert [item.message for item in items] == messages


@given(chats())
def test_counts_are_exact_where_messages_follow_one_another(
    messages: list[dict[str, str]],
) -> None:
    assert_exact(FAKE, messages)


@cache
def default_model() -> Prompt:
    opened = open_model(default_model_path())
    return prompt_of(opened.template, opened.tokenizer)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(chats())
def test_counts_are_exact_for_the_default_model(messages: list[dict[str, str]]) -> None:
    """Its template has a system prompt of its own where there is none."""
    assert_exact(default_model(), messages)


@given(chats(), st.data())
def test_answers_count_as_the_tokens_that_they_are(
    messages: list[dict[str, str]], data: st.DataObject
) -> None:
    places = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    answers = {i: data.draw(st.lists(st.integers(0, 255), max_size=9)) for i in places}
    measure = Measure(FAKE, Counts())
    items = measure.items(messages, answers)
    head = [message for message in messages[:1] if message["role"] == "system"]
    whole = len(FAKE(messages, answers))
    assert measure.fixed(head) + sum(item.num_tokens for item in items) == whole


class TakesTurns(FakeTemplate):
    """Refuses two messages of one role in a row, and knows no system messages."""

    def render(self, messages: Sequence[Mapping[str, Any]], *args: Any, **more: Any) -> Any:
        roles = [message["role"] for message in messages]
        if roles[::2] != ["user"] * len(roles[::2]) or roles[1::2] != ["assistant"] * (
            len(roles) // 2
        ):
            raise InvalidRequest("roles must take turns")
        return super().render(messages)


@given(st.lists(words, min_size=1, max_size=9).filter(lambda texts: len(texts) % 2 == 1))
def test_a_template_that_wants_turns_is_asked_for_nothing_else(texts: list[str]) -> None:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    assert_exact(prompt_of(TakesTurns(), FakeTokenizer()), messages)


DROPS = """\
{% for message in messages %}
{{ '<|start|>' + message.role + ':' }}
{%- if message.reasoning_content and loop.last %}
{{ '<think>' + message.reasoning_content + '</think>' }}
{%- endif %}
{{ (message.content or '') + '<|end|>' }}
{%- endfor %}
{{ '<|start|>assistant:' }}
"""


@pytest.mark.parametrize("name", ["joined_markers", "llama", "mistral", "qwen"])
@pytest.mark.parametrize("has_system", [False, True])
@pytest.mark.parametrize("num_turns", [0, 1, 3])
def test_counts_are_exact_for_well_known_templates(
    name: str, has_system: bool, num_turns: int
) -> None:
    messages = [{"role": "system", "content": "Be kind."}] if has_system else []
    for index in range(num_turns):
        messages.append({"role": "user", "content": f"hello {index}"})
        messages.append({"role": "assistant", "content": f"yes {index}"})
    template = ChatTemplate(golden.template_source(name), "<s>", "</s>")
    prompt = prompt_of(template, FakeTokenizer())
    assert_exact(prompt, [*messages, {"role": "user", "content": "and now?"}])


def test_thoughts_that_a_template_drops_do_not_count() -> None:
    prompt = prompt_of(ChatTemplate(DROPS), FakeTokenizer())
    said = {"role": "assistant", "content": "four"}
    chat = [{"role": "user", "content": "2+2?"}, said, {"role": "user", "content": "and?"}]
    thought = [chat[0], {**said, "reasoning_content": "hm, easy"}, chat[2]]
    plain, with_thoughts = (
        [item.num_tokens for item in Measure(prompt, Counts()).items(messages)]
        for messages in (chat, thought)
    )
    assert plain == with_thoughts


def test_a_turn_is_measured_once() -> None:
    asked: list[int] = []

    def prompt(messages: Any, ids: Any) -> Sequence[int]:
        asked.append(len(messages))
        return FAKE(messages, ids)

    counts = Counts()
    chat = [
        {"role": role, "content": f"{role} {index}"}
        for index in range(20)
        for role in ("user", "assistant")
    ]
    Measure(prompt, counts).items([*chat, {"role": "user", "content": "new"}])
    num_before = len(asked)
    more = [*chat, *chat[:2], {"role": "user", "content": "newer"}]
    Measure(prompt, counts).items(more)
    assert len(asked) - num_before <= 2
    assert max(asked) <= 3


def test_what_came_before_is_looked_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the conversation is, its next turn takes as many steps."""
    chat = [
        {"role": role, "content": f"{role} {index}"}
        for index in range(30)
        for role in ("user", "assistant")
    ]
    new = {"role": "user", "content": "newer"}
    counts = Counts()
    ids = {len(chat) - 1: [1, 2, 3]}
    Measure(FAKE, counts).items([*chat, {"role": "user", "content": "x"}], ids)
    asked: list[bytes] = []
    get = counts.get
    monkeypatch.setattr(counts, "get", lambda key, count: asked.append(key) or get(key, count))
    Measure(FAKE, counts).items([*chat, new], ids)
    assert len(asked) <= 5
    Measure(FAKE, counts).items([*chat, new], {})
    assert len(asked) > 30


def test_a_template_that_shows_the_last_system_message_alone() -> None:
    """What comes first makes the prompt longer, and what follows shorter."""
    source = (
        "{% set told = namespace(text='') %}{% for m in messages %}"
        "{% if m.role == 'system' %}{% set told.text = m.content %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}{{ told.text }}"
    )
    prompt = prompt_of(ChatTemplate(source), FakeTokenizer())
    head = [{"role": "system", "content": text} for text in ("a long one", "b")]
    chat = [*head, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    items = Measure(prompt, Counts()).items([*chat, {"role": "user", "content": "x"}])
    assert items[1].num_tokens == len("b") - len("a long one")


def test_scopes_do_not_mix() -> None:
    counts = Counts()
    chat = [{"role": "user", "content": "hi"}]
    one = Measure(FAKE, counts, b"1").items(chat)
    two = Measure(lambda messages, ids: [0] * 7 * len(messages), counts, b"2").items(chat)
    assert one[0].num_tokens != two[0].num_tokens


def test_what_was_counted_longest_ago_is_forgotten() -> None:
    counts = Counts(capacity=2)
    for key in (b"a", b"b", b"a", b"c"):
        counts.get(key, lambda: [1])
    assert [*counts.get(b"a", lambda: [2])] == [1]
    assert [*counts.get(b"b", lambda: [2])] == [2]
    assert [*counts.get(b"many", lambda: [3, 4])] == [3, 4]
    assert [*counts.get(b"a", lambda: [5])] == [5]


def test_an_answer_that_is_gone_on_from_counts_its_words() -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "abcd"}]
    items = Measure(FAKE, Counts()).items(chat)
    assert items[1].num_tokens == 4


def test_calls_and_results_are_one_step() -> None:
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "twelve"},
        {"role": "tool", "content": "ten"},
    ]
    items = Measure(FAKE, Counts()).items(chat)
    assert [item.num_tokens for item in items[2:]] == [6, 3]


@pytest.mark.parametrize("text", ["", "a", "a longer text"])
def test_a_text_adds_its_tokens_to_a_message(text: str) -> None:
    assert Measure(FAKE, Counts()).text(text) == len(text) + 2
