"""The loop, one step at a time, on a fake model."""

import asyncio
import time

import pytest

from headrace.engine.engine import Engine, EngineConfig
from headrace.engine.grammar import GrammarState
from headrace.engine.request import Request
from headrace.engine.scheduler import Scheduler, SchedulerConfig
from headrace.engine.stream import Generation
from headrace.engine.voice import Voice
from headrace.errors import (
    EngineClosed,
    GenerationFailed,
    HeadraceError,
    InvalidRequest,
    ModelError,
)
from headrace.events import Delta, Event, Failed, Finished, Started, fold
from headrace.testing import (
    END_ID,
    FakeModel,
    FakeTemplate,
    FakeTokenizer,
    FaultyModel,
    ManualEngine,
    saying,
)

POOL = EngineConfig(scheduler=SchedulerConfig(max_running=4))


def saying_text(text: str) -> FakeModel:
    return FakeModel(rule=saying(text.encode(), then=END_ID))


def ask(engine: ManualEngine, prompt: str = "ask", **settings: object) -> Generation:
    return engine.generate_sync(Request(prompt=prompt, **settings))  # type: ignore[arg-type]


def assert_free(engine: ManualEngine) -> None:
    """Nobody is there, and nobody holds a bank."""
    stats = engine.stats()
    assert (stats.num_pending_requests, stats.num_running, stats.num_waiting) == (0, 0, 0)
    assert stats.num_held_banks == 0
    assert stats.num_free_banks + stats.num_cached_banks == stats.num_banks


def assert_well_formed(events: list[Event], n: int = 1) -> None:
    """Started, deltas that cover every token once, one terminal event; for each choice."""
    for choice in range(n):
        heard = [event for event in events if event.choice == choice]
        assert isinstance(heard[-1], (Finished, Failed))
        assert not any(isinstance(event, (Finished, Failed)) for event in heard[:-1])
        if len(heard) > 1:
            assert isinstance(heard[0], Started)
        covered = 0
        for delta in heard[1:-1]:
            assert isinstance(delta, Delta)
            assert delta.start == covered
            covered += len(delta.token_ids)
        assert heard[-1].usage.num_completion_tokens == covered


