"""Puts load on whoever answers: so many clients at a time, or so many arrivals a second.

In: a `Plan`, and whom to ask. Out: an `Outcome` with a sample for every request.
Thread: one event loop's. Next: `asking.py`, at each request; `report.py`, at the end.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol, TypeAlias, TypeVar

from headrace.bench.serve.answer import Sample
from headrace.bench.serve.workloads import Conversation, Workload

Messages: TypeAlias = list[dict[str, str]]
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Closed:
    """`concurrency` clients, each asking again as soon as it is answered."""

    concurrency: int

    def __str__(self) -> str:
        return f"{self.concurrency} at a time"


@dataclass(frozen=True, slots=True)
class Open:
    """Conversations begin at random, `rate` a second on average, whatever the server does."""

    rate: float

    def __str__(self) -> str:
        return f"{self.rate:g} a second, at random"


Arrivals: TypeAlias = Closed | Open


class Asker(Protocol):
    """Asks one question."""

    async def ask(self, messages: Messages, max_tokens: int, due_at: float) -> tuple[Sample, str]:
        """What came of it, and the text of the answer. `due_at`: when the client began to wait.
        Raises nothing: what goes wrong is the sample's error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked, and how often."""

    workload: Workload
    arrivals: Arrivals
    num_requests: int | None = None
    duration_s: float | None = None
    """No request is sent later; those that were are waited for."""
    num_warmup: int = 0
    """Requests before the first that counts."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_requests is None and self.duration_s is None:
            raise ValueError("name num_requests or duration_s: a load without either never ends")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a plan."""

    plan: Plan
    samples: tuple[Sample, ...]
    wall_s: float
    """From the first request's beginning to the last one's end."""
    cpu_s: float
    """What this process used meanwhile."""
    max_late_s: float
    """The longest that an arrival was sent after it was due; 0 in closed loop."""


class Load:
    """One run of a plan. `samples` and `num_open` may be watched meanwhile."""

    def __init__(self, plan: Plan, asker: Asker) -> None:
        self.plan = plan
        self._asker = asker
        self.samples: list[Sample] = []
        self.num_open = 0
        self.num_tokens = 0
        self._conversations = plan.workload.conversations(plan.seed)
        self._max_late_s = 0.0

    async def run(self) -> Outcome:
        """Warm up, then measure."""
        plan = self.plan
        if plan.num_warmup:
            num_clients = plan.arrivals.concurrency if isinstance(plan.arrivals, Closed) else 1
            await self._closed(_Quota(plan.num_warmup, None), num_clients)
            self.samples.clear()
            self.num_tokens = 0
        return await self._measured(_Quota(plan.num_requests, plan.duration_s))

    async def _measured(self, quota: _Quota) -> Outcome:
        cpu_s, begun_at = time.process_time(), perf_counter()
        match self.plan.arrivals:
            case Closed(concurrency):
                await self._closed(quota, concurrency)
            case Open(rate):
                await self._open(quota, rate)
        ended_at = max((sample.ended_at for sample in self.samples), default=perf_counter())
        return Outcome(
            self.plan,
            tuple(self.samples),
            ended_at - begun_at,
            time.process_time() - cpu_s,
            self._max_late_s,
        )

    async def _closed(self, quota: _Quota, num_clients: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(num_clients):
                group.create_task(self._client(quota))

    async def _client(self, quota: _Quota) -> None:
        while quota.has_more:
            await self._converse(next(self._conversations), quota, perf_counter())

    async def _open(self, quota: _Quota, rate: float) -> None:
        source = random.Random(f"arrivals/{self.plan.seed}")
        due_at = perf_counter()
        async with asyncio.TaskGroup() as group:
            while quota.has_more:
                await asyncio.sleep(max(0.0, due_at - perf_counter()))
                if not quota.has_more:
                    break
                self._max_late_s = max(self._max_late_s, perf_counter() - due_at)
                talk = self._converse(next(self._conversations), quota, due_at)
                group.create_task(talk)
                # The task takes its share of the quota when it first runs.
                await asyncio.sleep(0)
                due_at += source.expovariate(rate)

    async def _converse(self, conversation: Conversation, quota: _Quota, due_at: float) -> None:
        """Ask its turns one after the other, each with all that was said before."""
        messages = [{"role": "system", "content": conversation.system}] * bool(conversation.system)
        for turn in conversation.turns:
            if not quota.take():
                return
            messages.append({"role": "user", "content": turn.question})
            self.num_open += 1
            try:
                sample, text = await self._asker.ask(messages, turn.max_tokens, due_at)
            finally:
                self.num_open -= 1
            self.samples.append(sample)
            self.num_tokens += sample.num_completion_tokens
            if sample.error is not None:
                return
            messages.append({"role": "assistant", "content": text})
            due_at = perf_counter()


def run(work: Coroutine[Any, Any, _Result]) -> _Result:
    """On an event loop of its own, the fastest that is here."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not made for this system
        return None
    return uvloop.new_event_loop


class _Quota:
    """How many more requests may be sent."""

    def __init__(self, num_requests: int | None, duration_s: float | None) -> None:
        self._num_left = num_requests
        self._until = None if duration_s is None else perf_counter() + duration_s

    @property
    def has_more(self) -> bool:
        is_late = self._until is not None and perf_counter() >= self._until
        return not is_late and self._num_left != 0

    def take(self) -> bool:
        if not self.has_more:
            return False
        if self._num_left is not None:
            self._num_left -= 1
        return True
