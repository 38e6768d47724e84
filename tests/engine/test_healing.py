"""Texts that are gone on from wherever they end: nothing is doubled, nothing lost, nothing else."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import assume, example, given
from hypothesis import settings as checks
from hypothesis import strategies as st

from headrace.engine.engine import Engine
from headrace.engine.healing import HealableTokenizer, Healer, Spellings
from headrace.engine.request import Request
from headrace.errors import GenerationFailed, InvalidRequest
from headrace.events import Choice, Delta, Event, Finished, fold
from headrace.model.grammar import CompiledGrammar, GrammarCompiler, Vocabulary
from headrace.model.grammar.compiler import as_rule
from headrace.testing import END_ID, FakeModel, FakeTemplate, FakeTokenizer, saying
from headrace.testing.fake_model import Rule
from support.golden import byte_level, scored
from support.resuming import again, by_choice, lasting, listen, past_in

TEXT = "the wheel, isn't it?\n\n  In 12 the water — été 🌊 — whatever,  the"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "is": {"enum": ["far", "fast"]}},
    "required": ["name", "is"],
}
DOCUMENT = '{"name": "the w\\n éh", "is": "fast"}'


class Words(FakeTokenizer):
    """A few hundred tokens: bytes, and pieces of words, of which the longest is taken each time."""

    pieces = (
        *("the", " the", " th", " wh", " wa", "whe", " wheel", "wheel", " water", "ater", " what"),
        *("ever", "er", "\n\n", "  ", " i", "isn", "'t", "it", "is", ", ", "é", "té", " —", "fast"),
        *('"name', '"na', '": "', '": ', '", ', '{"', " f", "ast", "\\n", " w", "st", '"}'),
    )
    vocab_size = 258 + len(pieces)
    marker_ids = frozenset(FakeTokenizer.control_tokens.values())
    _ids: ClassVar = {piece.encode(): 258 + index for index, piece in enumerate(pieces)}
    _spelt: ClassVar = {token: data for data, token in _ids.items()}

    def token_bytes(self, token: int) -> bytes:
        return self._spelt.get(token) or super().token_bytes(token)

    def _encode(self, text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
        tokens: list[int] = []
        data: list[int] = []
        for token in [*super()._encode(text, spans), END_ID]:
            if token < 256:
                data.append(token)
                continue
            tokens += [*self._cut(bytes(data)), token]
            data.clear()
        return tokens[:-1]

    def _cut(self, data: bytes) -> Iterator[int]:
        for word in re.findall(rb"\n+| ?[^\s]+| +(?! )| +", data):
            at = 0
            while at < len(word):
                sizes = range(min(8, len(word) - at), 0, -1)
                piece = next(
                    (word[at : at + n] for n in sizes if word[at : at + n] in self._ids), b""
                )
                yield self._ids.get(piece, word[at])
                at += max(1, len(piece))


WORDS = Words()


def words() -> Words:
    return WORDS


_SPELLINGS: dict[int, Spellings] = {}


def spellings(tokenizer: HealableTokenizer) -> Spellings:
    return _SPELLINGS.setdefault(id(tokenizer), Spellings(tokenizer, tokenizer.vocab_size))


class Steps(Engine):
    """The real engine on a fake model and a real tokenizer, stepped by hand."""

    def __init__(self, tokenizer: HealableTokenizer, rule: Rule | None = None) -> None:
        vocab_size = tokenizer.vocab_size
        model = FakeModel(rule=rule, vocab_size=vocab_size, context_length=512)
        super().__init__(model, tokenizer, FakeTemplate(), start=lambda loop: loop.bury)

    def hear(self, request: Request) -> list[Event]:
        listener = listen(self, self.prepare(request))
        while self._loop.has_work:
            self._loop.step()
        return listener.events

    def choice(self, request: Request) -> Choice:
        return fold(self.hear(request))[0]


def prefilled(text: str, **settings: object) -> Request:
    messages = [{"role": "user", "content": "go"}, {"role": "assistant", "content": text}]
    return Request(messages=messages, continue_final_message=True, **settings)  # type: ignore[arg-type]


def cuts(text: str) -> Iterator[tuple[str, str]]:
    return ((text[:at], text[at:]) for at in range(1, len(text)))


TOKENIZERS: list[HealableTokenizer] = [
    words(),
    byte_level("smollm"),
    byte_level("llama-bpe"),
    scored(has_prefix=True),
]
SAID = st.text(alphabet="ab thewrf'st.,1\né🌊\"", min_size=1, max_size=40)


class TestMasks:
    @pytest.mark.parametrize("tokenizer", TOKENIZERS)
    @given(data=SAID.map(str.encode) | st.binary(min_size=1, max_size=3))
    @checks(max_examples=20, deadline=None)
    def test_allow_the_tokens_that_agree(self, tokenizer: HealableTokenizer, data: bytes) -> None:
        control = set(tokenizer.control_tokens.values())
        bits = spellings(tokenizer).mask(data).cast("B")
        for token in range(tokenizer.vocab_size):
            spelt = b"" if token in control else tokenizer.token_bytes(token)
            agrees = bool(spelt) and (data.startswith(spelt) or spelt.startswith(data))
            assert bits[token // 8] >> token % 8 & 1 == agrees, spelt

    def test_have_as_many_bits_as_the_model_has_rows(self) -> None:
        assert len(Spellings(words(), 3000).mask(b"a")) == (3000 + 31) // 32

    def test_a_token_that_disagrees_fails(self) -> None:
        state = Healer(words(), 300).healing(b"wh", None).start(2)
        with pytest.raises(GenerationFailed):
            state.accept(words().encode("x")[0])
        with pytest.raises(GenerationFailed):
            state.accept(words().control_tokens["<|end|>"])


class TestWhatIsTakenBack:
    @pytest.mark.parametrize("tokenizer", TOKENIZERS)
    @given(text=SAID)
    @checks(max_examples=40, deadline=None)
    def test_no_token_reaches_from_what_is_kept_over_the_end(
        self, tokenizer: HealableTokenizer, text: str
    ) -> None:
        tokens = tokenizer.encode(text)
        num_kept = Healer(tokenizer, tokenizer.vocab_size).num_kept(tokens, 0)
        kept = b"".join(map(tokenizer.token_bytes, tokens[:num_kept]))
        whole = b"".join(map(tokenizer.token_bytes, tokens))
        first = len(tokenizer.token_bytes(tokens[0]))
        assert whole[len(kept) : len(kept) + 1] != b"" or num_kept == len(tokens)
        for at in range(first, len(kept)):
            assert spellings(tokenizer).reached_from(whole[at:]) != 0
        if num_kept > 1:  # the first always stays
            whole[len(kept) :].decode()

    @pytest.mark.parametrize("tokenizer", TOKENIZERS)
    @given(
        said=st.lists(st.text(alphabet="wheratsinélo'.,1", min_size=1, max_size=8), min_size=2),
        data=st.data(),
    )
    @checks(max_examples=60, deadline=None)
    def test_what_is_kept_is_how_the_whole_begins(
        self, tokenizer: HealableTokenizer, said: list[str], data: st.DataObject
    ) -> None:
        text = " ".join(said)
        at = data.draw(st.integers(1, len(text)))
        tokens, healer = tokenizer.encode(text[:at]), Healer(tokenizer, tokenizer.vocab_size)
        num_kept = healer.num_kept(tokens, 0)
        assume(num_kept > 1)  # the first always stays, right or wrong
        assert tokens[:num_kept] == tokenizer.encode(text)[:num_kept]

    def test_markers_and_what_is_before_them_stay(self) -> None:
        tokenizer = words()
        healer = Healer(tokenizer, tokenizer.vocab_size)
        tokens = tokenizer.encode("the wat<|end|>", special=True)
        assert healer.num_kept(tokens, 0) == len(tokens)
        tokens = tokenizer.encode("the wat<|end|>wat", special=True)
        assert healer.num_kept(tokens, 0) == tokens.index(tokenizer.control_tokens["<|end|>"]) + 1

    def test_nothing_where_no_token_is_longer(self) -> None:
        class Bytes(FakeTokenizer):
            marker_ids = Words.marker_ids

        assert isinstance(Bytes(), HealableTokenizer)
        tokens = Bytes().encode("water")
        assert Healer(Bytes(), 260).num_kept(tokens, 0) == len(tokens)

    def test_a_tokenizer_that_says_no_markers_is_left_alone(self) -> None:
        class Unmarked(Words):
            marker_ids = property()  # type: ignore[assignment]

        tokens = words().encode("the wat")
        assert Healer(words(), 300).num_kept(tokens, 0) < len(tokens)
        assert Healer(Unmarked(), 300).num_kept(tokens, 0) == len(tokens)


class TestGoingOn:
    def test_every_cut_of_an_answer_goes_on_as_if_there_had_been_none(self) -> None:
        engine = Steps(words(), saying(words().encode(TEXT), END_ID))
        unhealed = 0
        for given_text, rest in cuts(TEXT):
            choice = engine.choice(prefilled(given_text, max_tokens=100))
            assert (choice.text, choice.reason) == (rest, "stop")
            unhealed += engine.choice(prefilled(given_text, heal=False, max_tokens=99)).text == rest
        assert unhealed < len(TEXT) * 0.8, "this text shows nothing"

    def test_a_space_before_the_text_is_the_models_own(self) -> None:
        tokenizer = scored(has_prefix=True)
        answer = tokenizer.encode("The wheel")
        rule = saying(answer, min(tokenizer.eog_ids))
        engine = Steps(tokenizer, rule)
        said = b"".join(map(tokenizer.token_bytes, answer)).decode()
        assert said.startswith(" ")
        for given_text, rest in cuts(said):
            assert engine.choice(prefilled(given_text)).text == rest

    def test_a_bare_prompt_too(self) -> None:
        engine = Steps(words(), saying(words().encode(TEXT), END_ID))
        for given_text, rest in [*cuts(TEXT)][4:]:
            assert engine.choice(Request(prompt=given_text)).text == rest

    def test_tokens_stay_as_they_are(self) -> None:
        engine = Steps(words())
        tokens = words().encode("the wat")
        prepared = engine.prepare(Request(token_ids=tokens))
        assert list(prepared.prompt) == tokens and not prepared.request.begun

    def test_a_question_stays_as_it_is(self) -> None:
        engine = Steps(words())
        request = Request(messages=[{"role": "user", "content": "the wat"}])
        assert not engine.prepare(request).request.begun


REQUESTS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 99),
        "temperature": st.sampled_from([0.0, 1.0]),
        "max_tokens": st.integers(1, 12),
        "n": st.integers(1, 3),
        "logprobs": st.booleans(),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "stop": st.sampled_from([(), ("e",), ("wat", "he")]),
    }
)


class TestWhateverTheModelSays:
    """A model that says anything, with any settings."""

    @given(text=SAID, settings=REQUESTS)
    @example(text="the wat", settings={"stop": ("wat",), "max_tokens": 5})
    @checks(max_examples=40, deadline=None)
    def test_what_was_given_is_said_first_and_not_again(
        self, text: str, settings: dict[str, object]
    ) -> None:
        engine = Steps(words())
        request = prefilled(text, **{**settings, "logprobs": True})
        prepared = engine.prepare(request)
        assert prepared.request.begun == text.encode()[-len(prepared.request.begun) :] or (
            not prepared.request.begun
        )
        for choice in fold(engine.hear(request)):
            said = b"".join(map(words().token_bytes, choice.token_ids))
            assert said.startswith(prepared.request.begun)
            new = said.removeprefix(prepared.request.begun).decode(errors="replace")
            assert new.startswith(choice.text) if request.stop else new == choice.text
            num_given = len(choice.token_ids) - choice.usage.num_completion_tokens
            assert 0 <= num_given <= len(prepared.request.begun)
            assert tuple(each.token for each in choice.logprobs) == choice.token_ids[num_given:]
            assert choice.usage.num_prompt_tokens == len(prepared.prompt) + num_given
            assert choice.usage.num_completion_tokens <= request.max_tokens  # type: ignore[operator]
            if choice.reason == "length":
                assert choice.usage.num_completion_tokens == request.max_tokens

    @given(text=SAID, settings=REQUESTS)
    @checks(max_examples=20, deadline=None)
    def test_the_same_request_gets_the_same_answer(
        self, text: str, settings: dict[str, object]
    ) -> None:
        warm = Steps(words())
        request = prefilled(text, **settings)
        first, second = warm.hear(request), warm.hear(request)
        assert by_choice(first) == by_choice(second) == by_choice(Steps(words()).hear(request))

    @given(text=SAID, settings=REQUESTS, data=st.data())
    @checks(max_examples=20, deadline=None)
    def test_an_interrupted_one_goes_on(
        self, text: str, settings: dict[str, object], data: st.DataObject
    ) -> None:
        request = prefilled(text, **settings)
        prepared = Steps(words()).prepare(request)
        events = Steps(words()).hear(request)
        known = events[: data.draw(st.integers(0, len(events)))]
        engine = Steps(words())
        listener = listen(engine, again(engine, prepared, past_in(known)))
        while engine._loop.has_work:
            engine._loop.step()
        told = [e for e in lasting(listener.events) if isinstance(e, (Delta, Finished))]
        expected = [e for e in lasting(events) if isinstance(e, (Delta, Finished))]
        assert sorted(map(repr, told)) == sorted(map(repr, expected))

    def test_a_stop_string_in_what_was_given_stops_nothing(self) -> None:
        tokenizer = words()
        rule = saying(tokenizer.encode("the wheel turns"), END_ID)
        engine = Steps(tokenizer, rule)
        for stop in ("whe", "heel", "e wheel"):
            assert engine.choice(prefilled("the whee", stop=stop)).text == "l turns"
        assert engine.choice(prefilled("the whee", stop="l t")).text == ""

    def test_begun_alone_binds_an_answer(self) -> None:
        engine = Steps(words())
        asked = Request(token_ids=words().encode("who"), begun=b"the wat", max_tokens=4, seed=1)
        choice = engine.choice(asked)
        said = b"".join(map(words().token_bytes, choice.token_ids))
        assert said.startswith(b"the wat") and said[7:].decode(errors="replace") == choice.text
        with pytest.raises(InvalidRequest, match="begun"):
            Request(prompt="x", begun="text")  # type: ignore[arg-type]


@cache
def grammar() -> CompiledGrammar:
    compiler = GrammarCompiler(Vocabulary(words()))
    return compiler.compile(f"start: {as_rule(SCHEMA, is_lenient=False)}", "schema")


class TestWithGrammars:
    @pytest.mark.parametrize("given_text", [given_text for given_text, _ in cuts(DOCUMENT)])
    def test_a_document_goes_on_to_be_one(self, given_text: str) -> None:
        further = grammar().after(given_text)
        assert further is not None
        engine = Steps(words())
        for seed in range(3):
            request = prefilled(given_text, grammar=further, temperature=1.0, seed=seed)
            choice = engine.choice(request)
            assert choice.reason == "stop"
            found = json.loads(given_text + choice.text)
            assert found.keys() == {"name", "is"} and found["is"] in ("far", "fast")

    def test_most_cuts_take_something_back(self) -> None:
        engine, num_healed = Steps(words()), 0
        for given_text, _ in cuts(DOCUMENT):
            request = prefilled(given_text, grammar=grammar().after(given_text))
            num_healed += bool(engine.prepare(request).request.begun)
        assert num_healed > len(DOCUMENT) / 2

    def test_a_document_that_is_whole_ends_at_once(self) -> None:
        further = grammar().after(DOCUMENT)
        assert further is not None
        choice = Steps(words()).choice(prefilled(DOCUMENT, grammar=further, max_tokens=50))
        assert (choice.text, choice.reason) == ("", "stop")

    def test_a_grammar_that_knows_nothing_of_the_prompt_is_left_alone(self) -> None:
        engine = Steps(words())
        prepared = engine.prepare(prefilled("Here it is: ", grammar=grammar()))
        assert not prepared.request.begun
        choice = engine.choice(prefilled("Here: ", grammar=grammar(), temperature=1.0, seed=1))
        assert json.loads(choice.text).keys() == {"name", "is"}

    def test_what_was_said_is_unsaid_at_whole_characters_only(self) -> None:
        further = grammar().after('{"name": "é')
        assert further is not None
        assert further.unsaid("é".encode()) is not None
        assert further.unsaid("é".encode()[1:]) is None
        assert further.unsaid(b"other") is None
        assert grammar().unsaid(b"x") is None


@pytest.fixture
def continuation(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    sys.modules.pop("continuation", None)
    import continuation  # type: ignore[import-not-found]

    return continuation


class TestTheRealModel:
    def test_a_sample_goes_on_as_if_it_had_not_been_cut(
        self, default_model_path: Path, continuation: object
    ) -> None:
        measure = getattr(continuation, "measure")  # noqa: B009 - a script, without types
        with Engine.load(default_model_path) as engine:
            found = measure(engine, 3, 32, 12)
        assert found["cuts"] > 200
        assert found["at boundaries"].share == found["elsewhere"].share == 1
        assert found["proven, run"].share == 1
        assert found["unhealed"].share < 0.6


def test_what_somebody_else_wrote_is_spelled_as_it_was_or_gone_beyond(
    default_model_path: Path,
) -> None:
    """The model would rather say a number after `One,`, digit by digit, than ` two`."""
    with Engine.load(default_model_path) as engine:
        for text in ("One, two,", "Red, green,"):
            kept = engine.generate_sync(Request(prompt=text, heal=False, max_tokens=8)).text
            assert engine.generate_sync(Request(prompt=text, max_tokens=8)).text == kept
        cut = engine.generate_sync(Request(prompt="The river is full of wat", max_tokens=1))
        assert cut.text == "er"
