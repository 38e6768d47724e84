"""What strategies promise of any conversation: order, whole turns, budgets, prefixes that stay."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.conversations.strategies import (
    Budget,
    Full,
    Item,
    Plan,
    SlidingWindow,
    Strategy,
    Summary,
)
from headrace.conversations.strategies.history import History


def item(role: str, text: str, num_tokens: int) -> Item:
    return Item({"role": role, "content": text}, num_tokens, id=text)


@st.composite
def conversations(draw: st.DrawFn, *, max_turns: int = 12, most_tokens: int = 40) -> list[Item]:
    """Maybe a system prompt; turns with answers, some with calls and results, some cut short; the
    last one waits for its answer."""
    sizes = st.integers(1, most_tokens)
    items: list[Item] = []

    def add(role: str) -> None:
        items.append(item(role, f"{role} {len(items)}", draw(sizes)))

    if draw(st.booleans()):
        add("system")
    if draw(st.booleans()):
        add("assistant")  # a greeting
    num_turns = draw(st.integers(1, max_turns))
    for turn in range(num_turns):
        add("user")
        if draw(st.integers(0, 3)) == 0:
            add("assistant")
            for _ in range(draw(st.integers(1, 2))):
                add("tool")
        elif draw(st.integers(0, 9)) == 0:
            add("system")
        if turn < num_turns - 1 and draw(st.integers(0, 9)):
            add("assistant")
    return items


budgets = st.builds(Budget, st.integers(1, 400), st.integers(0, 20))
windows = st.builds(
    SlidingWindow, st.one_of(st.none(), st.integers(0, 6)), keep_first=st.integers(0, 2)
)
summaries = st.builds(Summary, st.floats(0.1, 1.0))
any_strategy: st.SearchStrategy[Strategy] = st.one_of(st.builds(Full), windows, summaries)


def with_found(summary: Summary, history: Sequence[Item], budget: Budget, keep: int) -> Summary:
    """The same, with every `keep`-th wanted summary there."""
    wanted = summary.wanted(History.of(history), budget)
    found = {
        len(one.covered): item("system", f"summary {i}", min(9, one.max_tokens))
        for i, one in enumerate(wanted)
        if i % keep == 0
    }
    return Summary(summary.trigger_at_ratio, lambda one: found.get(len(one.covered)))


def all_parts(plan: Plan) -> list[Item]:
    return [*plan.kept, *plan.dropped, *plan.summarised, *plan.turn]


@given(conversations(), budgets, any_strategy, st.integers(1, 3))
def test_every_message_is_in_one_part_and_parts_keep_order(
    history: list[Item], budget: Budget, strategy: Strategy, keep: int
) -> None:
    if isinstance(strategy, Summary):
        strategy = with_found(strategy, history, budget, keep)
    plan = strategy.plan(History.of(history), budget)
    assert sorted(map(id, all_parts(plan))) == sorted(map(id, history))
    place = {id(one): index for index, one in enumerate(history)}
    for part in (plan.kept, plan.dropped, plan.summarised, plan.turn):
        places = [place[id(one)] for one in part]
        assert places == sorted(places)


@given(conversations(), budgets, any_strategy)
def test_system_messages_and_the_new_turn_stay(
    history: list[Item], budget: Budget, strategy: Strategy
) -> None:
    plan = strategy.plan(History.of(history), budget)
    shown = {one.id for one in (*plan.kept, *plan.turn)}
    assert shown >= {one.id for one in history if one.role == "system"}
    assert plan.turn
    assert plan.turn[-1] is history[-1]


@given(conversations(), budgets, any_strategy)
def test_turns_go_whole_so_that_calls_keep_their_results(
    history: list[Item], budget: Budget, strategy: Strategy
) -> None:
    plan = strategy.plan(History.of(history), budget)
    gone = {one.id for one in (*plan.dropped, *plan.summarised)}
    others = [one for one in history if one.role != "system"]
    for before, after in pairwise(others):
        if after.role != "user":
            assert (before.id in gone) == (after.id in gone)


@given(conversations(), budgets, st.one_of(windows, summaries))
def test_the_budget_is_held_where_one_turn_fits(
    history: list[Item], budget: Budget, strategy: Strategy
) -> None:
    plan = strategy.plan(History.of(history), budget)
    always = sum(one.num_tokens for one in plan.kept if one.role == "system")
    if isinstance(strategy, SlidingWindow) and strategy.keep_first:
        always += sum(one.num_tokens for one in _first_turns(history, strategy.keep_first))
    least = always + sum(one.num_tokens for one in plan.turn) + budget.num_fixed
    assert plan.num_tokens <= max(budget.max_tokens, least)


def _first_turns(history: Sequence[Item], num: int) -> list[Item]:
    """The messages of the first `num` turns, as far as they are not the new one."""
    turns: list[list[Item]] = []
    for one in history:
        if one.role == "system":
            continue
        if one.role == "user" or not turns:
            turns.append([])
        turns[-1].append(one)
    return [one for turn in turns[:-1][:num] for one in turn]


@given(conversations(), budgets, st.integers(0, 6))
def test_the_last_turns_stay_where_the_budget_holds_them(
    history: list[Item], budget: Budget, keep_turns: int
) -> None:
    wide = Budget(1_000_000, budget.num_fixed)
    plan = SlidingWindow(keep_turns).plan(History.of(history), wide)
    turns = [one for one in plan.kept if one.role != "system"]
    num_kept = sum(1 for i, one in enumerate(turns) if one.role == "user" or i == 0)
    num_all = num_kept + sum(1 for i, o in enumerate(plan.dropped) if o.role == "user" or i == 0)
    assert num_kept >= min(keep_turns, num_all)
    assert num_kept <= keep_turns + (keep_turns + 1) // 2


def _prompts(history: Sequence[Item]) -> list[int]:
    """The lengths of the histories at which the model was asked."""
    return [
        end
        for end in range(1, len(history) + 1)
        if (end == len(history) or history[end].role == "assistant")
        and history[end - 1].role in ("user", "tool")
    ]


@given(conversations(max_turns=40, most_tokens=10), st.integers(120, 300))
def test_a_sliding_prefix_changes_rarely(history: list[Item], max_tokens: int) -> None:
    """A change lets go of about half the window, so it must fill again before the next one."""
    budget = Budget(max_tokens)
    plans = [SlidingWindow().plan(History.of(history[:end]), budget) for end in _prompts(history)]
    num_changes = sum(len(a.dropped) != len(b.dropped) for a, b in pairwise(plans))
    num_system = sum(one.num_tokens for one in history if one.role == "system")
    room = max_tokens - num_system
    num_tokens = sum(one.num_tokens for one in history)
    longest_turn = 4 * 10
    if room > 3 * longest_turn:
        assert num_changes <= 1 + num_tokens // (room // 2 - longest_turn)


@given(conversations(), budgets, any_strategy)
def test_what_is_gone_stays_gone_and_replays_agree(
    history: list[Item], budget: Budget, strategy: Strategy
) -> None:
    """A prompt of the past is planned the same, whatever came later: by the history alone."""
    gone: set[str] = set()
    for end in _prompts(history):
        plan = strategy.plan(History.of(history[:end]), budget)
        assert plan == strategy.plan(History.of(history[:end]), budget)
        now = {one.id for one in plan.dropped}
        if not any(one.role == "system" for one in history[1:end]):
            assert gone <= now
        gone = now


@given(conversations(), budgets, summaries)
def test_a_summary_that_is_there_stands_for_the_oldest_turns(
    history: list[Item], budget: Budget, strategy: Summary
) -> None:
    wanted = strategy.wanted(History.of(history), budget)
    ready = with_found(strategy, history, budget, keep=1)
    plan = ready.plan(History.of(history), budget)
    assert not plan.pending
    assert not plan.dropped
    if wanted:
        assert plan.summarised == wanted[-1].covered
        assert plan.summary is not None
        assert plan.summary is ready.find(wanted[-1])
    else:
        assert plan.summary is None


@given(conversations(), budgets, summaries)
def test_blocks_to_condense_follow_one_another(
    history: list[Item], budget: Budget, strategy: Summary
) -> None:
    done: tuple[Item, ...] = ()
    for one in strategy.wanted(History.of(history), budget):
        done += one.block
        assert one.covered == done
    pending = strategy.plan(History.of(history), budget).pending
    assert pending == strategy.wanted(History.of(history), budget)


@given(conversations(), summaries)
def test_without_its_summary_all_stays_while_it_fits(
    history: list[Item], strategy: Summary
) -> None:
    budget = Budget(sum(one.num_tokens for one in history))
    plan = strategy.plan(History.of(history), budget)
    assert not plan.dropped
    assert plan.num_tokens == budget.max_tokens


@given(conversations(max_turns=30), budgets, summaries)
def test_what_a_late_summary_was_to_stand_for_is_left_out(
    history: list[Item], budget: Budget, strategy: Summary
) -> None:
    plan = strategy.plan(History.of(history), budget)
    if plan.dropped:
        assert plan.dropped == plan.pending[-1].covered
        assert plan.summary is None
        everything = sum(one.num_tokens for one in history) + budget.num_fixed
        assert everything > budget.max_tokens


def test_the_prompt_is_the_kept_messages_with_what_was_found() -> None:
    plan = Plan(
        kept=(item("system", "be kind", 3), item("user", "a", 1), item("assistant", "b", 1)),
        summary=item("system", "earlier: x", 4),
        retrieved=(item("system", "found: y", 4),),
        turn=(item("user", "and?", 2),),
        num_fixed=5,
    )
    assert plan.messages() == [
        {"role": "system", "content": "be kind\n\nearlier: x"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "found: y\n\nand?"},
    ]
    assert plan.num_tokens == 3 + 1 + 1 + 4 + 4 + 2 + 5


def test_a_summary_without_a_system_prompt_becomes_one() -> None:
    plan = Plan(summary=item("system", "earlier", 4), turn=(item("user", "and?", 2),))
    assert plan.messages()[0] == {"role": "system", "content": "earlier"}


@pytest.mark.parametrize("strategy", [Full(), SlidingWindow(), Summary()])
def test_a_system_prompt_alone_is_kept(strategy: Strategy) -> None:
    plan = strategy.plan(History.of([item("system", "be kind", 3)]), Budget(1))
    assert [one.id for one in plan.kept] == ["be kind"]
    assert plan.turn == ()


@settings(max_examples=20)
@given(st.integers(200, 2000))
def test_long_histories_leave_the_window_about_half_full_at_least(num_turns: int) -> None:
    history = [
        item(role, f"{role} {index}", 7)
        for index in range(num_turns)
        for role in ("user", "assistant")
    ]
    plan = SlidingWindow().plan(History.of([*history, item("user", "new", 7)]), Budget(100))
    assert 50 - 14 <= plan.num_tokens <= 100
