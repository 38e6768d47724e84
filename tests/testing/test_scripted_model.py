"""The scripted engine says its text at its pace, on the real scheduler."""

from __future__ import annotations

import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.engine import EngineConfig
from headrace.engine.request import Request
from headrace.errors import GenerationFailed, ModelError
from headrace.events import Delta, Finished
from headrace.model.interface import Batch, Model, SampleRow, SamplingSettings, Span
from headrace.model.prompt import RenderedPrompt
from headrace.testing import (
    END_ID,
    START_ID,
    FaultyModel,
    ManualEngine,
    ScriptedModel,
    ScriptedTokenizer,
    scripted_engine,
)

TEXT = "Hello there, dear reader: 42 é."
QUESTION = [{"role": "user", "content": "Say it."}]


def scripted(text: str = TEXT) -> ScriptedModel:
    return ScriptedModel(ScriptedTokenizer(text), text)


def row(sampler: object, position: int, mask: memoryview | None = None) -> SampleRow:
    return SampleRow(0, sampler, position, mask)  # type: ignore[arg-type]


def mask_of(tokens: list[int], vocab_size: int) -> memoryview:
    words = array("I", bytes(4 * -(-vocab_size // 32)))
    for token in tokens:
        words[token // 32] |= 1 << (token % 32)
    return memoryview(words)


def test_is_a_model() -> None:
    accepts: list[Model] = [scripted()]
    assert len(accepts) == 1


@given(st.text(max_size=40), st.text(st.characters(categories=["Cs", "L"]), max_size=5))
def test_tokens_are_the_text_again(text: str, odd: str) -> None:
    tokenizer = ScriptedTokenizer("some words")
    tokens = tokenizer.encode(text + odd)
    data = b"".join(map(tokenizer.token_bytes, tokens))
    assert data.decode("utf-8", "surrogatepass") == text + odd
    assert all(token < tokenizer.vocab_size for token in tokens)
    assert not {START_ID, END_ID} & set(tokens)


def test_tokens_are_about_words() -> None:
    tokenizer = ScriptedTokenizer("The miller's wheel")
    assert [tokenizer.token_text(t) for t in tokenizer.encode("The miller's wheel")] == [
        *("The", " miller", "'", "s", " wheel")
    ]
    english = "This is how the other people would say that they know the place very well."
    assert len(english) / len(tokenizer.encode(english)) > 4


def test_markers_are_the_templates_only() -> None:
    tokenizer = ScriptedTokenizer()
    text = "<|start|>a<|end|>"
    assert tokenizer.encode(text, special=True) == [START_ID, ord("a"), END_ID]
    assert START_ID not in tokenizer.encode(text)
    prompt = RenderedPrompt(text, ((0, 9),))
    assert tokenizer.encode_prompt(prompt)[0] == START_ID
    assert END_ID not in tokenizer.encode_prompt(prompt)


def test_no_two_tokens_are_alike() -> None:
    tokenizer = ScriptedTokenizer("the The  the banana")
    spelled = [tokenizer.token_bytes(t) for t in range(tokenizer.vocab_size)]
    told = [data for data in spelled if data]
    assert len(told) == len(set(told)) == tokenizer.vocab_size - 2


def test_every_choice_says_the_script_a_token_at_a_time() -> None:
    with scripted_engine(TEXT) as engine:
        generation = engine.generate_sync(Request(messages=QUESTION, n=3, temperature=1.0))
        events = list(generation.events())
        num_tokens = len(engine.tokenizer.encode(TEXT)) + 1
    for choice in range(3):
        own = [event for event in events if event.choice == choice]
        end = own[-1]
        assert isinstance(end, Finished)
        assert (end.reason, end.usage.num_completion_tokens) == ("stop", num_tokens)
        assert "".join(event.text for event in own if isinstance(event, Delta)) == TEXT


def test_limits_and_stops_hold() -> None:
    with scripted_engine(TEXT) as engine:
        [short] = engine.generate_sync(Request(prompt="x", max_tokens=2)).choices
        [stopped] = engine.generate_sync(Request(prompt="x", stop="dear")).choices
    assert (short.text, short.reason) == ("Hello there", "length")
    assert (stopped.text, stopped.matched_stop) == ("Hello there, ", "dear")


def test_who_ignores_the_end_hears_it_again() -> None:
    num_tokens = len(ScriptedTokenizer("One two.").encode("One two.")) + 1
    with scripted_engine("One two.") as engine:
        ask = Request(prompt="x", max_tokens=2 * num_tokens, ignore_eos=True)
        assert engine.generate_sync(ask).text == "One two.One two."


def test_a_preemption_changes_nothing() -> None:
    long = TEXT * 8
    config = EngineConfig(pool_bytes=6, context_length=150)
    with scripted_engine(long, config=config) as engine:
        asks = [Request(prompt="a word", tenant=str(i), max_tokens=120) for i in range(4)]
        generations = [engine.generate_sync(ask) for ask in asks]
        assert [generation.text for generation in generations] == [long] * 4
        assert engine.step_profile().num_preemptions


def test_faults_can_be_put_around_it() -> None:
    def faulty(model: Model) -> Model:
        return FaultyModel(model, raise_at={1: RuntimeError("on purpose")})

    with scripted_engine(TEXT, wrap=faulty) as engine:
        with pytest.raises(GenerationFailed, match="on purpose"):
            _ = engine.generate_sync(Request(prompt="x")).text
        assert engine.generate_sync(Request(prompt="x")).text == TEXT


def test_masks_are_obeyed() -> None:
    model = scripted("ab")
    [a] = ScriptedTokenizer("ab").encode("ab")
    size = model.spec.vocab_size
    sampler = model.make_sampler(SamplingSettings())

    def sampled(*allowed: int) -> int | None:
        return model.sample([row(sampler, 5, mask_of(list(allowed), size))])[0].token

    assert sampled(a, END_ID, 7) == a
    assert sampled(END_ID, 7) == END_ID
    assert sampled(ord("!"), ord("}"), ord('"')) == ord('"')
    assert sampled(ord("!")) == ord("!")
    [failed] = model.sample([row(sampler, 5, mask_of([], size))])
    assert failed.token is None
    assert failed.error


def test_logprobs_have_the_shape_that_was_asked_for() -> None:
    model = scripted()
    for number in (0, 1, 5):
        sampler = model.make_sampler(SamplingSettings(want_logprob=True, num_logprobs=number))
        [sampled] = model.sample([row(sampler, 3)])
        assert len(sampled.top) == number
        assert sampled.logprob == 0.0
        assert [token for token, _ in sampled.top][:1] == [sampled.token][:number]


def spans(*lengths: int) -> Batch:
    """A stream for each 1, a prompt for each other length."""
    return [
        Span(array("i", range(length)), 0, array("i", range(4)), 1 if length == 1 else 0)
        for length in lengths
    ]


def test_a_step_lasts_as_long_as_it_should() -> None:
    tokenizer = ScriptedTokenizer()
    model = ScriptedModel(tokenizer, tokens_per_s=100, prefill_tokens_per_s=1000, batch_cost=0.5)
    assert model.seconds(spans(1)) == pytest.approx(0.01)
    assert model.seconds(spans(1, 1, 1)) == pytest.approx(0.02)
    assert model.seconds(spans(30)) == pytest.approx(0.03)
    assert model.seconds(spans(1, 30, 1)) == pytest.approx(0.045)
    assert ScriptedModel(tokenizer, tokens_per_s=math.inf).seconds(spans(1, 1, 99)) == 0.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokens_per_s", 0),
        ("tokens_per_s", math.nan),
        ("prefill_tokens_per_s", 0.0),
        ("prefill_tokens_per_s", -1),
        ("batch_cost", -0.1),
        ("max_running", 0),
        ("context_length", 1),
    ],
)
def test_what_cannot_be_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        scripted_engine(**{name: value})  # type: ignore[arg-type]


def test_the_scheduler_guesses_its_pace_from_the_start() -> None:
    tokenizer = ScriptedTokenizer()
    model = ScriptedModel(tokenizer, tokens_per_s=100, prefill_tokens_per_s=1000)
    cost = ManualEngine(model)._loop._scheduler.cost
    assert cost.rates.base_s == pytest.approx(0.01, rel=1e-3)
    assert cost.rates.token_s == pytest.approx(0.001, rel=1e-3)


def test_another_text_is_another_model() -> None:
    assert scripted("a").spec.identity == scripted("a").spec.identity
    assert scripted("a").spec.identity != scripted("b").spec.identity


def test_logits_are_those_of_the_last_step() -> None:
    model = scripted()
    model.step(spans(1, 1))
    assert len(model.logits(1)) == model.spec.vocab_size
    with pytest.raises(ModelError, match="2 rows"):
        model.logits(2)
    model.close()
    with pytest.raises(ModelError, match="closed"):
        model.step(spans(1))
