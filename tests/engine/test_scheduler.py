import random
from array import array
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.engine.cost import StepRates
from headrace.engine.pins import LEASE_S, TurnEnd
from headrace.engine.scheduler import CHUNK, LEAST_CHUNK, Plan, SchedulerConfig
from headrace.engine.sequence import Sequence, State
from headrace.errors import ContextLengthExceeded, InvalidRequest
from support.scheduling import BankModel, audit, make_scheduler

SLOW = StepRates(0.03, 0.003, 1e-5, 2e-6)
"""A 1B model on two cores, roughly."""


class House:
    """A scheduler, a model of its banks and every sequence there is: an engine without threads."""

    def __init__(self, num_banks: int = 64, bank_size: int = 16, **options: object) -> None:
        self.scheduler = make_scheduler(num_banks, bank_size, **options)  # type: ignore[arg-type]
        self.kv = self.scheduler.kv
        self.model = BankModel(bank_size)
        self.sequences: list[Sequence] = []

    def sequence(
        self, prompt: Iterable[int], tenant: str = "alice", max_new: int = 1000
    ) -> Sequence:
        prompt = list(prompt)
        limit = min(len(prompt) + max_new, self.kv.capacity)
        s = Sequence(len(self.sequences), tenant, prompt, max_num_tokens=limit)
        self.sequences.append(s)
        return s

    def add(self, prompt: Iterable[int], tenant: str = "alice", max_new: int = 1000) -> Sequence:
        s = self.sequence(prompt, tenant, max_new)
        self.scheduler.add(s)
        return s

    def stream(self, num_prompt: int = 5, tenant: str = "alice", max_new: int = 1000) -> Sequence:
        """A sequence that has its first token."""
        s = self.add([-1 - len(self.sequences)] * num_prompt, tenant, max_new)
        while not s.has_first_token:
            self.step()
        return s

    def step(self) -> Plan:
        streams = self.streams()
        plan = self.scheduler.plan()
        self.check(plan, streams)
        self.model.move(plan.moves, self.sequences)
        self.model.step(plan, self.kv)
        self.scheduler.complete(plan)
        for span in plan.spans:
            if span.num_logits:
                self.sample(span.sequence)
        for s in self.sequences:
            if s.state is State.RUNNING and s.has_caught_up and not s.grows:
                self.scheduler.finish(s)
        return plan

    def streams(self) -> set[int]:
        """Those that must go on in the next step."""
        return {
            s.id
            for s in self.sequences
            if s.state is State.RUNNING and s.grows and s.num_uncomputed_tokens == 1 + s.num_drafts
        }

    def sample(self, s: Sequence) -> None:
        """Accept as many drafts as are even, then add the token that the position decides."""
        drafts = list(s.tokens[s.num_confirmed_tokens :])
        s.settle(next((i for i, d in enumerate(drafts) if d % 2), len(drafts)))
        if len(s.tokens) < s.max_num_tokens:
            s.append(len(s.tokens) % 2)
        if len(s.tokens) >= s.max_num_tokens:
            self.scheduler.finish(s)

    def check(self, plan: Plan, streams: set[int]) -> None:
        served = {span.sequence.id for span in plan.spans}
        assert len(served) == len(plan.spans)
        assert streams <= served | {s.id for s in plan.preempted}
        assert all(s.state is State.WAITING and not s.num_drafts for s in plan.preempted)
        assert not (plan.preempted and plan.admitted)
        assert plan.num_tokens <= self.scheduler.config.max_step_tokens
        assert self.scheduler.num_running <= self.scheduler.config.max_running
        for s, position, n, num_logits in plan.spans:
            assert s.state is State.RUNNING
            assert not s.num_loading_banks
            assert position == s.num_computed_tokens
            end = position + n
            assert n > 0
            assert end <= len(s.tokens)
            assert end <= len(s.banks) * self.kv.bank_size
            # Logits from the last confirmed token on, where a token is to follow.
            assert num_logits == (max(0, end - (s.num_confirmed_tokens - 1)) if s.grows else 0)
            assert end == len(s.tokens) or n % CHUNK == 0 or n == LEAST_CHUNK

    def audit(self) -> None:
        audit(self.kv, self.sequences)

    def finish_all(self, max_steps: int = 5000) -> int:
        """Step until everybody is done; the number of steps."""
        for i in range(max_steps):
            if not self.scheduler.has_work:
                return i
            # Prompts whose banks were all read from disk have nothing left but their end.
            ends = any(s.state is State.RUNNING and s.has_caught_up for s in self.sequences)
            plan = self.step()
            has_gone_on = ends or plan.spans or plan.admitted
            assert has_gone_on, "a step without work, though somebody waits"
            self.audit()
        raise AssertionError(f"not done after {max_steps} steps: {self.sequences}")


