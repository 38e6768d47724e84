"""The strategy that retrieves: what it promises whatever was said and found."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.conversations.strategies.history import History
from headrace.conversations.strategies.retrieval import Passage, Retrieval
from headrace.conversations.strategies.values import Budget, Item


def said(role: str, num_tokens: int, place: int) -> Item:
    return Item({"role": role, "content": f"{role} {place}"}, num_tokens, str(place))


def history_of(sizes: list[tuple[int, int]], system: int) -> list[Item]:
    items = [said("system", system, 0)] if system else []
    for asked, answered in sizes:
        items.append(said("user", asked, len(items)))
        items.append(said("assistant", answered, len(items)))
    return [*items, said("user", 5, len(items))]


def passage(kind: str, source: str, position: int, num_tokens: int, place: str = "") -> Passage:
    message = {"role": "user", "content": f"{kind} {source} {position}"}
    order = (int(source), position)
    return Passage(message, place, lambda: num_tokens, kind, source, f"title of {source}", order)


SIZES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 80)), max_size=12)
DOCUMENTS = st.lists(
    st.builds(
        passage, st.just("document"), st.sampled_from("12"), st.integers(0, 9), st.integers(1, 90)
    ),
    max_size=12,
    unique_by=lambda one: one.order,
)


@given(SIZES, st.integers(0, 20), DOCUMENTS, st.integers(1, 6), st.integers(20, 600), st.data())
def test_every_message_has_its_part_and_passages_fit(
    sizes: list[tuple[int, int]],
    system: int,
    documents: list[Passage],
    k: int,
    max_tokens: int,
    data: st.DataObject,
) -> None:
    history = history_of(sizes, system)
    earlier = [
        passage("message", str(index), 0, item.num_tokens, item.id)
        for index, item in enumerate(history)
        if item.role != "system"
    ]
    found = data.draw(st.permutations([*documents, *earlier]))
    plan = Retrieval(tuple(found), k).plan(History.of(history), Budget(max_tokens, 3))

    assert [*plan.kept, *plan.turn] == [item for item in history if item not in plan.dropped]
    assert plan.turn[-1] == history[-1]
    assert len(plan.retrieved) == len(plan.sources) <= k
    shown = {item.id for item in (*plan.kept, *plan.turn)}
    assert not any(item.id in shown for item in plan.retrieved if item.id)
    assert len(set(map(id, plan.retrieved))) == len(plan.retrieved)
    if plan.retrieved:
        assert plan.num_tokens <= max_tokens
    orders = [(s["type"] == "message", s["id"], s["position"]) for s in plan.sources]
    order_of = {id(one.message): (one.kind == "message", one.order) for one in found}
    told = [order_of[id(item.message)] for item in plan.retrieved]
    assert told == sorted(told)
    assert len(orders) == len(set(orders))


@given(SIZES, DOCUMENTS, st.integers(60, 600))
def test_what_is_found_does_not_change_which_turns_stay(
    sizes: list[tuple[int, int]], documents: list[Passage], max_tokens: int
) -> None:
    history = history_of(sizes, 10)
    with_passages = Retrieval(tuple(documents)).plan(History.of(history), Budget(max_tokens))
    without = Retrieval().plan(History.of(history), Budget(max_tokens))
    assert with_passages.kept == without.kept
    assert with_passages.messages()[: len(without.kept)] == without.messages()[: len(without.kept)]


def test_the_best_that_fit_are_told_in_order() -> None:
    found = (
        passage("document", "2", 0, 30),
        passage("document", "1", 7, 500),
        passage("document", "1", 3, 30),
        passage("document", "1", 5, 30),
    )
    plan = Retrieval(found, k=2).plan(History.of(history_of([], 0)), Budget(200))
    assert [(source["id"], source["position"]) for source in plan.sources] == [("1", 3), ("2", 0)]
    assert plan.sources[0] == {
        "type": "document",
        "id": "1",
        "title": "title of 1",
        "position": 3,
        "score": 0.0,
        "tokens": 30,
    }
    (asked,) = plan.messages()
    assert asked["content"] == "document 1 3\n\ndocument 2 0\n\nuser 0"


def test_nothing_is_counted_that_is_not_told() -> None:
    history = history_of([(10, 10)] * 8, 0)
    shown = passage("message", "9", 0, 5, history[-1].id)
    uncounted = replace(shown, count=lambda: pytest.fail("it was counted"))
    last = replace(uncounted, kind="document", place="")
    plan = Retrieval((uncounted, passage("document", "1", 0, 5), last), k=1).plan(
        History.of(history), Budget(80)
    )
    assert [source["id"] for source in plan.sources] == ["1"]


def test_a_message_on_another_branch_is_not_told() -> None:
    history = history_of([(10, 10)] * 8, 0)
    elsewhere = passage("message", "99", 0, 5, "")
    earlier = passage("message", "0", 0, 5, history[0].id)
    plan = Retrieval((elsewhere, earlier)).plan(History.of(history), Budget(80))
    assert history[0] in plan.dropped
    assert [source["id"] for source in plan.sources] == ["0"]


def test_so_many_turns_stay_as_are_asked_for() -> None:
    history = history_of([(10, 10)] * 8, 0)
    plan = Retrieval((), keep_turns=2).plan(History.of(history), Budget(100_000))
    assert 4 <= len(plan.kept) <= 6
