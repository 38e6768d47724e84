"""The only queues and locks between the engine thread and everybody else.

In: submissions and cancellations. Out: events, to readers on any event loop or plain thread.
Thread: both sides, as each method says. Next: `loop.py` on the way in, the caller on the way out.

Inward, callers append under one lock and the engine thread takes everything at once. Outward,
`outbox.py` hands a step's events to their readers. One that falls behind finds its deltas merged:
it gets bigger deltas, never a blocked engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from headrace.engine.admission import Admission, Backlog
from headrace.engine.past import Past
from headrace.engine.request import Request
from headrace.errors import EngineClosed
from headrace.events import Event, merge_all
from headrace.model.interface import TokenIds

if TYPE_CHECKING:
    import asyncio


class Reader(Protocol):
    """Where one stream's events arrive. Made by the thread that will read."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop to wake, or None for a reader that waits on a thread of its own."""

    def receive(self, events: Sequence[Event]) -> None:
        """Keep `events` and wake whoever waits. On the loop's thread, or on the engine thread."""

    def receive_early(self, events: Sequence[Event]) -> bool:
        """Engine thread, before a loop is woken for `events`: True to take them without. They are
        then never given to `receive`. Not called while `receive` has anything before it."""

    def catch_up(self) -> None:
        """On the loop's thread, now and then: look at what was taken early."""


class LoopReader:
    """A reader on an event loop: all its methods run on that loop's thread, so it has no lock."""

    def __init__(self) -> None:
        import asyncio  # takes time, and plain threads do without it

        self._loop = asyncio.get_running_loop()
        self._arrived: list[Event] = []
        self._waiter: asyncio.Future[None] | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        return self._loop

    def receive_early(self, events: Sequence[Event]) -> bool:
        return False

    def catch_up(self) -> None:
        """Nothing is taken early."""

    def receive(self, events: Sequence[Event]) -> None:
        self._arrived.extend(events)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Event]:
        """At least one event; everything that arrived, with deltas merged."""
        if self._waiter is not None:
            raise RuntimeError("two tasks read the same stream; give each its own")
        while not self._arrived:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        arrived, self._arrived = self._arrived, []
        return merge_all(arrived)


class ThreadReader:
    """A reader on a plain thread: `take` blocks it, and Ctrl-C still gets through."""

    def __init__(self) -> None:
        self._arrived: list[Event] = []
        self._changed = threading.Condition()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        return None

    def receive_early(self, events: Sequence[Event]) -> bool:
        return False

    def catch_up(self) -> None:
        """Nothing is taken early."""

    def receive(self, events: Sequence[Event]) -> None:
        with self._changed:
            self._arrived.extend(events)
            self._changed.notify()

    def take(self) -> list[Event]:
        """At least one event; everything that arrived, with deltas merged."""
        with self._changed:
            while not self._arrived:
                self._changed.wait()
        return self.poll()

    def poll(self) -> list[Event]:
        """Everything that arrived, maybe nothing, with deltas merged. Does not wait."""
        with self._changed:
            arrived, self._arrived = self._arrived, []
        return merge_all(arrived)


@dataclass(frozen=True, slots=True, eq=False)
class Submission:
    """A request on its way to the engine thread, as tokens. Compared by identity."""

    request_id: str
    request: Request
    prompt: TokenIds
    max_num_tokens: int
    """The most tokens of one choice, prompt included."""
    seed: int
    reader: Reader
    submitted_at: float
    """Seconds on the engine's clock."""
    past: Past | None = None
    """What was said before, where this goes on with a generation whose process died."""


@dataclass(frozen=True, slots=True)
class Submit:
    submission: Submission


@dataclass(frozen=True, slots=True)
class Cancel:
    submission: Submission


@dataclass(frozen=True, slots=True)
class Forget:
    """Keep nothing of a conversation."""

    tenant: str
    conversation: str
    is_done: Future[None]


@dataclass(frozen=True, slots=True)
class Call:
    """Do this on the engine thread. It must not fail."""

    work: Callable[[], None]


Command: TypeAlias = Submit | Cancel | Forget | Call


class Inbox:
    """What callers want of the engine thread."""

    def __init__(self, admission: Admission) -> None:
        self._changed = threading.Condition()
        self._commands: list[Command] = []
        self._num_pending = 0
        self._num_queued_tokens = 0
        self._admission = admission
        self.token_s = 0.0
        """Measured seconds a prompt token: the engine thread writes it, admission reads it."""
        self._closed_because: str | None = None

    @property
    def is_closed(self) -> bool:
        return self._closed_because is not None

    @property
    def closed_because(self) -> str:
        """A sentence for those who come too late."""
        return self._closed_because or "the engine is open"

    @property
    def num_pending(self) -> int:
        """Requests that were submitted and have not ended."""
        return self._num_pending

    @property
    def backlog(self) -> Backlog:
        """Any thread: what the engine has before it."""
        return Backlog(self._num_pending, self._num_queued_tokens, self.token_s)

    def submit(self, submission: Submission) -> None:
        """Any thread. Raises `EngineOverloaded` and `EngineClosed`, and then keeps nothing."""
        with self._changed:
            if self._closed_because is not None:
                raise EngineClosed(self._closed_because)
            if submission.past is None:  # others have been admitted once
                self._admission.check(self.backlog)
            self._num_pending += 1
            self._num_queued_tokens += len(submission.prompt)
            self._commands.append(Submit(submission))
            self._changed.notify()

    def cancel(self, submission: Submission) -> None:
        """Any thread. A submission that has ended, or was never made, is left in peace."""
        with self._changed:
            self._commands.append(Cancel(submission))
            self._changed.notify()

    def forget(self, tenant: str, conversation: str) -> Future[None]:
        """Any thread; done, on the engine thread, when nothing is left. `EngineClosed` is its
        exception where the engine has ended first."""
        is_done: Future[None] = Future()
        is_done.set_running_or_notify_cancel()  # who stops waiting for it does not stop it
        with self._changed:
            if self._closed_because is None:
                self._commands.append(Forget(tenant, conversation, is_done))
                self._changed.notify()
                return is_done
        is_done.set_exception(EngineClosed(self._closed_because))
        return is_done

    def call(self, work: Callable[[], None]) -> None:
        """Any thread: have the engine thread do something small, unless it ends first."""
        with self._changed:
            self._commands.append(Call(work))
            self._changed.notify()

    def close(self, because: str) -> None:
        """Any thread: take no more submissions and wake the engine thread. The first reason given
        stays."""
        with self._changed:
            self._closed_because = self._closed_because or because
            self._changed.notify()

    @property
    def has_commands(self) -> bool:
        return bool(self._commands)

    def drain(self) -> list[Command]:
        """Engine thread: everything that came since the last time. Does not block."""
        if not self._commands:  # the lean way through a busy step: no lock
            return []
        with self._changed:
            commands, self._commands = self._commands, []
        return commands

    def wait(self, timeout_s: float | None = None) -> None:
        """Engine thread: sleep, without using the processor, until there is a reason to wake, or
        so long."""
        with self._changed:
            self._changed.wait_for(self._has_reason, timeout_s)

    def _has_reason(self) -> bool:
        return bool(self._commands) or self._closed_because is not None

    def began(self, submission: Submission) -> None:
        """Engine thread: a step computes for a submission, or none ever will. Once for each."""
        with self._changed:
            self._num_queued_tokens -= len(submission.prompt)

    def ended(self) -> None:
        """Engine thread: one submission has had its last event."""
        with self._changed:
            self._num_pending -= 1
