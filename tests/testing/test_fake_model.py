"""The fake model notices what an engine may get wrong."""

from array import array

import pytest

from headrace.errors import ModelError
from headrace.model.interface import Model, SampleRow, SamplingSettings, Span
from headrace.testing import FakeModel, FaultyModel, saying

SIZE = 4


def model(num_banks: int = 8) -> FakeModel:
    fake = FakeModel(bank_size=SIZE, context_length=24)
    fake.allocate(num_banks)
    return fake


def span(tokens: list[int], position: int, banks: list[int], num_logits: int = 1) -> Span:
    return Span(array("i", tokens), position, array("i", banks), num_logits)


def logits(fake: Model, *spans: Span) -> list[bytes]:
    fake.step(spans)
    return [bytes(fake.logits(row)) for row in range(sum(span.num_logits for span in spans))]


def test_is_a_model() -> None:
    accepts: list[Model] = [FakeModel(), FaultyModel(FakeModel())]
    assert len(accepts) == 2


def test_chunks_and_banks_change_nothing() -> None:
    tokens = list(range(10))
    [whole] = logits(model(), span(tokens, 0, [0, 1, 2]))
    chunked = model()
    logits(chunked, span(tokens[:3], 0, [7], 0))
    logits(chunked, span(tokens[3:9], 3, [7, 5, 1], 0))
    assert logits(chunked, span(tokens[9:], 9, [7, 5, 1])) == [whole]


def test_neighbours_change_nothing() -> None:
    [alone] = logits(model(), span([1, 2, 3], 0, [0]))
    together = logits(model(), span([9], 0, [1]), span([1, 2, 3], 0, [0]))
    assert together[1] == alone


def test_every_asked_position_gives_its_own_logits() -> None:
    rows = logits(model(), span([1, 2, 3], 0, [0], 3))
    assert rows[1] == logits(model(), span([1, 2], 0, [0]))[0]
    assert len(set(rows)) == 3


def test_any_earlier_token_matters() -> None:
    [first] = logits(model(), span([1, 2, 3, 4, 5], 0, [0, 1]))
    [other] = logits(model(), span([9, 2, 3, 4, 5], 0, [0, 1]))
    assert first != other


def test_a_bank_behind_another_prefix_is_noticed() -> None:
    fake = model()
    logits(fake, span([1, 2, 3, 4, 5, 6, 7, 8], 0, [0, 1], 0))
    logits(fake, span([9, 9, 9, 9], 0, [2], 0))
    with pytest.raises(ModelError, match="bank 1 does not continue"):
        fake.step([span([5], 8, [2, 1, 3])])


def test_a_bank_that_was_given_away_is_noticed() -> None:
    fake = model()
    logits(fake, span([1, 2, 3, 4, 5], 0, [0, 1], 0))
    logits(fake, span([7], 0, [0], 0))
    with pytest.raises(ModelError, match="bank 1 does not continue"):
        fake.step([span([6], 5, [0, 1])])


def test_a_last_bank_that_was_given_away_gives_other_tokens() -> None:
    fake = model()
    logits(fake, span([1, 2], 0, [0], 0))
    logits(fake, span([7], 0, [0], 0))
    assert logits(fake, span([3], 2, [0])) != logits(model(), span([1, 2, 3], 0, [0]))