class TestSaying:
    def test_an_answer_from_its_first_word_to_its_end(self) -> None:
        engine = ManualEngine(saying_text("Hello"))
        generation = ask(engine)
        engine.run_until_idle()
        events = list(generation.events())
        assert_well_formed(events)
        [choice] = fold(events)
        assert choice.text == "Hello"
        assert choice.token_ids == (*b"Hello", END_ID)
        assert choice.reason == "stop"
        assert choice.matched_stop is None
        assert choice.usage.num_prompt_tokens == 3
        assert_free(engine)

    def test_each_step_says_one_token(self) -> None:
        engine = ManualEngine(saying_text("abc"))
        generation = ask(engine)
        said = []
        while not generation._ticket.is_over:
            engine.step()
            said.append([e.text for e in generation.ready() if isinstance(e, Delta)])
        assert said == [["a"], ["b"], ["c"], [""]]

    def test_max_tokens(self) -> None:
        engine = ManualEngine(saying_text("Hello"))
        generation = ask(engine, max_tokens=3)
        assert engine.run_until_idle() == 3
        assert (generation.text, generation.choice.reason) == ("Hel", "length")
        assert generation.choice.usage.num_completion_tokens == 3
        assert_free(engine)

    def test_the_context_ends_an_answer(self) -> None:
        engine = ManualEngine(FakeModel(rule=lambda _: 97, context_length=32))
        generation = ask(engine)
        engine.run_until_idle()
        assert (generation.text, generation.choice.reason) == ("a" * 29, "length")

    def test_end_of_generation_can_be_ignored(self) -> None:
        engine = ManualEngine(saying_text("Hi"))
        generation = ask(engine, ignore_eos=True, max_tokens=5)
        engine.run_until_idle()
        assert generation.choice.token_ids == (*b"Hi", END_ID, END_ID, END_ID)
        assert generation.choice.reason == "length"

    def test_a_stop_string_is_never_said(self) -> None:
        engine = ManualEngine(saying_text("one, two, three"))
        generation = ask(engine, stop=["two,", "xyz"])
        seen = ""
        while not generation._ticket.is_over:
            engine.step()
            seen += "".join(e.text for e in generation.ready() if isinstance(e, Delta))
        assert seen == "one, "
        assert (generation.choice.reason, generation.choice.matched_stop) == ("stop", "two,")
        assert generation.choice.token_ids == tuple(b"one, two,")

    def test_text_held_back_for_a_stop_string_comes_at_the_end(self) -> None:
        engine = ManualEngine(saying_text("one, tw"))
        generation = ask(engine, stop="two")
        engine.run_until_idle()
        assert generation.text == "one, tw"
        assert generation.choice.matched_stop is None

    def test_no_delta_breaks_a_character(self) -> None:
        engine = ManualEngine(saying_text("é€😀"))
        generation = ask(engine)
        pieces = []
        while not generation._ticket.is_over:
            engine.step()
            pieces += [e.text for e in generation.ready() if isinstance(e, Delta) and e.text]
        assert pieces == ["é", "€", "😀"]

    def test_several_choices(self) -> None:
        engine = ManualEngine()
        generation = ask(engine, n=3, temperature=1.0, max_tokens=8, seed=5)
        engine.run_until_idle()
        events = list(generation.events())
        assert_well_formed(events, n=3)
        answers = [choice.token_ids for choice in fold(events)]
        assert len(set(answers)) == 3
        assert [e.seed for e in events if isinstance(e, Started)] == [5, 5, 5]
        assert_free(engine)

    def test_choices_share_the_prompts_full_banks(self) -> None:
        model = FakeModel()
        engine = ManualEngine(model)
        generation = ask(engine, "x" * 100, n=4, max_tokens=1)
        engine.run_until_idle()
        # One computes 100; the others only what is beyond the six full banks of 16.
        assert model.num_computed_tokens == 100 + 3 * 4
        assert len(generation.choices) == 4

    def test_the_same_seed_says_the_same(self) -> None:
        engine = ManualEngine()
        generations = [ask(engine, temperature=1.5, max_tokens=12, seed=seed) for seed in (1, 1, 2)]
        engine.run_until_idle()
        first, again, other = (generation.choice.token_ids for generation in generations)
        assert first == again
        assert first != other

    def test_a_chosen_seed_can_be_asked_for_again(self) -> None:
        engine = ManualEngine()
        first = ask(engine, temperature=1.5, max_tokens=12)
        engine.run_until_idle()
        again = ask(engine, temperature=1.5, max_tokens=12, seed=first.seed)
        engine.run_until_idle()
        assert first.choice.token_ids == again.choice.token_ids

    def test_logprobs_come_with_their_tokens(self) -> None:
        engine = ManualEngine(saying_text("abc"))
        generation = ask(engine, logprobs=True, top_logprobs=2, stop="c")
        engine.run_until_idle()
        events = list(generation.events())
        for event in events:
            if isinstance(event, Delta):
                assert tuple(logprob.token for logprob in event.logprobs) == event.token_ids
        [choice] = fold(events)
        assert [len(logprob.top) for logprob in choice.logprobs] == [2, 2, 2]
        assert choice.logprobs[0].top[0] == (97, choice.logprobs[0].logprob)

    def test_times_are_those_of_the_clock(self) -> None:
        engine = ManualEngine(saying_text("ab"), POOL)
        generation = ask(engine)
        for seconds in (1.0, 2.0, 4.0):
            engine.clock.advance(seconds)
            engine.step()
        timings = generation.choice.timings
        assert (timings.queued_s, timings.prefill_s, timings.decode_s) == (1.0, 0.0, 6.0)