def spans(plan: Plan) -> list[tuple[int, int, int]]:
    return [(span.sequence.id, span.position, span.num_tokens) for span in plan.spans]


# -- one sequence ----------------------------------------------------------------------------------


def test_a_sequence_is_admitted_prefilled_and_goes_on() -> None:
    house = House()
    s = house.add(range(40), max_new=3)
    plan = house.scheduler.plan()
    assert plan.admitted == (s,)
    assert plan.spans == ((s, 0, 40, 1),)
    house.model.step(plan, house.kv)
    house.scheduler.complete(plan)
    s.append(7)
    assert house.scheduler.plan().spans == ((s, 40, 1, 1),)


def test_nothing_to_do_is_an_empty_plan() -> None:
    house = House()
    assert house.scheduler.plan() == Plan((), (), ())
    assert not house.scheduler.has_work


def test_a_plan_that_was_not_completed_is_planned_again() -> None:
    house = House()
    house.add(range(40))
    first, second = house.scheduler.plan(), house.scheduler.plan()
    assert first.spans == second.spans
    assert second.admitted == ()


def test_no_token_since_the_last_step_means_no_span() -> None:
    house = House()
    s = house.add(range(10))
    house.scheduler.complete(house.scheduler.plan())
    assert s.num_uncomputed_tokens == 0
    assert house.scheduler.plan().spans == ()


def test_a_prompt_alone_takes_large_steps() -> None:
    house = House(num_banks=200)
    house.add(range(1200))
    assert [spans(house.step())[0][1:] for _ in range(3)] == [(0, 512), (512, 512), (1024, 176)]


def test_large_steps_end_at_the_idle_limit_too() -> None:
    house = House(num_banks=200, rates=SLOW)
    house.add(range(1200))
    ((_, _, num_tokens),) = spans(house.step())
    # 0.25 s less 0.03 s, at 3 ms a token and a little for attention.
    assert num_tokens == 64


def test_who_joins_a_complete_prompt_delays_its_first_token_by_no_more_than_a_step() -> None:
    rates = StepRates(0.003, 0.0004, 1e-9, 1e-9)
    house = House(num_banks=200, rates=rates, config=SchedulerConfig(step_s=0.025))
    first, second, _ = (house.add(range(n, n + 136)) for n in (0, 1000, 2000))
    # 25 ms are 62 tokens, of which whole tiles are taken.
    assert spans(house.step()) == [(first.id, 0, 136), (second.id, 0, 48)]
    assert first.has_first_token
    assert not second.has_first_token


def test_short_prompts_that_arrive_together_share_a_step() -> None:
    house = House(num_banks=200, rates=StepRates(0.003, 0.0004, 1e-9, 1e-9))
    sequences = [house.add(range(1000 * n, 1000 * n + 8)) for n in range(4)]
    house.step()
    assert all(s.has_first_token for s in sequences)


def test_a_prompt_beside_a_stream_takes_steps_within_the_limit() -> None:
    house = House(num_banks=200)
    house.stream()
    s = house.add(range(1000, 3000))
    num_steps = 0
    while not s.has_first_token:
        plan = house.scheduler.plan()
        assert len(plan.spans) == 2
        assert house.scheduler.cost.estimate(plan.spans) <= house.scheduler.config.step_s
        house.step()
        num_steps += 1
    assert 2000 / 128 < num_steps < 2000 / 24


def test_context_makes_chunks_smaller() -> None:
    house = House(num_banks=400, rates=StepRates(0.003, 0.0003, 1e-6, 1e-6))
    house.stream()
    s = house.add(range(1000, 5000))
    sizes = []
    while not s.has_first_token:
        sizes += [span.num_tokens for span in house.step().spans if span.sequence is s]
    assert sizes[0] > 2 * sizes[-2]


def test_the_slowest_machine_still_gets_on_with_a_prompt() -> None:
    house = House(num_banks=200, rates=StepRates(5.0, 1.0, 1e-3, 1e-3))
    house.stream()
    s = house.add(range(1000, 1100))
    assert spans(house.step())[1] == (s.id, 0, LEAST_CHUNK)


def test_beside_many_streams_a_prompt_gets_as_much_time_as_they_take() -> None:
    rates = StepRates(0.001, 0.001, 1e-9, 1e-9)
    house = House(num_banks=400, rates=rates, config=SchedulerConfig(step_s=0.025))
    for i in range(24):
        house.add([i], max_new=100)
    while len(house.streams()) < 24:
        house.step()
    s = house.add(range(1000, 1500))
    plan = house.step()
    assert len(plan.spans) == 25
    # 24 streams take 25 ms: nothing is left of the step, and 25 ms are added to it.
    assert spans(plan)[-1] == (s.id, 0, CHUNK)