def test_a_bank_never_computed_is_noticed() -> None:
    with pytest.raises(ModelError, match="bank 0 does not continue"):
        model().step([span([1], 4, [0, 1])])


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([span([1, 2, 3, 4, 5], 0, [0])], "1 banks do not hold 5"),
        ([span([1], 0, [0]), span([2], 0, [0])], "two spans of one step write bank 0"),
        ([span([1] * 25, 0, [0, 1, 2, 3, 4, 5, 6])], "past the context of 24"),
    ],
)
def test_batches_that_break_the_rules(spans: list[Span], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        model().step(spans)


def test_banks_can_be_moved() -> None:
    fake = model()
    logits(fake, span([1, 2, 3, 4, 5], 0, [0, 1], 0))
    fake.copy_bank(0, 6)
    fake.import_bank(7, fake.export_bank(1))
    expected = logits(model(), span([1, 2, 3, 4, 5, 6], 0, [0, 1]))
    assert logits(fake, span([6], 5, [6, 7])) == expected


def test_an_empty_bank_stays_empty_when_moved() -> None:
    fake = model()
    fake.copy_bank(0, 1)
    with pytest.raises(ModelError):
        fake.step([span([1], 1, [1])])


class TestSampling:
    def draw(self, settings: SamplingSettings, position: int = 1, rows: int = 1) -> int:
        fake = model()
        fake.step([span([1], 0, [0])])
        [sampled] = fake.sample([SampleRow(0, fake.make_sampler(settings), position, None)])
        assert sampled.token is not None
        return sampled.token

    def test_temperature_0_is_argmax(self) -> None:
        fake = model()
        fake.step([span([1], 0, [0])])
        values = list(fake.logits(0).cast("B").cast("f"))
        assert self.draw(SamplingSettings()) == values.index(max(values))

    def test_top_k_1_is_argmax(self) -> None:
        assert self.draw(SamplingSettings(temperature=5.0, top_k=1)) == self.draw(
            SamplingSettings()
        )

    @pytest.mark.parametrize("settings", [{"top_p": 0.0}, {"min_p": 1.0}], ids=["top_p", "min_p"])
    def test_the_tightest_nucleus_is_argmax(self, settings: dict[str, float]) -> None:
        tight = SamplingSettings(temperature=5.0, **settings)  # type: ignore[arg-type]
        assert self.draw(tight) == self.draw(SamplingSettings())

    def test_randomness_depends_on_seed_choice_and_position(self) -> None:
        def draws(**settings: int) -> list[int]:
            hot = SamplingSettings(temperature=9.0, **settings)  # type: ignore[arg-type]
            return [self.draw(hot, position) for position in range(20)]

        assert draws(seed=1) == draws(seed=1)
        assert draws(seed=1) != draws(seed=2)
        assert draws(seed=1) != draws(seed=1, choice=1)
        assert len(set(draws(seed=1))) > 5

    def test_penalties_and_bias(self) -> None:
        best = self.draw(SamplingSettings())
        assert self.draw(SamplingSettings(logit_bias=((best, -100.0),))) != best
        fake = model()
        fake.step([span([1], 0, [0])])
        sampler = fake.make_sampler(SamplingSettings(frequency_penalty=2.0))
        sampler.observe(array("i", [best] * 50))
        [sampled] = fake.sample([SampleRow(0, sampler, 1, None)])
        assert sampled.token != best


class TestSaying:
    @pytest.mark.parametrize("prompt", [[], [9], [1], [1, 2], [1, 2, 3, 0, 9]])
    def test_says_its_answer_and_then_the_end(self, prompt: list[int]) -> None:
        rule = saying([4, 5, 4, 6], then=0)
        history = list(prompt)
        for _ in range(6):
            history.append(rule(history))
        assert history[len(prompt) :] == [4, 5, 4, 6, 0, 0]

    def test_nothing_to_say(self) -> None:
        assert saying([], then=0)([1, 2]) == 0


class TestFaultyModel:
    def test_a_step_can_raise(self) -> None:
        faulty = FaultyModel(model(), raise_at={1: ValueError("now")})
        faulty.step([span([1], 0, [0])])
        with pytest.raises(ValueError, match="now"):
            faulty.step([span([2], 1, [0])])
        faulty.step([span([2], 1, [0])])

    def test_a_row_can_fail(self) -> None:
        faulty = FaultyModel(model(), nan_at=[(0, 1)])
        faulty.step([span([1], 0, [0]), span([1], 0, [1])])
        rows = [SampleRow(i, faulty.make_sampler(SamplingSettings()), 1, None) for i in range(2)]
        good, bad = faulty.sample(rows)
        assert good.token is not None
        assert (bad.token, bad.error) == (None, "the model's logits are not numbers")
