"""A generation that is cut anywhere and goes on in another engine, as if nothing had happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as checks
from hypothesis import strategies as st

from headrace import _native
from headrace.engine.engine import Engine, EngineConfig
from headrace.engine.past import Ended, Past, Said, past_of
from headrace.engine.request import Request
from headrace.engine.scheduler import SchedulerConfig
from headrace.errors import EngineOverloaded, GenerationFailed, GenerationTimeout, InvalidRequest
from headrace.events import Delta, Event, Failed, Finished, Started, fold
from headrace.model.grammar import GrammarCompiler, Vocabulary
from headrace.testing import END_ID, FakeModel, ManualEngine, saying
from support.gguf_models import SHAPES, write_model
from support.native_runs import ids
from support.resuming import Alphabet, Listener, again, by_choice, lasting, listen, past_in

CROWDED = EngineConfig(scheduler=SchedulerConfig(max_running=2, max_step_tokens=18))
"""Choices wait, and prompts are computed in chunks."""


def hear(request: Request, config: EngineConfig | None = None) -> list[Event]:
    engine = ManualEngine(config=config)
    listener = listen(engine, engine.prepare(request))
    engine.run_until_idle()
    return listener.events


def go_on(request: Request, past: Past, config: EngineConfig | None = None) -> list[Event]:
    """The events of `request` in a new engine that knows its past."""
    engine = ManualEngine(config=config)
    prepared = again(engine, engine.prepare(request), past)
    listener = listen(engine, prepared)
    engine.run_until_idle()
    stats = engine.stats()
    assert stats.num_pending_requests == stats.num_held_banks == 0
    assert engine.backlog.num_queued_tokens == 0
    return listener.events


LETTERS = Alphabet(b"abcdefgh", 99)
"""Every token is a character, so every token is a delta."""


def told(events: Sequence[Event]) -> tuple[Delta, ...]:
    return tuple(event for event in events if isinstance(event, Delta))


GRAMMARS = st.sampled_from(
    [
        None,
        Alphabet(b"abc", 30),
        Alphabet(b"ab\xc3\xa9\xf0", 9),  # characters of several bytes, and broken ones
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    logprobs = draw(st.booleans())
    return Request(
        prompt=draw(st.text("xyz", min_size=1, max_size=40)),
        n=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**53)),
        temperature=draw(st.sampled_from([0.0, 1.0])),
        max_tokens=draw(st.integers(1, 24)),
        stop=draw(st.sampled_from([(), ("ab",), ("bca", "cab", "abab")])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.7])),
        presence_penalty=draw(st.sampled_from([0.0, -0.5])),
        logit_bias={END_ID: draw(st.sampled_from([-100.0, 4.0]))},
        logprobs=logprobs,
        top_logprobs=2 if logprobs else 0,
        grammar=draw(GRAMMARS),
    )


class TestAnyCut:
    @given(request=requests(), data=st.data(), is_crowded=st.booleans())
    @checks(max_examples=60, deadline=None)
    def test_between_any_two_events(
        self, request: Request, data: st.DataObject, is_crowded: bool
    ) -> None:
        config = CROWDED if is_crowded else None
        undisturbed = hear(request, config)
        cut = data.draw(st.integers(0, len(undisturbed)))
        events = go_on(request, past_in(undisturbed[:cut]))
        assert by_choice(events) == by_choice(undisturbed)
        # What was heard before is said in the order in which it was heard, choices interleaved.
        assert lasting(events[:cut]) == lasting(undisturbed[:cut])

    @given(request=requests(), data=st.data())
    @checks(max_examples=40, deadline=None)
    def test_after_any_number_of_tokens_of_each_choice(
        self, request: Request, data: st.DataObject
    ) -> None:
        """Tokens alone, cut without regard to the deltas they came in."""
        request = replace(request, logprobs=False, top_logprobs=0)
        undisturbed = hear(request)
        answers = [choice.token_ids for choice in fold(undisturbed)]
        said = [ids(tokens[: data.draw(st.integers(0, len(tokens)))]) for tokens in answers]
        assert by_choice(go_on(request, past_of(said), CROWDED)) == by_choice(undisturbed)

    def test_again_and_again(self) -> None:
        """Cut after every event, each time what the last resumption said."""
        request = Request(prompt="ask", n=2, seed=5, temperature=1.0, max_tokens=6)
        undisturbed = hear(request)
        events: list[Event] = []
        for cut in range(len(undisturbed)):
            events = go_on(request, past_in([*events, *undisturbed][:cut]))
            assert by_choice(events) == by_choice(undisturbed)


class TestWork:
    def test_prompt_and_answer_are_computed_in_one_pass(self) -> None:
        request = Request(prompt="ask", seed=1, max_tokens=40, grammar=LETTERS)
        undisturbed = hear(request)
        model = FakeModel()
        engine = ManualEngine(model)
        past = past_in(undisturbed[:31])
        listener = listen(engine, again(engine, engine.prepare(request), past))
        engine.step()
        assert model.num_computed_tokens == 3 + 30
        assert lasting(listener.events) == lasting(undisturbed[:32])

    def test_nothing_is_computed_for_what_had_ended(self) -> None:
        request = Request(prompt="ask", n=2, seed=3, temperature=1.0, max_tokens=5)
        undisturbed = hear(request)
        model = FakeModel()
        engine = ManualEngine(model)
        past = past_in([e for e in undisturbed if isinstance(e, (Started, Delta))])
        listener = listen(engine, again(engine, engine.prepare(request), past))
        engine.step()
        assert model.num_steps == 0
        assert by_choice(listener.events) == by_choice(undisturbed)
        assert engine.stats().num_pending_requests == 0

    def test_what_was_said_is_heard_before_there_is_room(self) -> None:
        config = EngineConfig(scheduler=SchedulerConfig(max_running=1))
        undisturbed = hear(Request(prompt="ask", max_tokens=9))
        engine = ManualEngine(config=config)
        listen(engine, engine.prepare(Request(prompt="other", max_tokens=50)))
        engine.step()
        prepared = engine.prepare(Request(prompt="ask", max_tokens=9))
        listener = listen(engine, again(engine, prepared, past_in(undisturbed[:4])))
        engine.step()
        assert lasting(listener.events)[1:] == lasting(undisturbed[1:4])
        engine.run_until_idle()
        assert told(listener.events) == told(undisturbed)

    def test_a_seed_that_the_engine_chose(self) -> None:
        engine = ManualEngine()
        prepared = engine.prepare(Request(prompt="ask", temperature=1.0, max_tokens=9))
        undisturbed = listen(engine, prepared)
        engine.run_until_idle()
        other = ManualEngine()
        listener = listen(other, again(other, prepared, past_in(undisturbed.events[:3])))
        other.run_until_idle()
        assert by_choice(listener.events) == by_choice(undisturbed.events)

    def test_a_full_engine_takes_it_in(self) -> None:
        engine = ManualEngine(config=EngineConfig(max_pending=1))
        prepared = engine.prepare(Request(prompt="ask", max_tokens=5))
        listen(engine, prepared)
        with pytest.raises(EngineOverloaded):
            listen(engine, prepared)
        listener = listen(engine, again(engine, prepared, []))
        engine.run_until_idle()
        assert isinstance(listener.events[-1], Finished)

    def test_a_limit_is_the_old_one(self) -> None:
        engine = ManualEngine(FakeModel(rule=lambda _: 97, context_length=32))
        prepared = again(engine, engine.prepare(Request(prompt="ask", seed=1)), [])
        listener = listen(engine, replace(prepared, max_num_tokens=3 + 7))
        engine.run_until_idle()
        assert fold(listener.events)[0].text == "a" * 7

    def test_cancelled_while_it_catches_up(self) -> None:
        undisturbed = hear(Request(prompt="ask", max_tokens=60))
        engine = ManualEngine(config=CROWDED)
        prepared = engine.prepare(Request(prompt="ask", max_tokens=60))
        listener = Listener()
        ticket = engine.submit(again(engine, prepared, past_in(undisturbed[:50])), listener)
        engine.step()
        ticket.cancel()
        engine.step()
        assert told(listener.events) == told(undisturbed[:50])
        assert isinstance(end := listener.events[-1], Finished) and end.reason == "cancelled"
        assert engine.stats().num_held_banks == 0


class TestEnds:
    def test_a_cancelled_choice_stays_cancelled(self) -> None:
        engine = ManualEngine(FakeModel(rule=lambda _: 0xC3))  # half a character for ever
        prepared = engine.prepare(Request(prompt="ask", n=2))
        heard = Listener(2)
        ticket = engine.submit(prepared, heard)
        for _ in range(4):
            engine.step()
        ticket.cancel()
        engine.step()
        other = ManualEngine()
        listener = listen(other, again(other, prepared, past_in(heard.events)))
        other.step()
        assert by_choice(listener.events) == by_choice(heard.events)

    def test_an_error_stays_an_error_and_the_neighbour_goes_on(self) -> None:
        request = Request(prompt="ask", n=2, seed=1, temperature=1.0, max_tokens=6, grammar=LETTERS)
        undisturbed = hear(request)
        error = GenerationTimeout("no token for 5 s")
        past: list[Said | Ended] = [*past_in(undisturbed[:6]), Ended(1, error)]
        heard = by_choice(go_on(request, past))
        assert heard[0] == by_choice(undisturbed)[0]
        assert isinstance(end := heard[1][-1], Failed) and end.error is error
        assert end.usage.num_completion_tokens == 2

    def test_one_that_ended_in_the_queue(self) -> None:
        [end] = go_on(Request(prompt="ask"), [Ended(0, "cancelled")])
        assert isinstance(end, Finished) and end.reason == "cancelled"

    def test_words_after_the_end_are_not_said(self) -> None:
        past: Past = [Said(0, [*b"Hi", END_ID]), Said(0, [*b"more"]), Ended(0, "cancelled")]
        [choice] = fold(go_on(Request(prompt="ask"), past))
        assert (choice.text, choice.reason) == ("Hi", "stop")


class TestRefusals:
    def test_a_grammar_that_does_not_know_the_tokens(self) -> None:
        request = Request(prompt="ask", grammar=Alphabet(b"abc", 6), n=2)
        events = by_choice(go_on(request, [Said(0, [*b"abz"]), Said(1, [*b"ab"])]))
        end = events[0][-1]
        assert isinstance(end, Failed) and isinstance(end.error, GenerationFailed)
        assert "cannot go on where it was interrupted: token 122" in end.error.message
        assert [delta.text for delta in told(events[0])] == ["a", "b", ""]
        assert isinstance(events[1][-1], Finished)

    def test_log_probabilities_that_were_not_kept(self) -> None:
        events = go_on(Request(prompt="ask", logprobs=True), past_of([ids([97, 98])]))
        assert isinstance(end := events[-1], Failed)
        assert "2 tokens were kept and 0 log probabilities" in end.error.message

    def test_a_token_that_there_is_not(self) -> None:
        events = go_on(Request(prompt="ask", presence_penalty=1.0), past_of([ids([97, -5])]))
        assert isinstance(events[-1], Failed)

    @pytest.mark.parametrize("missing", ["token_ids", "seed"])
    def test_what_is_needed(self, missing: str) -> None:
        before = Request(token_ids=[1], seed=1)
        if missing == "seed":
            before = replace(before, seed=None)
        else:
            before = replace(before, token_ids=None, prompt="ask")
        with pytest.raises(InvalidRequest, match=f"`{missing}`") as caught:
            ManualEngine().prepare_again(before, [], max_num_tokens=9)
        assert caught.value.param == missing

    def test_a_pool_that_is_too_small_now(self) -> None:
        request = Request(prompt="ask", seed=1, max_tokens=9, grammar=LETTERS)
        undisturbed = hear(request)
        engine = ManualEngine(config=EngineConfig(pool_bytes=4 * 64))
        past = past_in(undisturbed[:4])
        prepared = again(engine, engine.prepare(request), past)
        listener = listen(engine, replace(prepared, max_num_tokens=2000))
        engine.run_until_idle()
        assert lasting(listener.events[:4]) == lasting(undisturbed[:4])
        assert isinstance(end := listener.events[-1], Failed)
        assert end.usage.num_completion_tokens == 3
        assert engine.stats().num_pending_requests == 0


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    return write_model(folder / "tiny.gguf", SHAPES["llama-smol"], "Q4_K")


class TestNativeCore:
    """Tokens that were decoded one by one are computed in chunks now, by other kernels."""

    REQUESTS = (
        Request(prompt="The river runs", n=2, temperature=1.0, seed=11, max_tokens=40),
        Request(
            prompt="The river runs " * 6,
            temperature=1.0,
            top_p=0.9,
            repetition_penalty=1.2,
            seed=7,
            max_tokens=60,
            logprobs=True,
            top_logprobs=3,
            ignore_eos=True,
        ),
        Request(prompt="x", n=3, seed=1, max_tokens=40, ignore_eos=True, stop=["e", "Th"]),
    )

    @pytest.mark.parametrize("threads", [1, 2])
    @pytest.mark.parametrize("isa", _native.cpu()["instruction_sets"])
    def test_on_another_machine(self, path: Path, isa: str, threads: int) -> None:
        config = EngineConfig(scheduler=SchedulerConfig(max_running=3, max_step_tokens=64))
        with Engine.load(path, threads=1) as first:
            runs = [(prepared := first.prepare(r), listen(first, prepared)) for r in self.REQUESTS]
            heard = [(prepared, listener.wait()) for prepared, listener in runs]
        with Engine.load(path, threads=threads, isa=isa, config=config) as second:
            resumed = [
                (events, listen(second, again(second, prepared, past_in(events[:cut]))))
                for prepared, events in heard
                for cut in range(0, len(events), 1 + len(events) // 4)
            ]
            for events, listener in resumed:
                assert by_choice(listener.wait()) == by_choice(events)


def test_a_real_grammar_in_flight(path: Path) -> None:
    rules = 'start: "{\\"name\\": \\"" /[a-z ]{3,30}/ "\\", \\"age\\": " /[1-9][0-9]{0,2}/ "}"\n'
    with Engine.load(path, threads=1) as first, Engine.load(path, threads=2) as second:
        asked = Request(prompt="Who?", n=2, temperature=1.0, seed=3, max_tokens=60)
        prepared, resumed = [], []
        for engine in (first, second):
            compiler = GrammarCompiler(Vocabulary(engine.tokenizer))
            request = replace(asked, grammar=compiler.compile(rules, "rules"))
            prepared.append(engine.prepare(request))
        events = listen(first, prepared[0]).wait()
        assert [choice.reason for choice in fold(events)] == ["stop", "stop"]
        for cut in range(0, len(events), 5):
            resumed.append(listen(second, again(second, prepared[1], past_in(events[:cut]))))
        for listener in resumed:
            assert by_choice(listener.wait()) == by_choice(events)


def test_a_stop_string_across_the_cut() -> None:
    engine = ManualEngine(FakeModel(rule=saying(b"one, two, three", then=END_ID)))
    request = Request(prompt="ask", stop="two", seed=1)
    prepared = again(engine, engine.prepare(request), past_of([ids([*b"one, tw"])]))
    listener = listen(engine, prepared)
    engine.run_until_idle()
    [choice] = fold(listener.events)
    assert (choice.text, choice.matched_stop) == ("one, ", "two")