def test_beside_many_streams_a_complete_prompt_takes_no_time_from_the_next() -> None:
    rates = StepRates(0.001, 0.001, 1e-9, 1e-9)
    config = SchedulerConfig(max_running=64, step_s=0.010)
    house = House(num_banks=400, rates=rates, config=config)
    for i in range(48):
        house.add([i], max_new=100)
    while len(house.streams()) < 48:
        house.step()
    prompts = [house.add(range(1000 * n, 1000 * n + 8)) for n in (1, 2, 3)]
    # The streams take 49 ms; three prompts of 8 ms each fit into as much again.
    assert [span[0] for span in spans(house.step())[-3:]] == [s.id for s in prompts]


@pytest.mark.parametrize(("num_waiting", "num_tokens"), [(1, 16), (40, 32)])
def test_where_more_wait_than_are_answered_prompts_get_more(
    num_waiting: int, num_tokens: int
) -> None:
    rates = StepRates(0.001, 0.001, 1e-9, 1e-9)
    house = House(num_banks=400, rates=rates, config=SchedulerConfig(step_s=0.025))
    house.stream()
    first = house.add(range(1000, 1500))
    for number in range(1, num_waiting):
        house.add(range(2000 * number, 2000 * number + 500))
    assert spans(house.step())[1] == (first.id, 0, num_tokens)


def test_beside_few_streams_a_step_keeps_to_its_time() -> None:
    rates = StepRates(0.004, 0.0015, 1e-9, 1e-9)
    house = House(num_banks=400, rates=rates, config=SchedulerConfig(step_s=0.025))
    house.stream()
    house.add(range(1000, 1500))
    plan = house.step()
    assert [n for _, _, n in spans(plan)] == [1, LEAST_CHUNK]
    assert house.scheduler.cost.estimate(plan.spans) < 0.025


def test_what_was_measured_changes_the_chunks() -> None:
    house = House(num_banks=200)
    house.stream()
    s = house.add(range(1000, 3000))
    before = house.step().spans[1]
    for _ in range(8):
        spans_ = (before,)
        house.scheduler.cost.observe(spans_, 4 * house.scheduler.cost.estimate(spans_))
    after = house.step().spans[1]
    assert after.sequence is before.sequence is s
    assert after.num_tokens < before.num_tokens / 2


# -- refusals --------------------------------------------------------------------------------------


def test_what_can_never_fit_is_refused_at_once() -> None:
    house = House(num_banks=4, bank_size=16)
    s = Sequence(1, "alice", range(10), max_num_tokens=65)
    with pytest.raises(ContextLengthExceeded, match=r"65 tokens \(10 of them prompt\).*64"):
        house.scheduler.add(s)
    with pytest.raises(ContextLengthExceeded, match="70 tokens"):
        house.scheduler.add(Sequence(2, "alice", range(70), max_num_tokens=5))
    with pytest.raises(InvalidRequest, match="no tokens"):
        house.scheduler.add(Sequence(3, "alice", [], max_num_tokens=5))
    assert not house.scheduler.has_work


def test_what_fits_exactly_runs_to_its_end() -> None:
    house = House(num_banks=4, bank_size=16)
    s = house.add(range(60), max_new=4)
    house.finish_all()
    assert (len(s.tokens), s.state) == (64, State.FINISHED)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_running": 0},
        {"max_running": 32, "max_step_tokens": 40},
        {"step_s": 0.0},
        {"step_s": 0.5, "idle_step_s": 0.1},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        SchedulerConfig(**wrong)  # type: ignore[arg-type]


# -- order -----------------------------------------------------------------------------------------


def test_streams_go_before_prompts_and_the_nearest_prompt_first() -> None:
    house = House(num_banks=200)
    stream = house.stream()
    long, short = house.add(range(1000)), house.add(range(2000, 2020))
    plan = house.step()
    assert [span.sequence for span in plan.spans] == [stream, short, long]


def test_a_running_prompt_yields_its_turn_to_a_nearer_one() -> None:
    house = House(num_banks=200)
    house.stream()
    long = house.add(range(1000))
    house.step()
    short = house.add(range(2000, 2020))
    assert [span.sequence for span in house.step().spans][1:] == [short, long]


def test_nearness_counts_from_each_ones_arrival_and_no_further() -> None:
    house = House(num_banks=400)
    house.stream(1500)  # The tenant has been served before.
    long = house.add(range(1000))
    house.step()
    assert long.state is State.RUNNING
    short = house.add(range(2000, 2020))
    assert [span.sequence for span in house.step().spans][1:] == [short, long]


