"""The whole way with the native core: a file, a prompt, scheduler, banks, sampler, text, events.

An answer never depends on who else is there, on how little memory there is, on where a prompt was
cut, or on what was cached.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.engine.engine import Engine, EngineConfig
from headrace.engine.request import Request
from headrace.engine.scheduler import SchedulerConfig
from headrace.engine.turns import Turns
from headrace.events import Choice
from support.gguf_models import SHAPES, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny.gguf", SHAPES["llama"], "Q4_0")


REQUESTS = [
    Request(
        messages=[{"role": "user", "content": "why " * (3 * i + 1) + str(i)}],
        max_tokens=24 + 3 * i,
        temperature=1.0 if i % 2 else 0.0,
        top_p=0.95,
        repetition_penalty=1.1 if i % 3 else 1.0,
        seed=i,
        ignore_eos=True,
        logprobs=True,
        top_logprobs=2,
        stop=["zzz"],
    )
    for i in range(10)
]


@pytest.fixture(scope="module")
def alone(model: Path) -> list[Choice]:
    """The answers of an engine that nobody else uses, new for each request."""
    answers = []
    for request in REQUESTS:
        with Engine.load(model) as engine:
            answers.append(engine.generate_sync(request).choice)
    return answers


def said(choices: Sequence[Choice]) -> list[object]:
    """All that must not depend on circumstances."""
    return [(choice.text, choice.token_ids, choice.logprobs, choice.reason) for choice in choices]


async def together(engine: Engine) -> list[Choice]:
    async def ask(request: Request) -> Choice:
        async with engine.generate(request) as stream:
            [choice] = await stream.collect()
            return choice

    return await asyncio.gather(*map(ask, REQUESTS))


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(),
        EngineConfig(scheduler=SchedulerConfig(max_running=4, max_step_tokens=32)),
        EngineConfig(scheduler=SchedulerConfig(max_running=2)),
    ],
    ids=["roomy", "small steps", "two at a time"],
)
def test_a_crowd_changes_nothing(model: Path, alone: list[Choice], config: EngineConfig) -> None:
    with Engine.load(model, config=config) as engine:
        assert said(asyncio.run(together(engine))) == said(alone)
        # And once more, with all prompts cached.
        again = asyncio.run(together(engine))
    assert said(again) == said(alone)
    assert any(choice.usage.num_cached_tokens for choice in again)


def test_a_pool_too_small_for_all_changes_nothing(model: Path, alone: list[Choice]) -> None:
    with Engine.load(model) as engine:
        spec = engine.spec
    longest = max(c.usage.num_prompt_tokens + len(c.token_ids) for c in alone)
    num_banks = -(-longest // spec.bank_size) + 1
    with Engine.load(model, config=EngineConfig(pool_bytes=num_banks * spec.bank_bytes)) as engine:
        assert said(asyncio.run(together(engine))) == said(alone)
        assert engine.step_profile().num_preemptions > 0


@pytest.mark.parametrize("options", [{"threads": 1}, {"isa": "portable"}])
def test_threads_and_instruction_sets_change_nothing(
    model: Path, alone: list[Choice], options: dict[str, object]
) -> None:
    with Engine.load(model, **options) as engine:  # type: ignore[arg-type]
        assert said(asyncio.run(together(engine))) == said(alone)


def test_several_choices_are_what_each_would_be(model: Path) -> None:
    request = replace(REQUESTS[3], n=3)
    with Engine.load(model) as engine:
        choices = engine.generate_sync(request).choices
        assert len({choice.token_ids for choice in choices}) == 3
        assert said(choices[:1]) == said([engine.generate_sync(REQUESTS[3]).choice])


def test_prompts_computed_beforehand_change_nothing(model: Path, alone: list[Choice]) -> None:
    with Engine.load(model) as engine:
        early = [
            engine.generate_sync(replace(request, prefill_only=True)).choice for request in REQUESTS
        ]
        later = [engine.generate_sync(request).choice for request in REQUESTS]
        bank_size = engine.spec.bank_size
    assert said(later) == said(alone)
    for kept, choice in zip(early, later, strict=True):
        assert kept.token_ids == ()
        missing = choice.usage.num_prompt_tokens - kept.usage.num_prompt_tokens
        assert 0 <= missing < bank_size
        # The last token is computed again, for its logits, and so is all of its bank.
        again = 0 if missing else bank_size
        assert choice.usage.num_cached_tokens >= kept.usage.num_prompt_tokens - again


@pytest.fixture(scope="module")
def default_engine(default_model_path: Path) -> Iterator[Engine]:
    with Engine.load(default_model_path) as engine:
        yield engine


class TestDefaultModel:
    """The real thing."""

    def test_it_makes_sense(self, default_engine: Engine) -> None:
        messages = [{"role": "user", "content": "Name the capital of France."}]
        choice = default_engine.generate_sync(Request(messages=messages, max_tokens=40)).choice
        assert "Paris" in choice.text
        assert "<|im_end|>" not in choice.text
        assert choice.reason == "stop"

    def test_a_stop_string_across_tokens(self, default_engine: Engine) -> None:
        messages = [{"role": "user", "content": "Name the capital of France."}]
        stop = "tal of Fra"
        choice = default_engine.generate_sync(
            Request(messages=messages, max_tokens=40, stop=stop)
        ).choice
        assert choice.text.endswith("capi")
        assert choice.matched_stop == stop

    def test_a_prompt_sent_ahead_leaves_one_token(self, default_engine: Engine) -> None:
        story = "Once upon a time a miller lived beside a quick river. " * 12
        messages = [{"role": "user", "content": story + "Sum it up."}]
        request = Request(messages=messages, max_tokens=8)
        early = default_engine.generate_sync(replace(request, prefill_only=True)).choice
        choice = default_engine.generate_sync(request).choice
        assert (early.token_ids, early.reason) == ((), "length")
        assert choice.usage.num_prompt_tokens == early.usage.num_prompt_tokens > 100
        assert choice.usage.num_cached_tokens == early.usage.num_prompt_tokens - 1

    def test_a_second_turn_computes_only_its_own_tokens(self, default_engine: Engine) -> None:
        turns = Turns(default_engine.tokenizer, default_engine.template)
        question = "Tell me about the sea, in a few sentences."
        prompt = turns.prompt_for(question)
        first = default_engine.generate_sync(Request(token_ids=prompt, max_tokens=60)).choice
        turns.answered(question, prompt, first.text, first.token_ids)
        num_before = turns.num_tokens
        before = default_engine.step_profile().num_tokens
        prompt = turns.prompt_for("And the sky?")
        second = default_engine.generate_sync(Request(token_ids=prompt, max_tokens=1)).choice
        num_computed = default_engine.step_profile().num_tokens - before
        assert num_computed <= len(prompt) - num_before + 1
        assert second.usage.num_cached_tokens == len(prompt) - num_computed
