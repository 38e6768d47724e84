"""Now, later, or never: whether one more request may wait for the engine.

In: how many there are. Out: nothing, or a refusal. Thread: the caller's, under the mailbox's lock.
Next: `mailbox.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import EngineOverloaded


@dataclass(frozen=True, slots=True)
class Admission:
    """A queue that is full refuses; one that is not, in the end, answers everybody in it."""

    max_pending: int
    """Requests that may run or wait at a time."""

    def check(self, num_pending: int) -> None:
        """May one more come to `num_pending` others? Raises `EngineOverloaded` if not."""
        if num_pending >= self.max_pending:
            raise EngineOverloaded(
                f"{num_pending} requests are running or waiting, as many as `max_pending` allows; "
                "try again later"
            )