def test_cached_tokens_count_as_no_distance() -> None:
    house = House(num_banks=200)
    house.stream()
    house.scheduler.finish(house.stream(400))
    cached = [*house.sequences[-1].tokens[:400], 5]
    near, far = house.add(range(200)), house.add(cached)
    assert [span.sequence for span in house.step().spans][1:] == [far, near]
    assert far.num_cached_tokens == 400
    assert near.num_cached_tokens == 0


def test_short_prompts_never_starve_a_long_one() -> None:
    house = House(num_banks=300)
    house.stream()
    long = house.add(range(1000, 2500))
    num_overtaking = 0
    while not long.has_first_token:
        while house.scheduler.num_waiting < 3:
            house.add([-9, len(house.sequences), *range(40)], max_new=2)
        plan = house.step()
        num_overtaking += sum(
            span.num_tokens
            for span in plan.spans
            if span.sequence is not long and span.num_tokens > 1
        )
    assert num_overtaking <= 1500 + 2 * 512


def test_a_crowd_does_not_delay_another_tenants_prompt() -> None:
    house = House(num_banks=500, config=SchedulerConfig(step_s=0.040))
    house.stream(tenant="crowd")
    for i in range(40):
        house.add([i, *range(200)], "crowd")
    for _ in range(10):
        house.step()
    guest = house.add(range(5000, 5200), "guest")
    num_steps = 0
    while not guest.has_first_token:
        house.step()
        num_steps += 1
    assert num_steps <= 4


def test_tenants_with_enough_to_do_are_served_alike() -> None:
    house = House(num_banks=500, config=SchedulerConfig(max_running=4))
    rng = random.Random(7)
    served: Counter[str] = Counter()
    for _ in range(400):
        for tenant, size in (("many short", 20), ("few long", 300)):
            while sum(s.state is State.WAITING and s.tenant == tenant for s in house.sequences) < 5:
                house.add([rng.randrange(10**6) for _ in range(size)], tenant, max_new=4)
        for span in house.step().spans:
            served[span.sequence.tenant] += span.num_tokens
    low, high = sorted(served.values())
    assert high < 1.2 * low


def test_no_more_run_than_allowed() -> None:
    house = House(config=SchedulerConfig(max_running=2))
    for i in range(5):
        house.add([i] * 5, max_new=3)
    house.step()
    assert (house.scheduler.num_running, house.scheduler.num_waiting) == (2, 3)
    assert house.scheduler.num_queued_tokens == 15 + 2
    house.finish_all()


# -- sharing ---------------------------------------------------------------------------------------


def test_a_second_turn_computes_only_what_is_new() -> None:
    house = House()
    first = house.add(range(40), max_new=10)
    house.finish_all()
    # The last token was never computed; the rest of its bank goes with it.
    second = house.add([*first.tokens, *range(70, 80)])
    plan = house.step()
    assert second.num_cached_tokens == 48
    assert spans(plan) == [(second.id, 48, 12)]


def test_prompts_with_an_equal_beginning_arriving_together_compute_it_once() -> None:
    house = House(num_banks=200)
    shared = list(range(128))
    group = [house.add([*shared, 900 + i]) for i in range(8)]
    num_computed = 0
    while not all(s.has_first_token for s in group):
        num_computed += sum(n for _, _, n in spans(house.step()) if n > 1)
        house.audit()
    assert num_computed <= 129 + 8 * CHUNK
    assert [s.num_cached_tokens for s in group] == [0] + [128] * 7


def test_a_prompt_in_progress_attaches_what_another_has_computed() -> None:
    house = House(num_banks=200)
    house.stream()
    shared = list(range(1000, 1640))
    first = house.add([*shared, 1])
    house.step()
    second = house.add([*shared, 2])
    while not (first.has_first_token and second.has_first_token):
        house.step()
        house.audit()
    assert second.num_cached_tokens == 640


def test_a_long_prompt_attaches_what_a_nearer_one_has_computed_meanwhile() -> None:
    house = House(num_banks=300, config=SchedulerConfig(step_s=0.040))
    house.stream()
    shared = list(range(1000, 1640))
    long = house.add([*shared, *range(5000, 6000)])
    house.step()
    num_computed = long.num_computed_tokens
    near = house.add([*shared, 1])
    while not near.has_first_token:
        house.step()
    assert near.num_cached_tokens == long.num_computed_tokens == num_computed
    house.step()
    assert long.num_cached_tokens == 640 - num_computed
    assert long.num_computed_tokens > 640


