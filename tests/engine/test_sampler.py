from array import array

from headrace.engine.sampler import ChoiceSampler
from headrace.model.interface import SamplingSettings
from headrace.testing import FakeModel, FakeSampler

PROMPT = array("i", [1, 2, 2])


class Recorder:
    """A grammar that allows everything until it has taken two tokens."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def mask(self) -> memoryview:
        return memoryview(b"\xff" * 4).cast("I")

    def accept(self, token: int) -> None:
        self.taken.append(token)

    @property
    def is_complete(self) -> bool:
        return len(self.taken) == 2


def state(sampler: ChoiceSampler) -> FakeSampler:
    found = sampler.row(0, 0).sampler
    assert isinstance(found, FakeSampler)
    return found


def test_a_plain_choice_counts_nothing_and_masks_nothing() -> None:
    sampler = ChoiceSampler(FakeModel(), SamplingSettings(), None, PROMPT)
    sampler.accept(7)
    assert not state(sampler).counts
    assert not state(sampler).prompt
    assert sampler.row(3, 9)[2:] == (9, None)
    assert not sampler.is_complete


def test_the_repetition_penalty_counts_the_prompt_too() -> None:
    settings = SamplingSettings(repetition_penalty=1.2)
    sampler = ChoiceSampler(FakeModel(), settings, None, PROMPT)
    sampler.accept(7)
    assert state(sampler).prompt == {1, 2}
    assert state(sampler).counts == {7: 1}


def test_the_other_penalties_count_the_answer_alone() -> None:
    for settings in (SamplingSettings(frequency_penalty=1), SamplingSettings(presence_penalty=1)):
        sampler = ChoiceSampler(FakeModel(), settings, None, PROMPT)
        sampler.accept(7)
        sampler.accept(7)
        assert state(sampler).prompt == set()
        assert state(sampler).counts == {7: 2}


def test_a_grammar_masks_each_row_and_hears_each_token() -> None:
    grammar = Recorder()
    sampler = ChoiceSampler(FakeModel(), SamplingSettings(), grammar, PROMPT)
    mask = sampler.row(0, 3).mask
    assert mask is not None
    assert mask.format == "I"
    sampler.accept(4)
    assert not sampler.is_complete
    sampler.accept(5)
    assert sampler.is_complete
    assert grammar.taken == [4, 5]