class TestCaching:
    def test_a_second_turn_as_ids_computes_only_what_is_new(self) -> None:
        model = FakeModel()
        engine = ManualEngine(model)
        first = ask(engine, "x" * 50, max_tokens=30, ignore_eos=True)
        engine.run_until_idle()
        history = [*first.prompt_ids, *first.choice.token_ids]
        before = model.num_computed_tokens
        second = engine.generate_sync(Request(token_ids=[*history, 1, 2, 3], max_tokens=1))
        engine.run_until_idle()
        assert model.num_computed_tokens - before <= 3 + model.spec.bank_size
        assert second.choice.usage.num_cached_tokens >= 80 - model.spec.bank_size

    def test_tenants_share_nothing(self) -> None:
        engine = ManualEngine()
        for tenant in ("a", "b"):
            generation = ask(engine, "x" * 50, max_tokens=1, tenant=tenant)
            engine.run_until_idle()
            assert generation.choice.usage.num_cached_tokens == 0


class TestLeaving:
    """At each station the client leaves; one step later everything is free."""

    def test_queued(self) -> None:
        engine = ManualEngine()
        generation = ask(engine)
        generation.cancel()
        engine.step()
        [event] = generation.ready()
        assert isinstance(event, Finished)
        assert (event.reason, event.usage.num_completion_tokens) == ("cancelled", 0)
        assert_free(engine)

    def test_queued_behind_others(self) -> None:
        engine = ManualEngine(config=POOL)
        others = [ask(engine, max_tokens=50, ignore_eos=True) for _ in range(4)]
        engine.step()
        late = ask(engine)
        engine.step()
        assert engine.stats().num_waiting == 1
        late.cancel()
        engine.step()
        assert engine.stats().num_waiting == 0
        assert [type(event) for event in late.ready()] == [Finished]
        engine.run_until_idle()
        assert [len(other.choice.token_ids) for other in others] == [50] * 4
        assert_free(engine)

    def test_in_prefill(self) -> None:
        config = EngineConfig(scheduler=SchedulerConfig(max_running=4, max_step_tokens=32))
        engine = ManualEngine(config=config)
        generation = ask(engine, "x" * 200)
        engine.step()
        engine.step()
        assert [type(event) for event in generation.ready()] == [Started]
        generation.cancel()
        engine.step()
        [event] = generation.ready()
        assert isinstance(event, Finished)
        assert event.reason == "cancelled"
        assert_free(engine)

    def test_decoding_leaves_the_neighbour_alone(self) -> None:
        alone = ManualEngine()
        expected = ask(alone, "stays", max_tokens=20, ignore_eos=True)
        alone.run_until_idle()
        engine = ManualEngine()
        leaves = ask(engine, "leaves", ignore_eos=True)
        stays = ask(engine, "stays", max_tokens=20, ignore_eos=True)
        for _ in range(5):
            engine.step()
        leaves.cancel()
        engine.run_until_idle()
        assert leaves.choice.reason == "cancelled"
        assert len(leaves.choice.token_ids) == 5
        assert stays.choice.token_ids == expected.choice.token_ids
        assert_free(engine)

    def test_all_choices_at_once(self) -> None:
        engine = ManualEngine()
        generation = ask(engine, n=3, ignore_eos=True)
        for _ in range(3):
            engine.step()
        generation.cancel()
        engine.step()
        events = generation.ready()
        assert_well_formed(events, n=3)
        assert {e.reason for e in events if isinstance(e, Finished)} == {"cancelled"}
        assert_free(engine)

    def test_after_the_end(self) -> None:
        engine = ManualEngine(saying_text("a"))
        generation = ask(engine)
        engine.run_until_idle()
        generation.cancel()
        engine.step()
        assert generation.choice.reason == "stop"
        assert_free(engine)

    def test_twice(self) -> None:
        engine = ManualEngine()
        generation = ask(engine)
        engine.step()
        generation.cancel()
        generation.cancel()
        engine.step()
        assert_well_formed(generation.ready())
        assert_free(engine)

    def test_dropping_the_generation(self) -> None:
        engine = ManualEngine()
        generation = ask(engine, ignore_eos=True)
        engine.step()
        assert engine.stats().num_running == 1
        del generation
        engine.step()
        assert_free(engine)

    def test_an_event_loop_that_closes(self) -> None:
        engine = ManualEngine()

        async def leave_in_the_middle() -> None:
            stream = engine.generate(Request(prompt="a", ignore_eos=True))
            await stream.__aenter__()
            engine.step()

        asyncio.run(leave_in_the_middle())
        engine.step()
        engine.step()
        assert_free(engine)


