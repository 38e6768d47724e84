"""Prompts whose banks are computed before anybody asks for an answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.engine import EngineConfig
from headrace.engine.grammar import GrammarState
from headrace.engine.request import Request
from headrace.engine.scheduler import SchedulerConfig
from headrace.engine.stream import Generation
from headrace.errors import ContextLengthExceeded, InvalidRequest
from headrace.events import Failed, Finished, Started
from headrace.testing import FakeModel, FaultyModel, ManualEngine

BANK = FakeModel().spec.bank_size
SLOWLY = EngineConfig(scheduler=SchedulerConfig(max_running=4, max_step_tokens=32))


def prefill(engine: ManualEngine, prompt: str, **settings: object) -> Generation:
    return engine.generate_sync(Request(prompt=prompt, prefill_only=True, heal=False, **settings))  # type: ignore[arg-type]


def ask(engine: ManualEngine, prompt: str, **settings: object) -> Generation:
    return engine.generate_sync(Request(prompt=prompt, heal=False, max_tokens=4, **settings))  # type: ignore[arg-type]


def assert_free(engine: ManualEngine) -> None:
    stats = engine.stats()
    assert (stats.num_pending_requests, stats.num_running, stats.num_waiting) == (0, 0, 0)
    assert stats.num_held_banks == 0


def test_it_starts_and_ends_and_says_nothing() -> None:
    engine = ManualEngine()
    generation = prefill(engine, "x" * (3 * BANK + 5))
    engine.run_until_idle()
    started, finished = generation.events()
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert finished.reason == "length"
    assert finished.usage.num_completion_tokens == 0
    assert started.num_prompt_tokens == finished.usage.num_prompt_tokens == 3 * BANK + 5
    assert engine.step_profile().num_sampled == 0
    assert_free(engine)


def test_the_request_that_follows_finds_all_of_it() -> None:
    model = FakeModel()
    engine = ManualEngine(model)
    early = prefill(engine, "x" * (3 * BANK + 5))
    engine.run_until_idle()
    assert early.choice.usage.num_prompt_tokens == 3 * BANK + 5
    assert model.num_computed_tokens == 3 * BANK + 5
    answer = ask(engine, "x" * (3 * BANK + 5) + "y")
    engine.run_until_idle()
    assert answer.choice.usage.num_cached_tokens == 3 * BANK + 5
    assert answer.text == alone("x" * (3 * BANK + 5) + "y")


def alone(prompt: str) -> str:
    engine = ManualEngine()
    answer = ask(engine, prompt)
    engine.run_until_idle()
    return answer.text


def test_what_is_there_already_costs_no_step_of_the_model() -> None:
    model = FakeModel()
    engine = ManualEngine(model)
    for num_cached in (0, 2 * BANK, 2 * BANK):
        again = prefill(engine, "x" * 2 * BANK)
        engine.run_until_idle()
        assert again.choice.usage.num_cached_tokens == num_cached
    assert model.num_computed_tokens == 2 * BANK


def test_prompts_that_grow_by_a_word_are_computed_once() -> None:
    model = FakeModel()
    engine = ManualEngine(model)
    for length in range(4, 3 * BANK + 1, 4):
        early = prefill(engine, "x" * length)
        engine.run_until_idle()
        assert early.choice.usage.num_prompt_tokens == model.num_computed_tokens == length
    assert engine.stats().num_cached_banks == 3
    assert_free(engine)


def test_hundreds_with_nothing_to_compute_are_no_standstill() -> None:
    engine = ManualEngine(config=SLOWLY)
    many = [prefill(engine, "x") for _ in range(900)]
    engine.run_until_idle()
    assert all(one.choice.usage.num_completion_tokens == 0 for one in many)
    assert_free(engine)


def test_the_same_prompt_asked_while_it_is_prefilled_is_computed_once() -> None:
    model = FakeModel()
    engine = ManualEngine(model, SLOWLY)
    prompt = "x" * 8 * BANK
    early = prefill(engine, prompt)
    engine.step()
    answer = ask(engine, prompt + "?")
    engine.run_until_idle()
    assert early.choice.usage.num_cached_tokens + answer.choice.usage.num_cached_tokens > 0
    assert model.num_computed_tokens == 8 * BANK + 1 + 3
    assert answer.text == alone(prompt + "?")


def test_several_of_the_same_prompt_at_once_are_computed_once() -> None:
    model = FakeModel()
    engine = ManualEngine(model)
    many = [prefill(engine, "x" * 2 * BANK) for _ in range(3)]
    engine.run_until_idle()
    assert model.num_computed_tokens == 2 * BANK
    assert sorted(one.choice.usage.num_cached_tokens for one in many) == [0, 2 * BANK, 2 * BANK]


def test_another_tenant_finds_nothing() -> None:
    engine = ManualEngine()
    early = prefill(engine, "x" * 2 * BANK, tenant="alice")
    answer = ask(engine, "x" * 2 * BANK + "y", tenant="bob")
    engine.run_until_idle()
    assert early.choice.usage.num_cached_tokens == answer.choice.usage.num_cached_tokens == 0


class TestCancelling:
    def test_in_the_queue(self) -> None:
        engine = ManualEngine()
        generation = prefill(engine, "x" * 100)
        generation.cancel()
        engine.step()
        [event] = generation.ready()
        assert isinstance(event, Finished)
        assert event.reason == "cancelled"
        assert_free(engine)

    def test_in_the_middle_keeps_what_was_computed(self) -> None:
        engine = ManualEngine(config=SLOWLY)
        generation = prefill(engine, "x" * 200)
        engine.step()
        generation.cancel()
        engine.step()
        assert generation.choice.reason == "cancelled"
        assert_free(engine)
        answer = ask(engine, "x" * 200)
        engine.run_until_idle()
        assert answer.choice.usage.num_cached_tokens == 32

    def test_by_dropping_it(self) -> None:
        engine = ManualEngine(config=SLOWLY)
        generation = prefill(engine, "x" * 200)
        engine.step()
        del generation
        engine.step()
        assert_free(engine)


def test_a_failed_step_fails_it() -> None:
    engine = ManualEngine(FaultyModel(FakeModel(), raise_at={0: RuntimeError("lost")}))
    generation = prefill(engine, "x" * 40)
    engine.run_until_idle()
    assert [type(event) for event in generation.events()] == [Started, Failed]
    assert_free(engine)


def test_a_stream_beside_it_gets_a_token_every_step() -> None:
    engine = ManualEngine(FakeModel(rule=lambda _: ord("a")), SLOWLY)
    stream = engine.generate_sync(Request(prompt="a", max_tokens=60, ignore_eos=True))
    engine.step()
    early = prefill(engine, "x" * 200)
    for _ in range(8):
        stream.ready()
        engine.step()
        assert stream.ready()
    assert early.ready()


def test_a_grammar_is_not_begun_for_it() -> None:
    class Never:
        def start(self, vocab_size: int) -> GrammarState:
            raise AssertionError("nothing is sampled")

    engine = ManualEngine()
    generation = prefill(engine, "x" * 40, grammar=Never())
    engine.run_until_idle()
    assert generation.choice.reason == "length"


def test_one_choice_only() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        Request(prompt="a", prefill_only=True, n=2)
    assert refusal.value.param == "n"


def test_a_prompt_that_could_not_be_answered_is_refused() -> None:
    with pytest.raises(ContextLengthExceeded):
        prefill(ManualEngine(), "x" * 256)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 120)), min_size=1, max_size=12))
def test_in_any_order_answers_are_those_of_an_engine_without_them(
    asked: list[tuple[bool, int]],
) -> None:
    engine = ManualEngine(config=EngineConfig(pool_bytes=64 * 16, scheduler=SLOWLY.scheduler))
    running = []
    for is_prefill, length in asked:
        prompt = "x" * (length // 2) + "y" * (length - length // 2)
        running.append((is_prefill, prompt, (prefill if is_prefill else ask)(engine, prompt)))
        engine.step()
    engine.run_until_idle()
    assert_free(engine)
    for is_prefill, prompt, generation in running:
        assert generation.text == ("" if is_prefill else alone(prompt))
