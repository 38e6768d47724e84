"""Conversations whose middle was dropped: what is moved, and never mixed with what is exact."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.engine import EngineConfig
from headrace.engine.pins import LEASE_S
from headrace.engine.request import Request
from headrace.engine.shifting import Kept, moves, num_common, what_is_kept
from headrace.engine.stream import Generation
from headrace.errors import GenerationFailed, InvalidRequest, ModelError
from headrace.events import Failed, Finished
from headrace.model.interface import Move
from headrace.testing import FakeModel, ManualEngine

BANK = FakeModel().spec.bank_size
SYSTEM = "You are a helper. Be"
OLD = "<user>What is a turnip? <bot>Some root. Next?<u>"
KEPT = "Mind the 64 letters of this line, which say no thing twice: 0987"
NEW = "And now?!"


def ids(text: str) -> array[int]:
    return array("i", list(text.encode()))


class TestWhatIsKept:
    def test_one_run_that_is_gone(self) -> None:
        kept = what_is_kept(ids(SYSTEM + OLD + KEPT), ids(SYSTEM + KEPT + NEW), BANK)
        assert kept == Kept(len(SYSTEM), len(OLD), len(SYSTEM + KEPT))

    def test_turns_that_begin_alike(self) -> None:
        old, new = "<user>" + OLD, "<user>" + KEPT
        kept = what_is_kept(ids(SYSTEM + old + new), ids(SYSTEM + new + NEW), BANK)
        assert kept is not None
        assert kept.gone == len(old)
        assert kept.end == len(SYSTEM + new)

    @pytest.mark.parametrize(
        "now", [SYSTEM + OLD + KEPT + NEW, SYSTEM + OLD, SYSTEM + NEW, SYSTEM, NEW * 20]
    )
    def test_nothing_that_was_left_out_or_nothing_that_is_kept(self, now: str) -> None:
        assert what_is_kept(ids(SYSTEM + OLD + KEPT), ids(now), BANK) is None

    def test_of_two_places_the_one_that_keeps_more(self) -> None:
        before = SYSTEM + KEPT + "x" + KEPT + OLD
        kept = what_is_kept(ids(before), ids(SYSTEM[:-1] + KEPT + OLD), BANK)
        assert kept is not None
        assert kept.end == len(SYSTEM[:-1] + KEPT + OLD)

    def test_a_text_that_repeats_itself_is_not_compared_everywhere(self) -> None:
        # Compared token by token in every place, these would be 10 to the 10.
        kept = what_is_kept(ids("s" + "old" + "a" * 200_000), ids("s" + "a" * 200_000 + NEW), BANK)
        assert kept == Kept(1, 3, 200_001)


short = st.text("ab", max_size=60)


@given(short, st.integers(0, 9), short, st.integers(0, 9))
def test_how_much_is_common(one: str, at: int, other: str, start: int) -> None:
    num = 0
    for mine, theirs in zip(one[at:], other[start:], strict=False):
        if mine != theirs:
            break
        num += 1
    assert num_common(ids(one), at, ids(other), start) == num


@given(short, st.text("ab", min_size=1, max_size=60), short, short, st.sampled_from([3, 16]))
def test_moves_bring_each_token_to_its_place(
    system: str, gone: str, kept: str, new: str, size: int
) -> None:
    before, now = ids(system + gone + kept), ids(system + kept + new)
    found = what_is_kept(before, now, size)
    if found is None:
        return
    sources = list(range(-(-len(before) // size)))
    targets = list(range(100, 100 - (-len(now) // size)))
    pool = {bank: list(before[bank * size : bank * size + size]) for bank in sources}
    pool |= {bank: [-1] * size for bank in targets}
    for move in moves(found, found.end, sources, targets, size):
        source, target = pool[move.source], pool[move.target]
        assert move.num_positions > 0
        for i in range(move.num_positions):
            target[move.at + i] = source[move.first + i]
        old = sources.index(move.source) * size + move.first
        assert targets.index(move.target) * size + move.at == old + move.delta
    moved = [token for bank in targets for token in pool[bank]]
    assert moved[: found.end] == list(now[: found.end])


class House:
    def __init__(self, num_banks: int = 40) -> None:
        self.model = FakeModel()
        self.engine = ManualEngine(self.model, EngineConfig(pool_bytes=num_banks * 4 * BANK))

    def begin(self, prompt: str, **settings: object) -> Generation:
        settings = {"conversation": "talk", "max_tokens": 1, "ignore_eos": True, **settings}
        return self.engine.generate_sync(Request(prompt=prompt, heal=False, **settings))  # type: ignore[arg-type]

    def ask(self, prompt: str, **settings: object) -> tuple[int, int]:
        """Cached tokens, and those of them that were moved."""
        generation = self.begin(prompt, **settings)
        self.engine.run_until_idle()
        stats = self.engine.stats()
        assert stats.num_held_banks == 0
        assert stats.num_free_banks + stats.num_cached_banks == stats.num_banks
        usage = generation.choice.usage
        return usage.num_cached_tokens, usage.num_shifted_tokens


WHOLE = SYSTEM + OLD + KEPT
SHIFTED = SYSTEM + KEPT + NEW
NUM_LEFT = len(WHOLE) // BANK * BANK - len(OLD)
"""Of the prompt's tokens, those that the whole banks of the turn before have."""