class TestFaults:
    def test_a_failed_step_fails_those_in_it_and_no_others(self) -> None:
        model = FaultyModel(saying_text("abc"), raise_at={1: ModelError("out of luck")})
        engine = ManualEngine(model)
        first, second = ask(engine, "1"), ask(engine, "2")
        engine.step()
        engine.step()
        third = ask(engine, "3")
        engine.run_until_idle()
        for generation in (first, second):
            events = generation.ready()
            assert_well_formed(events)
            failed = events[-1]
            assert isinstance(failed, Failed)
            assert isinstance(failed.error, GenerationFailed)
            assert "out of luck" in failed.error.message
        assert third.text == "abc"
        assert_free(engine)

    @pytest.mark.parametrize("error", [MemoryError(), ValueError("x"), RecursionError()])
    def test_any_exception_of_the_model_is_survived(self, error: Exception) -> None:
        engine = ManualEngine(FaultyModel(saying_text("abc"), raise_at={0: error}))
        failing = ask(engine)
        engine.run_until_idle()
        with pytest.raises(GenerationFailed):
            _ = failing.text
        later = ask(engine)
        engine.run_until_idle()
        assert later.text == "abc"
        assert_free(engine)

    @pytest.mark.parametrize("fails", [True, False])
    def test_what_a_failed_choice_wrote_is_not_gone_on_from(self, fails: bool) -> None:
        engine = ManualEngine(FaultyModel(saying_text("abc"), nan_at=[(0, 0)] if fails else []))
        generation = ask(engine, "asked at length")
        engine.run_until_idle()
        assert isinstance(generation.ready()[-1], Failed if fails else Finished)
        assert engine.stats().num_cached_banks == (0 if fails else 1)

    def test_a_row_that_is_not_numbers_fails_its_choice_alone(self) -> None:
        model = FaultyModel(saying_text("abc"), nan_at=[(1, 0)])
        engine = ManualEngine(model)
        first, second = ask(engine, "1"), ask(engine, "2")
        engine.run_until_idle()
        events = first.ready()
        assert_well_formed(events)
        failed = events[-1]
        assert isinstance(failed, Failed)
        assert "not numbers" in failed.error.message
        assert failed.usage.num_completion_tokens == 1
        assert second.text == "abc"
        assert_free(engine)

    def test_what_a_failed_step_computed_is_not_cached(self) -> None:
        model = FaultyModel(FakeModel(), raise_at={0: ModelError("x")})
        engine = ManualEngine(model)
        failing = ask(engine, "x" * 100)
        engine.run_until_idle()
        assert isinstance(failing.ready()[-1], Failed)
        again = ask(engine, "x" * 100, max_tokens=2)
        engine.run_until_idle()
        assert again.choice.usage.num_cached_tokens == 0


