"""A conversation as token ids."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from headrace.engine.request import Request
from headrace.engine.turns import Turns
from headrace.model.prompt import RenderedPrompt
from headrace.testing import (
    END_ID,
    START_ID,
    FakeModel,
    FakeTemplate,
    FakeTokenizer,
    ManualEngine,
    saying,
)


def turns(system: str | None = None) -> Turns:
    return Turns(FakeTokenizer(), FakeTemplate(), system)


def asks(text: str) -> list[int]:
    """What the template writes for a user's words, and before the answer to them."""
    return [START_ID, *f"user:{text}".encode(), END_ID, START_ID, *b"assistant:"]


def test_the_first_turn_is_rendered() -> None:
    assert turns().prompt_for("hi") == asks("hi")
    assert turns("be brief").prompt_for("hi") == [
        *(START_ID, *b"system:be brief", END_ID),
        *asks("hi"),
    ]


def test_asking_changes_nothing() -> None:
    conversation = turns()
    assert conversation.prompt_for("a") == conversation.prompt_for("a")
    assert conversation.messages == []


@pytest.mark.parametrize("end", [[END_ID], []], ids=["ended by itself", "was cut"])
def test_the_next_turn_goes_on_from_the_very_tokens(end: list[int]) -> None:
    conversation = turns()
    prompt = conversation.prompt_for("hi")
    # Not the tokens that the text would give: these bytes are not what "yo" tokenizes to.
    conversation.answered("hi", prompt, "yo", [1, 2, 3, *end])
    assert conversation.prompt_for("and?") == [*prompt, 1, 2, 3, END_ID, *asks("and?")]
    assert conversation.num_tokens == len(prompt) + 3 + len(end)
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]


def test_an_answer_of_nothing() -> None:
    conversation = turns()
    prompt = conversation.prompt_for("hi")
    conversation.answered("hi", prompt, "", [])
    assert conversation.prompt_for("a") == [*prompt, END_ID, *asks("a")]


class TwoEnds(FakeTokenizer):
    """A model that ends answers with another marker than its template writes."""

    eog_ids = frozenset({END_ID, 258})


def test_the_templates_own_end_takes_the_place_of_another() -> None:
    conversation = Turns(TwoEnds(), FakeTemplate())
    prompt = conversation.prompt_for("hi")
    conversation.answered("hi", prompt, "yo", [1, 258])
    assert conversation.prompt_for("a") == [*prompt, 1, END_ID, *asks("a")]


class WithBos(FakeTokenizer):
    """Begins every prompt with token 259."""

    adds_bos = True
    bos_id = 259

    def encode_prompt(self, prompt: RenderedPrompt) -> list[int]:
        return [259, *super().encode_prompt(prompt)]


def test_there_is_one_bos() -> None:
    conversation = Turns(WithBos(), FakeTemplate())
    prompt = conversation.prompt_for("hi")
    conversation.answered("hi", prompt, "yo", [1, END_ID])
    assert conversation.prompt_for("a").count(259) == 1


class Forgetful(FakeTemplate):
    """Shows the last message only."""

    def render(self, messages: Sequence[Mapping[str, Any]]) -> RenderedPrompt:
        return super().render(messages[-1:])


def test_a_template_that_hides_answers_is_rendered_anew() -> None:
    conversation = Turns(FakeTokenizer(), Forgetful())
    conversation.answered("hi", [1], "yo", [2])
    assert conversation.prompt_for("a") == asks("a")


def test_each_turn_computes_only_what_is_new() -> None:
    model = FakeModel(rule=saying(b"a long answer to a question", then=END_ID), bank_size=4)
    engine = ManualEngine(model)
    conversation = Turns(engine.tokenizer, engine.template)
    num_before = 0
    for question in ("who are you?", "and who am I?", "bye"):
        prompt = conversation.prompt_for(question)
        generation = engine.generate_sync(Request(token_ids=prompt))
        engine.run_until_idle()
        choice = generation.choice
        # The last sampled token was never computed; neither is what shared its bank kept.
        assert choice.usage.num_cached_tokens >= num_before - 4
        conversation.answered(question, prompt, choice.text, choice.token_ids)
        num_before = conversation.num_tokens
    assert num_before > 100