def test_a_long_prompt_waits_a_step_for_a_bank_that_a_nearer_one_computes() -> None:
    house = House(num_banks=300)
    house.stream()
    long = house.add(range(1000, 2640))
    house.step()
    num_computed = long.num_computed_tokens
    near = house.add([*range(1000, 1000 + num_computed + 16), 7])
    assert [span.sequence for span in house.step().spans][1:] == [near]
    ((position, num_tokens),) = [
        (span.position, span.num_tokens) for span in house.step().spans if span.sequence is long
    ]
    assert position == num_computed + 16
    assert num_tokens >= CHUNK


def test_equal_prompts_of_two_tenants_are_computed_twice() -> None:
    house = House(num_banks=200)
    alice, bob = house.add(range(100), "alice"), house.add(range(100), "bob")
    house.step()
    assert not set(alice.banks) & set(bob.banks)
    assert alice.num_cached_tokens == bob.num_cached_tokens == 0


def test_a_fork_goes_on_from_the_parents_last_step() -> None:
    house = House()
    parent = house.add(range(40))
    house.model.step(house.scheduler.plan(), house.kv)
    house.scheduler.complete(house.scheduler.plan())
    child = house.sequence(range(40))
    copy = house.scheduler.fork(parent, child)
    house.model.copy(copy)
    assert copy is not None
    parent.append(50)
    child.append(60)
    assert child.num_cached_tokens == 40
    assert spans(house.step()) == [(parent.id, 40, 1), (child.id, 40, 1)]
    house.audit()


def test_a_fork_without_a_place_waits_and_then_attaches() -> None:
    house = House(config=SchedulerConfig(max_running=1))
    parent = house.add(range(40))
    plan = house.scheduler.plan()
    house.model.step(plan, house.kv)
    house.scheduler.complete(plan)
    child = house.sequence(range(40))
    assert house.scheduler.fork(parent, child) is None
    assert child.state is State.WAITING
    parent.append(50)
    child.append(60)
    house.scheduler.finish(parent)
    assert spans(house.step()) == [(child.id, 40, 1)]


def test_a_refused_fork_leaves_nothing_behind() -> None:
    house = House()
    parent = house.stream()
    with pytest.raises(ValueError, match="does not start with"):
        house.scheduler.fork(parent, house.sequence([1, 2]))
    assert (house.scheduler.num_running, house.scheduler.num_waiting) == (1, 0)
    house.audit()


# -- drafts ----------------------------------------------------------------------------------------


def test_a_stream_takes_its_drafts_along() -> None:
    house = House()
    s = house.stream(5)
    s.draft([2, 4, 7])
    plan = house.step()
    assert plan.spans[0][1:] == (5, 4, 4)
    assert list(s.tokens[6:]) == [2, 4, 0]


def test_drafts_are_dropped_before_anybody_is_preempted() -> None:
    house = House(num_banks=4, bank_size=4)
    first, second = house.stream(3), house.stream(6)
    second.draft([0, 0, 0])
    plan = house.step()
    assert plan.preempted == ()
    assert spans(plan) == [(first.id, 4, 1), (second.id, 6, 1)]


def test_who_is_preempted_forgets_its_drafts() -> None:
    house = House(num_banks=6, bank_size=4)
    house.stream(7)
    victim = house.stream(5)
    preempted: tuple[Sequence, ...] = ()
    while not preempted:
        if len(victim.tokens) < 4 * len(victim.banks):
            victim.draft([1])
        preempted = house.step().preempted
    assert preempted == (victim,)
    assert victim.num_drafts == 0


def test_drafts_leave_tokens_for_prompts() -> None:
    house = House(config=SchedulerConfig(max_running=4, max_step_tokens=32))
    a, b = house.stream(), house.stream()
    a.draft([0] * 10)
    b.draft([0] * 10)
    prompt = house.add(range(1000, 1100))
    assert spans(house.step()) == [(a.id, 6, 11), (b.id, 5, 1), (prompt.id, 0, 16)]


# -- endings ---------------------------------------------------------------------------------------


def test_cancelling_frees_everything_wherever_the_sequence_is() -> None:
    house = House(num_banks=100)
    stream = house.stream()
    prompt, waiting = house.add(range(1000, 2000)), house.add(range(3000, 3500))
    house.step()
    assert prompt.state is State.RUNNING or waiting.state is State.RUNNING
    for s in (stream, prompt, waiting):
        house.scheduler.cancel(s)
        house.scheduler.cancel(s)
        house.audit()
    assert house.kv.num_held == 0
    assert not house.scheduler.has_work
    assert house.scheduler.plan().spans == ()