class _OnlyLetters(GrammarState):
    """Allows the letters of `word`, in order; `broken_at` raises there."""

    def __init__(self, word: bytes, vocab_size: int, broken_at: int | None = None) -> None:
        self._word = word
        self._vocab_size = vocab_size
        self._broken_at = broken_at
        self.accepted: list[int] = []

    def mask(self) -> memoryview:
        if len(self.accepted) == self._broken_at:
            raise ValueError("a bug in a grammar")
        bits = bytearray(-(-self._vocab_size // 32) * 4)
        if len(self.accepted) < len(self._word):
            token = self._word[len(self.accepted)]
            bits[token // 8] |= 1 << (token % 8)
        return memoryview(bytes(bits)).cast("I")

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    @property
    def is_complete(self) -> bool:
        return len(self.accepted) == len(self._word) and self._broken_at is None


class _Word:
    def __init__(self, word: bytes, broken_at: int | None = None) -> None:
        self._word = word
        self._broken_at = broken_at

    def start(self, vocab_size: int) -> GrammarState:
        return _OnlyLetters(self._word, vocab_size, self._broken_at)


class _NoGrammar:
    def start(self, vocab_size: int) -> GrammarState:
        raise InvalidRequest("`grammar` cannot be compiled", param="grammar")


class TestGrammar:
    def test_a_grammar_chooses_and_ends(self) -> None:
        engine = ManualEngine()
        generation = ask(engine, grammar=_Word(b"yes"), n=2)
        free = ask(engine, max_tokens=5)
        engine.run_until_idle()
        assert [choice.text for choice in generation.choices] == ["yes", "yes"]
        assert generation.choice.reason == "stop"
        assert len(free.choice.token_ids) == 5

    def test_an_empty_mask_fails_its_choice_alone(self) -> None:
        engine = ManualEngine(saying_text("abc"))
        # Never complete, so after two letters nothing is allowed.
        stuck = ask(engine, grammar=_Word(b"no", broken_at=99))
        free = ask(engine)
        engine.run_until_idle()
        with pytest.raises(GenerationFailed, match="token 2: no token is allowed"):
            _ = stuck.text
        assert free.text == "abc"
        assert_free(engine)

    def test_a_bug_in_a_grammar_fails_its_choice_alone(self) -> None:
        engine = ManualEngine(saying_text("abc"))
        buggy = ask(engine, grammar=_Word(b"yes", broken_at=1))
        free = ask(engine)
        engine.run_until_idle()
        with pytest.raises(GenerationFailed, match="a bug in a grammar"):
            _ = buggy.text
        assert free.text == "abc"
        assert_free(engine)

    def test_a_grammar_that_cannot_start_is_a_failed_event(self) -> None:
        engine = ManualEngine()
        generation = ask(engine, grammar=_NoGrammar(), n=2)
        engine.step()
        events = generation.ready()
        assert_well_formed(events, n=2)
        assert len(events) == 2
        assert_free(engine)


class TestTheEnd:
    def test_closing_tells_everybody(self) -> None:
        engine = ManualEngine(config=POOL)
        running = [ask(engine, ignore_eos=True) for _ in range(4)]
        engine.step()
        waiting = ask(engine)
        engine.step()
        unread = ask(engine, n=2)
        engine.close()
        engine.close()
        for generation in (*running, waiting):
            events = generation.ready()
            assert_well_formed(events)
            assert isinstance(events[-1], Failed)
            assert isinstance(events[-1].error, EngineClosed)
        assert_well_formed(unread.ready(), n=2)
        with pytest.raises(EngineClosed):
            ask(engine)

    def test_the_model_is_closed_too(self) -> None:
        model = FakeModel()
        ManualEngine(model).close()
        assert model.is_closed

    def test_one_whose_last_words_fail_takes_nobody_along(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = FakeModel()
        engine = ManualEngine(model, POOL)
        running = [ask(engine, ignore_eos=True) for _ in range(3)]
        engine.step()
        broken = next(iter(engine._loop._choices))

        def fail(voice: Voice, error: HeadraceError, now: float) -> list[Event]:
            if voice is broken:
                raise RuntimeError("no last words")
            return fail_as_ever(voice, error, now)

        fail_as_ever = Voice.fail
        monkeypatch.setattr(Voice, "fail", fail)
        engine.close()
        for generation in running:
            last = generation.ready()[-1]
            assert isinstance(last, Failed)
            assert isinstance(last.error, EngineClosed)
        assert model.is_closed

    @pytest.mark.parametrize("leaves", [True, False])
    def test_one_end_though_the_scheduler_breaks(
        self, monkeypatch: pytest.MonkeyPatch, leaves: bool
    ) -> None:
        engine = ManualEngine(saying_text("abc"), POOL)
        generation = ask(engine, max_tokens=1 if not leaves else 3)
        other = ask(engine, ignore_eos=True)
        if leaves:
            engine.step()
            generation.cancel()

        def cancel(scheduler: Scheduler, *whatever: object, **more: object) -> None:
            raise RuntimeError("a bug in the scheduler")

        monkeypatch.setattr(Scheduler, "cancel", cancel)
        with pytest.raises(RuntimeError, match="a bug in the scheduler"):
            engine.run_until_idle()
        engine.close()
        for one in (generation, other):
            events = one.ready()
            assert_well_formed(events)

    def test_dropping_the_engine_closes_it(self) -> None:
        model = FakeModel()
        engine = ManualEngine(model)
        generation = ask(engine)
        del engine
        assert model.is_closed
        [event] = generation.ready()
        assert isinstance(event, Failed)


class TestPreemption:
    def test_clients_notice_nothing(self) -> None:
        alone = ManualEngine()
        prompts = [f"prompt number {i}" for i in range(6)]
        expected = []
        for prompt in prompts:
            generation = ask(alone, prompt, max_tokens=60, ignore_eos=True, temperature=1, seed=3)
            alone.run_until_idle()
            expected.append(generation.choice.token_ids)
        model = FakeModel(bank_size=4)
        # 30 banks of 4: two sequences of 76 tokens do not fit, and six wish to run.
        config = EngineConfig(
            pool_bytes=30 * model.spec.bank_bytes, scheduler=SchedulerConfig(max_running=6)
        )
        engine = ManualEngine(model, config)
        together = [
            ask(engine, prompt, max_tokens=60, ignore_eos=True, temperature=1, seed=3)
            for prompt in prompts
        ]
        engine.run_until_idle()
        for generation, tokens in zip(together, expected, strict=True):
            events = list(generation.events())
            assert_well_formed(events)
            assert fold(events)[0].token_ids == tokens
        assert engine.step_profile().num_preemptions > 0
        assert_free(engine)


def test_the_profile_accounts_for_every_step() -> None:
    engine = ManualEngine(saying_text("abc"))
    generation = ask(engine)
    engine.run_until_idle()
    assert generation.text == "abc"
    profile = engine.step_profile()
    assert (profile.num_steps, profile.num_tokens, profile.num_sampled) == (4, 3 + 3, 4)
    assert 0 < profile.python_s < profile.total_s
    later = engine.step_profile().since(profile)
    assert (later.num_steps, later.python_share) == (0, 0.0)


def test_the_fake_tokenizer_gives_back_what_it_took() -> None:
    tokenizer = FakeTokenizer()
    ids = tokenizer.encode("<|start|>é<|end|>", special=True)
    assert ids == [256, *"é".encode(), 257]
    assert tokenizer.encode("<|end|>") == list(b"<|end|>")


def test_an_idle_engine_has_memory_in_place_for_the_next_banks() -> None:
    model = FakeModel()
    engine = Engine(model, FakeTokenizer(), FakeTemplate(), EngineConfig(pool_bytes=64 * 100))
    with engine:
        assert engine.generate_sync(Request(prompt="a" * 40, max_tokens=2)).choice.text is not None
        num_banks = engine.stats().num_banks
        deadline = time.monotonic() + 30
        while model.num_touched < num_banks and time.monotonic() < deadline:
            time.sleep(0.001)
    assert model.num_touched == num_banks
