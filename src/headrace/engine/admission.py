"""Now, later, or never: whether one more request may wait for the engine.

In: how much waits already. Out: nothing, or a refusal that says when to come again.
Thread: the caller's, under the mailbox's lock. Next: `mailbox.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import EngineOverloaded


@dataclass(frozen=True, slots=True)
class Backlog:
    """What an engine has before it."""

    num_pending: int
    """Requests that run or wait."""
    num_queued_tokens: int
    """Prompt tokens of requests for which no step has computed yet."""
    token_s: float
    """Measured seconds to compute one of them."""

    @property
    def queue_s(self) -> float:
        """How long a request that came now would wait for its first step."""
        return self.num_queued_tokens * self.token_s


@dataclass(frozen=True, slots=True)
class Admission:
    """A queue that is full refuses; one that is not, in the end, answers everybody in it."""

    max_pending: int
    """Requests that may run or wait at a time."""
    max_queue_s: float
    """How long the queue may take to compute. An empty queue takes any request."""

    def check(self, backlog: Backlog) -> None:
        """May one more come? Raises `EngineOverloaded` if not."""
        if backlog.num_pending >= self.max_pending:
            raise EngineOverloaded(
                f"{backlog.num_pending} requests are running or waiting, as many as `max_pending` "
                "allows; try again later",
                retry_after_s=max(1.0, backlog.queue_s),
            )
        if backlog.queue_s > self.max_queue_s:
            raise EngineOverloaded(
                f"{backlog.num_queued_tokens} prompt tokens are waiting, {backlog.queue_s:.1f} s "
                f"of work; `max_queue_s` is {self.max_queue_s:g}; try again later",
                retry_after_s=max(1.0, backlog.queue_s - self.max_queue_s),
            )
