"""Any traffic: requests come and go, leave at any moment, fail, and share a pool that is too small.

After every step only running sequences hold banks; every stream is well formed; who is not
disturbed says what it would say alone; in the end everything is free.
"""

from dataclasses import dataclass, replace
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.engine import EngineConfig
from headrace.engine.request import Request
from headrace.engine.scheduler import SchedulerConfig
from headrace.engine.stream import Generation
from headrace.errors import ModelError
from headrace.events import Delta, Event, Failed, Finished, Started, fold
from headrace.testing import FakeModel, FaultyModel, ManualEngine

BANK_SIZE = 4
NUM_BANKS = 24


@dataclass(frozen=True)
class Visit:
    """A request, when it comes, and when it leaves (None: it stays to its end)."""

    at: int
    prompt: str
    max_tokens: int
    n: int
    tenant: str
    stop: str
    leaves_after: int | None

    @property
    def request(self) -> Request:
        return Request(
            prompt=self.prompt,
            max_tokens=self.max_tokens,
            n=self.n,
            tenant=self.tenant,
            stop=(self.stop,) if self.stop else (),
            temperature=0.8,
            seed=len(self.prompt),
        )


VISITS = st.lists(
    st.builds(
        Visit,
        at=st.integers(0, 20),
        # Few letters, so that prompts share their beginnings.
        prompt=st.text("ab", min_size=1, max_size=40),
        max_tokens=st.integers(1, 40),
        n=st.integers(1, 3),
        tenant=st.sampled_from("xy"),
        stop=st.sampled_from(["", "e", "th"]),
        leaves_after=st.none() | st.integers(0, 15),
    ),
    min_size=1,
    max_size=8,
)
FAULTS = st.sets(st.integers(0, 40), max_size=2)


@cache
def alone(visit: Visit) -> tuple[tuple[int, ...], ...]:
    """The answers to a visit of an engine with room for everybody."""
    engine = ManualEngine()
    generation = engine.generate_sync(visit.request)
    engine.run_until_idle()
    return tuple(choice.token_ids for choice in generation.choices)


@settings(deadline=None, max_examples=60)
@given(visits=VISITS, faults=FAULTS, nan_steps=FAULTS)
def test_any_traffic(visits: list[Visit], faults: set[int], nan_steps: set[int]) -> None:
    model = FaultyModel(
        FakeModel(bank_size=BANK_SIZE),
        raise_at={step: ModelError("by lot") for step in faults},
        nan_at=[(step, 0) for step in nan_steps],
    )
    config = EngineConfig(
        pool_bytes=NUM_BANKS * model.spec.bank_bytes,
        scheduler=SchedulerConfig(max_running=4, max_step_tokens=32),
    )
    engine = ManualEngine(model, config)
    generations: dict[int, Generation] = {}
    step = 0
    while step <= 40 or engine.stats().num_pending_requests:
        for index, visit in enumerate(visits):
            if visit.at == step:
                generations[index] = engine.generate_sync(visit.request)
            if visit.leaves_after is not None and visit.at + visit.leaves_after == step:
                generations[index].cancel()
        engine.step()
        assert_banks_add_up(engine)
        step += 1
        assert step < 5000
    assert engine.stats().num_held_banks == 0
    for index, visit in enumerate(visits):
        assert_told_well(visit, list(generations[index].events()))


def assert_banks_add_up(engine: ManualEngine) -> None:
    """What counts as held is what the running sequences hold."""
    running = engine._loop._scheduler._running.values()
    held = {bank for sequence in running for bank in sequence.banks}
    assert engine.stats().num_held_banks == len(held)


def assert_told_well(visit: Visit, events: list[Event]) -> None:
    for choice in range(visit.n):
        heard = [replace(event, choice=0) for event in events if event.choice == choice]
        *before, end = heard
        assert isinstance(end, (Finished, Failed))
        deltas = [event for event in before if isinstance(event, Delta)]
        assert all(isinstance(event, Started) for event in before[:1])
        assert len(deltas) == len(before[1:])
        tokens = tuple(token for delta in deltas for token in delta.token_ids)
        assert len(tokens) == end.usage.num_completion_tokens
        expected = alone(visit)[choice]
        # Nobody's answer depends on the others; one cut short is the beginning of the whole.
        assert tokens == expected[: len(tokens)]
        if isinstance(end, Finished) and end.reason != "cancelled":
            assert tokens == expected
            assert visit.stop == "" or visit.stop not in fold(heard)[0].text
        if isinstance(end, Finished) and visit.leaves_after is None:
            assert end.reason != "cancelled"