def test_cancelling_in_mid_step_harms_nobody() -> None:
    house = House()
    gone, stays = house.stream(), house.stream()
    plan = house.scheduler.plan()
    house.model.step(plan, house.kv)
    house.scheduler.cancel(gone)
    house.scheduler.complete(plan)
    house.audit()
    house.sample(stays)
    house.step()
    house.model.check(stays, stays.num_computed_tokens)


def test_finishing_twice_is_an_error() -> None:
    house = House()
    s = house.stream()
    house.scheduler.finish(s)
    with pytest.raises((ValueError, KeyError)):
        house.scheduler.finish(s)


def test_finishing_with_a_pin_keeps_the_conversation() -> None:
    house = House(num_banks=20)
    talk = house.stream(64)
    house.scheduler.finish(talk, TurnEnd("talk", 0.0))
    assert house.kv.pins.num_banks == 4
    for i in range(6):
        house.add([i] * 200, "bob", max_new=2)
    house.finish_all()
    again = house.add([*talk.tokens, 5])
    house.step()
    assert again.num_cached_tokens == 64


# -- too few banks ---------------------------------------------------------------------------------


def test_the_youngest_of_the_greediest_tenant_yields() -> None:
    house = House(num_banks=14, bank_size=4)
    modest = house.stream(4, "modest")
    greedy = [house.stream(10, "greedy") for _ in range(2)]
    late = house.stream(4, "modest")
    preempted: list[Sequence] = []
    while not preempted:
        preempted += house.step().preempted
    assert preempted == [greedy[1]]
    assert modest.state is late.state is greedy[0].state is State.RUNNING
    house.audit()


def test_admission_leaves_a_bank_to_spare_for_each_that_runs() -> None:
    house = House(num_banks=6, bank_size=4)
    for _ in range(2):
        house.stream(4)
    waiting = house.add(range(4))
    assert house.scheduler.plan().admitted == ()
    assert house.kv.num_available == 2
    house.scheduler.cancel(house.sequences[0])
    assert house.scheduler.plan().admitted == (waiting,)


@pytest.mark.parametrize("num_banks", range(13, 16))
def test_who_yields_does_not_come_back_in_the_same_step(num_banks: int) -> None:
    house = House(num_banks, bank_size=1)
    house.stream(2)
    victim = house.stream(2)
    # Drafts that fail leave it more banks than it needs, so that it would fit again at once.
    victim.draft([1] * 4)
    plan = house.step()
    while not plan.preempted:
        plan = house.step()
    assert plan.preempted == (victim,)
    assert plan.admitted == ()


@pytest.mark.parametrize("num_banks", range(45, 48))
def test_a_prompt_may_be_preempted_in_the_step_that_would_have_served_it(num_banks: int) -> None:
    slow = StepRates(base_s=1.0, token_s=1.0, read_s=0.0, pair_s=0.0)
    house = House(num_banks, bank_size=4, rates=slow)
    house.stream(4, "eldest")
    prompt = house.add(range(1000, 1160), "greedy")
    house.step()
    house.add([5] * 4, "modest")
    preempted: list[Sequence] = []
    while not preempted:
        assert prompt.num_uncomputed_tokens > 1
        preempted += house.step().preempted
        house.audit()
    assert preempted == [prompt]


def test_a_preempted_stream_comes_before_shorter_prompts_of_its_tenant() -> None:
    house = House(num_banks=10, bank_size=4)
    house.stream(6)
    yielding = house.stream(10)
    while not house.step().preempted:
        pass
    assert yielding.state is State.WAITING
    short = house.add([5] * 3)
    house.scheduler.cancel(house.sequences[0])
    assert house.step().admitted == (yielding, short)


def test_a_preempted_sequence_goes_on_as_if_nothing_had_happened() -> None:
    house = House(num_banks=8, bank_size=4)
    streams = [house.stream(8, max_new=16) for _ in range(3)]
    house.finish_all()
    assert sum(s.num_preemptions for s in streams) > 0
    for s in streams:
        assert list(s.tokens[8:]) == [i % 2 for i in range(8, 24)]
        assert s.num_cached_tokens == 0


def test_the_eldest_is_never_preempted() -> None:
    house = House(num_banks=6, bank_size=4)
    eldest = house.stream(4, "greedy", max_new=20)
    for i in range(5):
        house.add([i] * 4, f"t{i}", max_new=16)
    house.finish_all()
    assert eldest.num_preemptions == 0


def test_pins_yield_to_the_only_sequence() -> None:
    house = House(num_banks=4, bank_size=4)
    talk = house.stream(8)
    house.scheduler.finish(talk, TurnEnd("talk", 0.0))
    assert house.kv.pins.num_banks == 2
    s = house.add([5] * 6, max_new=10)
    house.finish_all()
    assert len(s.tokens) == 16
    assert house.kv.pins.num_banks == 0