class TestShifting:
    def test_kept_turns_are_moved_and_not_computed(self) -> None:
        house = House()
        house.ask(WHOLE)
        before = house.model.num_computed_tokens
        assert house.ask(SHIFTED, shift=True) == (NUM_LEFT, NUM_LEFT)
        assert house.model.num_moved_tokens == NUM_LEFT
        assert house.model.num_computed_tokens - before == len(SHIFTED) - NUM_LEFT

    def test_the_next_turns_go_on_from_what_was_moved(self) -> None:
        house = House()
        house.ask(WHOLE)
        house.ask(SHIFTED, shift=True)
        assert house.ask(SHIFTED + "more", shift=True) == (len(SHIFTED), len(SHIFTED))
        assert house.model.num_moved_tokens == NUM_LEFT + len(SHIFTED) % BANK

    def test_what_was_moved_is_moved_again(self) -> None:
        house = House()
        house.ask(WHOLE)
        house.ask(SHIFTED, shift=True)
        again = SYSTEM + KEPT[8:] + NEW + "r" * 40
        num_cached, num_shifted = house.ask(again, shift=True)
        assert num_cached == num_shifted == len(SHIFTED) // BANK * BANK - 8

    def test_without_a_drop_all_is_exact(self) -> None:
        house = House()
        house.ask(WHOLE)
        assert house.ask(WHOLE + NEW, shift=True) == (len(WHOLE), 0)
        assert house.model.num_moved_tokens == len(WHOLE) % BANK  # copied to the same place

    def test_who_did_not_ask_for_it_gets_what_is_exact(self) -> None:
        house = House()
        house.ask(WHOLE)
        house.ask(SHIFTED, shift=True)
        exact = len(SYSTEM)
        assert house.ask(SHIFTED, conversation=None) == (exact, 0)
        assert house.ask(SHIFTED) == (len(SHIFTED) - 1, 0)

    def test_another_conversation_or_tenant_uses_nothing_of_it(self) -> None:
        house = House()
        house.ask(WHOLE)
        house.ask(SHIFTED, shift=True)
        exact = len(SYSTEM)
        assert house.ask(SHIFTED, shift=True, conversation="other") == (exact, 0)
        assert house.ask(SHIFTED, shift=True, tenant="bob") == (0, 0)

    def test_without_banks_all_is_computed(self) -> None:
        house = House(num_banks=16)
        house.ask(WHOLE)
        house.engine.clock.advance(LEASE_S)
        for letter in "uvwxyz":
            house.ask(letter * 100, conversation=None)
        assert house.ask(SHIFTED, shift=True) == (0, 0)

    def test_without_room_all_is_computed(self) -> None:
        """The sequence needs the banks that it would take over as well."""
        house = House(num_banks=16)
        house.ask(WHOLE)
        assert house.ask(SHIFTED + "z" * 100, shift=True)[1] == 0

    def test_a_prefill_moves_as_well(self) -> None:
        house = House()
        house.ask(WHOLE)
        house.ask(SYSTEM + KEPT, shift=True, prefill_only=True)
        assert house.model.num_moved_tokens > 0
        assert house.ask(SHIFTED, shift=True)[1] > 0

    def test_a_forgotten_conversation_leaves_nothing_moved(self) -> None:
        house = House()
        house.ask(WHOLE)
        house.ask(SHIFTED, shift=True)
        house.engine.forget("", "talk")
        house.engine.run_until_idle()
        assert house.ask(SHIFTED, shift=True)[1] == 0

    def test_a_model_that_fails_to_move_fails_the_request_alone(self) -> None:
        house = House()
        house.ask(WHOLE)
        moving = house.model.move

        def move(moves: list[Move]) -> None:
            raise ModelError("no")

        house.model.move = move  # type: ignore[method-assign, assignment]
        generation = house.begin(SHIFTED, shift=True)
        house.engine.run_until_idle()
        [*_, last] = generation.events()
        assert isinstance(last, Failed)
        assert isinstance(last.error, GenerationFailed)
        house.model.move = moving  # type: ignore[method-assign]
        assert house.ask(SHIFTED, shift=True) == (NUM_LEFT, NUM_LEFT)

    def test_a_failed_move_fails_all_that_step_and_nobody_later(self) -> None:
        """Nothing of the step was computed, and a bank may hold half of what it should."""
        house = House()
        house.ask(WHOLE)
        neighbour = house.begin("a neighbour", conversation=None, max_tokens=50)
        house.engine.step()
        moving = house.model.move

        def move(moves: list[Move]) -> None:
            raise ModelError("no")

        house.model.move = move  # type: ignore[method-assign, assignment]
        shifted = house.begin(SHIFTED, shift=True, max_tokens=50)
        house.engine.step()
        house.model.move = moving  # type: ignore[method-assign]
        later = house.begin("later", conversation=None, max_tokens=5)
        house.engine.run_until_idle()
        for generation in (neighbour, shifted):
            ends = [e for e in generation.events() if isinstance(e, (Failed, Finished))]
            (end,) = ends
            assert isinstance(end, Failed) and "while it moved banks: no" in end.error.message
        assert later.choice.reason == "length"
        house.ask(WHOLE)
        assert house.ask(SHIFTED, shift=True) == (NUM_LEFT, NUM_LEFT)

    def test_it_needs_a_conversation(self) -> None:
        with pytest.raises(InvalidRequest) as caught:
            Request(prompt="x", shift=True)
        assert caught.value.param == "shift"
