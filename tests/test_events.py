import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import GenerationFailed
from headrace.events import (
    Delta,
    Event,
    Failed,
    Finished,
    Started,
    Timings,
    TokenLogprob,
    Usage,
    fold,
    merge,
    merge_all,
)

USAGE = Usage(3, 0, 2)
TIMINGS = Timings(0.25, 0.5, 1.0)


def said(choice: int, parts: list[str]) -> list[Event]:
    """A choice's events, one token a part."""
    deltas = [
        Delta(choice, i, (ord(part[:1] or " "),), part, (TokenLogprob(i, -1.0, ()),))
        for i, part in enumerate(parts)
    ]
    end = Finished(choice, "stop", USAGE, TIMINGS)
    return [Started("r", choice, 7, 3, 0), *deltas, end]


def test_fold_joins_each_choice() -> None:
    first, second = said(0, ["a", "", "b"]), said(1, ["x"])
    interleaved = [first[0], second[0], first[1], second[1], *first[2:], *second[2:]]
    choices = fold(interleaved)
    assert [(c.index, c.text) for c in choices] == [(0, "ab"), (1, "x")]
    assert choices[0].token_ids == (97, 32, 98)
    assert [logprob.token for logprob in choices[0].logprobs] == [0, 1, 2]
    assert choices[0].reason == "stop"


def test_fold_raises_the_error_of_a_failed_choice() -> None:
    error = GenerationFailed("NaN")
    with pytest.raises(GenerationFailed, match="NaN"):
        fold([*said(0, ["a"]), Failed(1, error, USAGE, TIMINGS)])


def test_fold_does_not_take_a_cut_stream_for_an_answer() -> None:
    with pytest.raises(ValueError, match="choice 1 has no terminal event"):
        fold([*said(0, ["a"]), *said(1, ["b"])[:-1]])


def test_a_choice_cancelled_in_the_queue_folds_to_nothing() -> None:
    [choice] = fold([Finished(0, "cancelled", USAGE, TIMINGS)])
    assert (choice.text, choice.token_ids, choice.reason) == ("", (), "cancelled")


def test_merge_keeps_the_first_start() -> None:
    merged = merge([Delta(0, 4, (1,), "a"), Delta(0, 5, (2, 3), "b")])
    assert merged == Delta(0, 4, (1, 2, 3), "ab")


@given(st.lists(st.tuples(st.integers(0, 2), st.text(max_size=2)), max_size=20), st.integers(0, 20))
def test_merging_anywhere_changes_no_answer(spoken: list[tuple[int, str]], cut: int) -> None:
    events: list[Event] = [Started("r", choice, 7, 3, 0) for choice in range(3)]
    counts = [0, 0, 0]
    for choice, text in spoken:
        events.append(Delta(choice, counts[choice], (len(text),), text))
        counts[choice] += 1
    events += [Finished(choice, "stop", USAGE, TIMINGS) for choice in range(3)]
    merged = merge_all(events[:cut]) + merge_all(events[cut:])
    assert fold(merged) == fold(events)
    per_choice = [[e for e in merge_all(events) if e.choice == choice] for choice in range(3)]
    for choice, heard in enumerate(per_choice):
        assert len(heard) == 2 + (counts[choice] > 0)
        assert isinstance(heard[0], Started)
        assert isinstance(heard[-1], Finished)


def test_time_to_first_token_counts_the_queue() -> None:
    assert TIMINGS.time_to_first_token_s == 0.75