def test_the_first_in_line_is_not_passed_over_for_want_of_banks() -> None:
    house = House(num_banks=10, bank_size=4)
    house.stream(4, "a", max_new=12)
    big = house.add(range(36), "b", max_new=2)
    for i in range(10):
        house.add([i] * 2, "a", max_new=4)
    house.finish_all()
    # Those of "a" that arrived later did not get the banks that "b" waited for.
    order = sorted(house.sequences, key=lambda s: s.rank_base)
    assert big in order
    assert big.num_preemptions == 0


# -- whatever happens ------------------------------------------------------------------------------

TINY = SchedulerConfig(max_running=4, max_step_tokens=20, step_s=0.004, idle_step_s=0.006)
token_lists = st.lists(st.integers(0, 1), min_size=1, max_size=22)
tenants = st.sampled_from(["alice", "bob", "carol"])


class Anything(RuleBasedStateMachine):
    """Random requests on a tiny pool. `House.step` checks each plan and every attached position,
    `audit` recounts every bank after every rule."""

    def __init__(self) -> None:
        super().__init__()
        self.house = House(num_banks=9, bank_size=3, config=TINY)
        self.now = 0.0
        self.num_on_disk = 0
        self.house.scheduler._find_parked = self.find_parked

    def find_parked(self, s: Sequence) -> tuple[bytes, ...]:
        """As if some banks of everybody were on disk."""
        wanted = s.num_silent_tokens // self.house.kv.bank_size - s.num_committed_banks
        return (b"name",) * min(wanted, self.num_on_disk)

    def loading(self) -> list[Sequence]:
        return [s for s in self.alive(State.RUNNING) if s.num_loading_banks]

    def alive(self, *states: State) -> list[Sequence]:
        return [s for s in self.house.sequences if s.state in states]

    def streams(self) -> list[Sequence]:
        return [
            s
            for s in self.alive(State.RUNNING)
            if s.has_first_token and s.num_uncomputed_tokens == 1
        ]

    @rule(prompt=token_lists, tenant=tenants, max_new=st.integers(1, 12))
    def add(self, prompt: list[int], tenant: str, max_new: int) -> None:
        self.house.add(prompt, tenant, max_new)

    @rule(prompt=token_lists, tenant=tenants)
    def prefill(self, prompt: list[int], tenant: str) -> None:
        self.house.add(prompt, tenant, max_new=0)

    @rule(
        data=st.data(),
        tenant=tenants,
        key=st.sampled_from(["talk", "chat"]),
        new=token_lists,
        max_new=st.integers(1, 6),
    )
    def add_turn_after_a_drop(
        self, data: st.DataObject, tenant: str, key: str, new: list[int], max_new: int
    ) -> None:
        """What the conversation kept without its middle, and a new turn."""
        leaf = self.house.kv.pins.leaf_of((tenant, key))
        blocks = [] if leaf is None else [node.tokens for node in leaf.path()][::-1]
        before = array("i", b"".join(blocks)).tolist()
        start = data.draw(st.integers(0, len(before)))
        end = data.draw(st.integers(start, len(before)))
        prompt = [*before[:start], *before[end:], *new][:22]
        s = self.house.sequence(prompt, tenant, max_new)
        s.shifts_in = key
        self.house.scheduler.add(s)

    @rule(num_tokens=st.integers(28, 60))
    def add_too_much(self, num_tokens: int) -> None:
        with pytest.raises(ContextLengthExceeded):
            self.house.scheduler.add(Sequence(-1, "alice", [0], max_num_tokens=num_tokens))

    @rule(num_steps=st.integers(1, 5))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.house.step()
            self.house.audit()

    @rule()
    def lose_a_step(self) -> None:
        """The model failed: a plan is never completed."""
        plan = self.house.scheduler.plan()
        self.house.check(plan, set())
        self.house.model.move(plan.moves, self.house.sequences)

    @precondition(lambda self: self.alive(State.RUNNING, State.WAITING))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        s = data.draw(st.sampled_from(self.alive(State.RUNNING, State.WAITING)))
        self.house.scheduler.cancel(s)
        assert not s.banks

    @precondition(lambda self: self.alive(State.RUNNING))
    @rule(data=st.data(), key=st.sampled_from(["talk", "chat"]), is_good=st.booleans())
    def end_turn(self, data: st.DataObject, key: str, is_good: bool) -> None:
        s = data.draw(st.sampled_from(self.alive(State.RUNNING)))
        s.settle(0)
        self.house.scheduler.finish(s, TurnEnd(key, self.now, is_good))

    @rule(tenant=tenants, key=st.sampled_from(["talk", "chat"]))
    def forget(self, tenant: str, key: str) -> None:
        self.house.kv.forget(tenant, key)

    @rule(seconds=st.sampled_from([1, LEASE_S, 3 * LEASE_S]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.house.kv.pins.drop_ended(self.now)

    @rule(num_banks=st.integers(0, 4))
    def park(self, num_banks: int) -> None:
        self.num_on_disk = num_banks

    @precondition(lambda self: self.loading())
    @rule(data=st.data(), num_banks=st.integers(1, 4), is_whole=st.booleans())
    def arrive(self, data: st.DataObject, num_banks: int, is_whole: bool) -> None:
        s = data.draw(st.sampled_from(self.loading()))
        for _ in range(min(num_banks, s.num_loading_banks)):
            self.house.model.load(s, self.house.kv)
            self.house.scheduler.loaded_bank(s)
            self.house.audit()
        if not is_whole:
            self.house.scheduler.end_load(s)

    @precondition(lambda self: self.streams())
    @rule(data=st.data(), drafts=st.lists(st.integers(0, 2), min_size=1, max_size=5))
    def draft(self, data: st.DataObject, drafts: list[int]) -> None:
        data.draw(st.sampled_from(self.streams())).draft(drafts)

    @precondition(lambda self: self.streams())
    @rule(data=st.data(), max_new=st.integers(2, 10))
    def fork(self, data: st.DataObject, max_new: int) -> None:
        """As for n choices: the child has the parent's computed tokens and a token of its own."""
        parent = data.draw(st.sampled_from(self.streams()))
        shared = parent.tokens[: parent.num_computed_tokens]
        child = self.house.sequence(shared, parent.tenant, max_new)
        self.house.model.copy(self.house.scheduler.fork(parent, child))
        child.append(1 - parent.tokens[-1] % 2)

    @invariant()
    def everything_adds_up(self) -> None:
        self.house.audit()

    def teardown(self) -> None:
        """Nobody starves, however tight it was; afterwards nothing is held."""
        house = self.house
        self.num_on_disk = 0
        for s in self.loading():
            house.scheduler.end_load(s)
        work = sum(s.max_num_tokens for s in house.sequences if s.state is not State.FINISHED)
        house.finish_all(max_steps=20 + 6 * work)
        assert house.kv.num_held == 0
        assert not self.alive(State.RUNNING, State.WAITING)
        assert not house.scheduler._line.served


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)


def trace(seed: int) -> list[object]:
    """A busy hour in miniature, as the plans that were made."""
    rng = random.Random(seed)
    house = House(num_banks=12, bank_size=4, config=TINY)
    plans: list[object] = []
    for _ in range(60):
        for _ in range(rng.randrange(3)):
            prompt = [rng.randrange(2) for _ in range(rng.randrange(1, 30))]
            house.add(prompt, rng.choice("abc"), rng.randrange(1, 12))
        plan = house.step()
        plans.append((spans(plan), [s.id for s in plan.preempted], [s.id for s in plan.admitted]))
        if house.sequences and rng.random() < 0.2:
            house.scheduler.cancel(rng.choice(house.sequences))
    return plans


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_equal_inputs_make_equal_plans(seed: int) -> None:
    assert trace(seed) == trace(seed)


@given(
    prompts=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=12),
    num_banks=st.integers(15, 30),
    bank_size=st.sampled_from([4, 16]),
)
@settings(max_examples=60, deadline=None)
def test_whatever_fits_alone_finishes_among_others(
    prompts: list[tuple[int, int]], num_banks: int, bank_size: int
) -> None:
    house = House(num_banks, bank_size, config=SchedulerConfig(max_running=8))
    for i, (num_tokens, max_new) in enumerate(prompts):
        house.add([i] * num_tokens, f"tenant {i % 3}", max_new)
    house.finish_all()
    assert house.kv.num_held == 0


def test_the_machine_meets_what_it_is_meant_to_meet() -> None:
    """The tiny pool does preempt, evict and refuse room; else the properties would say nothing."""
    rng = random.Random(5)
    house = House(num_banks=9, bank_size=3, config=TINY)
    num_waits = 0
    for _ in range(1000):
        if house.scheduler.num_waiting < 3:
            prompt = rng.choices([0, 1], [9, 1], k=rng.randrange(1, 15))
            house.add(prompt, rng.choice("abc"), rng.randrange(1, 12))
        house.step()
        num_waits += house.scheduler.num_waiting > 0
    assert sum(s.num_preemptions for s in house.sequences) > 10
    assert sum(s.num_cached_tokens for s in house.sequences) > 50
    assert num_waits > 50
