"""What one generation cost so far, and when its tokens came.

In: events as the pump hears them. Out: usage, timings and gaps, for whoever counts or bills.
Thread: the event loop.
"""

from __future__ import annotations

from array import array
from dataclasses import replace

from headrace.errors import HeadraceError
from headrace.events import Delta, Failed, Finished, Started, Timings, Usage

_NOTHING = Usage(0, 0, 0)


class Tally:
    """What one generation cost so far, and when its tokens came here."""

    def __init__(self, num_choices: int) -> None:
        self.first_token_at: float | None = None
        """On the clock of `time.perf_counter`."""
        self.gaps_s = array("d")
        """Seconds between the tokens of each choice."""
        self.usages = [_NOTHING] * num_choices
        self.timings = [Timings(0.0, 0.0, 0.0)] * num_choices
        self.reasons: list[str] = [""] * num_choices
        self.errors: list[HeadraceError] = []
        """Of the choices that failed, in the order in which they did."""
        self._begun: set[int] = set()
        self._heard_at: dict[int, float] = {}
        self._num_heard = [0] * num_choices

    @property
    def error(self) -> HeadraceError | None:
        """Of the first choice that failed."""
        return self.errors[0] if self.errors else None

    def began(self, event: Started) -> None:
        self._begun.add(event.choice)
        self.usages[event.choice] = Usage(event.num_prompt_tokens, event.num_cached_tokens, 0)

    def heard_again(self, delta: Delta) -> None:
        """What a process before this one has heard: when it came is not known here."""
        self._num_heard[delta.choice] = delta.start + len(delta.token_ids)

    def heard(self, delta: Delta, now: float) -> None:
        choice = delta.choice
        if self.first_token_at is None:
            self.first_token_at = now
        before = self._heard_at.get(choice)
        if before is not None:
            self.gaps_s.append(now - before)
        self._heard_at[choice] = now
        self._num_heard[choice] = delta.start + len(delta.token_ids)

    def ended(self, event: Finished | Failed) -> None:
        usage, has_begun = event.usage, event.choice in self._begun
        # A prompt for which no step ever computed was not used.
        self.usages[event.choice] = usage if has_begun else _NOTHING
        self.timings[event.choice] = event.timings
        if isinstance(event, Finished):
            self.reasons[event.choice] = event.reason
        else:
            self.reasons[event.choice] = "error"
            self.errors.append(event.error)

    def failure(self, choice: int, error: HeadraceError) -> Failed:
        """The end of a choice of which the engine has not said it, from what was heard."""
        usage = replace(self.usages[choice], num_completion_tokens=self._num_heard[choice])
        return Failed(choice, error, usage, self.timings[choice])
