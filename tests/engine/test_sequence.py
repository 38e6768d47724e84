import pytest

from headrace.engine.sequence import TRANSITIONS, Sequence, State


def sequence(num_prompt: int = 3, max_num_tokens: int = 8) -> Sequence:
    return Sequence(1, "tenant", range(num_prompt), max_num_tokens=max_num_tokens)


def test_a_new_sequence_has_everything_to_compute() -> None:
    s = sequence()
    assert (s.num_prompt_tokens, s.num_uncomputed_tokens, s.num_generated_tokens) == (3, 3, 0)
    assert s.state is State.WAITING
    assert not s.has_first_token


def test_append_grows_what_is_generated() -> None:
    s = sequence()
    s.append(9)
    assert list(s.tokens) == [0, 1, 2, 9]
    assert s.num_generated_tokens == 1
    assert s.has_first_token


def test_append_refuses_more_than_the_maximum() -> None:
    s = sequence(max_num_tokens=4)
    s.append(9)
    with pytest.raises(ValueError, match="already has its 4 tokens"):
        s.append(9)


def test_drafts_are_not_generated_tokens_until_settled() -> None:
    s = sequence()
    s.append(9)
    s.draft([10, 11, 12])
    assert (s.num_drafts, s.num_confirmed_tokens, s.num_generated_tokens) == (3, 4, 1)
    s.num_computed_tokens = 7
    s.settle(2)
    assert list(s.tokens) == [0, 1, 2, 9, 10, 11]
    assert (s.num_drafts, s.num_computed_tokens, s.num_generated_tokens) == (0, 6, 3)
    s.append(13)
    assert s.num_uncomputed_tokens == 1


def test_settling_before_the_step_keeps_what_was_computed() -> None:
    s = sequence()
    s.num_computed_tokens = 2
    s.draft([10])
    s.settle(0)
    assert (list(s.tokens), s.num_computed_tokens) == ([0, 1, 2], 2)


def test_drafts_end_at_the_maximum() -> None:
    s = sequence(max_num_tokens=5)
    s.draft([10, 11, 12])
    assert list(s.tokens) == [0, 1, 2, 10, 11]
    assert s.num_drafts == 2


def test_drafting_a_prompt_longer_than_the_maximum_cuts_no_prompt() -> None:
    s = sequence(num_prompt=5, max_num_tokens=3)
    s.draft([10])
    assert (len(s.tokens), s.num_drafts) == (5, 0)


@pytest.mark.parametrize("num_accepted", [-1, 3])
def test_settle_refuses_impossible_counts(num_accepted: int) -> None:
    s = sequence()
    s.draft([10, 11])
    with pytest.raises(ValueError, match="of 2 drafts"):
        s.settle(num_accepted)


def test_unsettled_drafts_block_growth() -> None:
    s = sequence()
    s.draft([10])
    with pytest.raises(ValueError, match="settle"):
        s.append(1)
    with pytest.raises(ValueError, match="settle"):
        s.draft([1])


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("after", State)
def test_only_the_transitions_of_the_table_happen(before: State, after: State) -> None:
    s = sequence()
    s.state = before
    if after in TRANSITIONS[before]:
        s.become(after)
        assert s.state is after
    else:
        with pytest.raises(ValueError, match=f"is {before.value} and cannot become {after.value}"):
            s.become(after)
        assert s.state is before


def test_the_end_is_final_and_reachable_from_everywhere() -> None:
    assert not TRANSITIONS[State.FINISHED]
    assert all(State.FINISHED in TRANSITIONS[s] for s in State if s is not State.FINISHED)
