"""Rankings as one: what the fusion promises whatever the rankings are."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from headrace.conversations.memory.fusion import RANK_OFFSET, by_words, distinct, fused
from headrace.conversations.memory.values import Chunk, Found, Source

RANKING = st.lists(st.integers(0, 30), unique=True, max_size=20)


def found(text: str, key: int = 0) -> Found:
    return Found(Chunk(Source("document", str(key)), 0, text), 1.0)


def test_the_papers_example() -> None:
    scores = fused([[1, 2], [2, 3]])
    assert list(scores) == [2, 1, 3]
    assert math.isclose(scores[2], 1 / (RANK_OFFSET + 2) + 1 / (RANK_OFFSET + 1))


@given(st.lists(RANKING, max_size=4))
def test_each_key_is_there_once_and_best_first(rankings: list[list[int]]) -> None:
    scores = fused(rankings)
    assert set(scores) == {key for ranking in rankings for key in ranking}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)


@given(RANKING)
def test_one_ranking_stays_as_it_is(ranking: list[int]) -> None:
    assert list(fused([ranking])) == ranking
    assert list(fused([ranking, ranking])) == ranking


@given(RANKING, RANKING)
def test_the_order_of_the_rankings_does_not_matter(one: list[int], other: list[int]) -> None:
    assert list(fused([one, other])) == list(fused([other, one]))


@given(RANKING, RANKING)
def test_what_is_nowhere_behind_comes_first(one: list[int], other: list[int]) -> None:
    order = list(fused([one, other]))
    for key in set(one) & set(other):
        for behind in set(one) & set(other):
            if one.index(key) < one.index(behind) and other.index(key) < other.index(behind):
                assert order.index(key) < order.index(behind)


def test_rare_words_weigh_more() -> None:
    postings = {"the": list(range(90)), "heron": [7], "mill": [7, 8, 9]}
    assert by_words(postings, 100, 3) == [7, 8, 9]
    assert by_words({}, 100, 3) == []


def test_a_text_is_told_once() -> None:
    ones = [found("the heron stands", 1), found("the  heron\nstands ", 2), found("  "), found("x")]
    assert [one.chunk.source.id for one in distinct(ones)] == ["1", "0"]
