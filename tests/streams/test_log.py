"""A log keeps order, ends each choice once, and tells every reader the same."""

import asyncio
from collections.abc import Iterator
from random import Random

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
    ToolCall,
    Usage,
    fold,
    merge_all,
)
from headrace.streams.log import StreamLog

USAGE, TIMINGS = Usage(3, 0, 2), Timings(0.0, 0.0, 0.0)


def delta(choice: int, start: int, text: str = "a") -> Delta:
    return Delta(choice, start, (start,), text)


def finished(choice: int) -> Finished:
    return Finished(choice, "stop", USAGE, TIMINGS)


def failed(choice: int) -> Failed:
    return Failed(choice, GenerationFailed("no"), USAGE, TIMINGS)


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[list[Event]]]:
    """The events of some choices, interleaved, cut into the parts in which they come."""
    num_choices = draw(st.integers(1, 3))
    left: list[list[Event]] = []
    for choice in range(num_choices):
        deltas = [delta(choice, i, str(i)) for i in range(draw(st.integers(0, 6)))]
        end = draw(st.sampled_from((finished, failed)))(choice)
        left.append([Started("r", choice, 1, 3, 0), *deltas, end])
    events: list[Event] = []
    while any(left):
        choice = draw(st.sampled_from([i for i, rest in enumerate(left) if rest]))
        events.append(left[choice].pop(0))
    parts: list[list[Event]] = []
    while events:
        size = draw(st.integers(1, 4))
        parts.append(events[:size])
        events = events[size:]
    return num_choices, parts


def texts(events: list[Event]) -> dict[int, str]:
    said: dict[int, str] = {}
    for event in events:
        if isinstance(event, Delta):
            said[event.choice] = said.get(event.choice, "") + event.text
    return said


@given(histories(), st.integers(0, 100), st.integers(0, 1000))
def test_readers_that_come_and_lag_hear_the_same(
    history: tuple[int, list[list[Event]]], late_by: int, seed: int
) -> None:
    num_choices, parts = history
    all_events = [event for part in parts for event in part]
    start = min(late_by, len(all_events))
    random = Random(seed)

    async def lag() -> None:
        for _ in range(random.randrange(4)):
            await asyncio.sleep(0)

    async def play() -> tuple[list[Event], list[Event]]:
        log = StreamLog(num_choices)
        heard: list[Event] = []
        late: list[Event] = []

        async def read(start: int, into: list[Event]) -> None:
            view = log.view(start)
            while events := await view.take():
                into.extend(events)
                await lag()

        readers = [asyncio.create_task(read(0, heard)), asyncio.create_task(read(start, late))]
        ended = asyncio.create_task(log.ended())
        for part in parts:
            log.extend(part)
            await lag()
        await asyncio.gather(*readers, ended)
        assert log.is_over and list(log) == all_events
        return heard, late

    heard, late = asyncio.run(play())
    assert texts(heard) == texts(all_events)
    assert texts(late) == texts(all_events[start:])
    for events in (heard, all_events):
        ends = [event.choice for event in events if isinstance(event, (Finished, Failed))]
        assert sorted(ends) == list(range(num_choices))


def test_a_reader_that_keeps_up_gets_every_delta_alone() -> None:
    async def play() -> list[list[Event]]:
        log = StreamLog(1)
        view = log.view()
        taken = []
        for i in range(3):
            log.extend([delta(0, i)])
            taken.append(await view.take())
        return taken

    assert asyncio.run(play()) == [[delta(0, i)] for i in range(3)]


def test_a_reader_that_is_behind_gets_one_delta_for_many() -> None:
    log = StreamLog(1)
    log.extend([delta(0, 0, "a"), delta(0, 1, "b"), finished(0)])
    view = log.view()
    assert view.ready() == [Delta(0, 0, (0, 1), "ab"), finished(0)]
    assert view.ready() == []
    assert view.position == 3


def later_events() -> Iterator[Event]:
    yield delta(0, 1)
    yield ToolCall(0, 0, "id", "name", "{}")
    yield finished(0)
    yield failed(0)
    yield delta(2, 0)
    yield delta(-1, 0)


@pytest.mark.parametrize("event", list(later_events()), ids=repr)
def test_nothing_is_said_after_the_end_or_of_no_choice(event: Event) -> None:
    log = StreamLog(2)
    log.extend([delta(0, 0), finished(0)])
    with pytest.raises(ValueError, match="over"):
        log.extend([event])
    assert len(log) == 2 and not log.is_over and log.open_choices() == [1]


def test_readers_wake_at_the_end_too() -> None:
    async def play() -> list[Event]:
        log = StreamLog(1)
        log.extend([finished(0)])
        view = log.view(1)
        return await asyncio.wait_for(view.take(), 5)

    assert asyncio.run(play()) == []


def test_a_reader_that_leaves_disturbs_nobody() -> None:
    async def play() -> list[Event]:
        log = StreamLog(1)
        leaver = asyncio.create_task(log.view().take())
        stayer = asyncio.create_task(log.view().take())
        await asyncio.sleep(0)
        leaver.cancel()
        await asyncio.sleep(0)
        log.extend([delta(0, 0)])
        return await stayer

    assert asyncio.run(play()) == [delta(0, 0)]


def test_reasoning_and_calls_survive_merging_and_folding() -> None:
    events: list[Event] = [
        Delta(0, 0, (1,), "", reasoning="so "),
        Delta(0, 1, (2,), "x", reasoning="be it"),
        ToolCall(0, 0, "id", "name", "{}"),
        Finished(0, "tool_calls", USAGE, TIMINGS),
    ]
    (choice,) = fold(merge_all(events))
    assert (choice.reasoning, choice.text, choice.reason) == ("so be it", "x", "tool_calls")
    assert choice.tool_calls == (ToolCall(0, 0, "id", "name", "{}"),)
    assert fold(events) == [choice]
