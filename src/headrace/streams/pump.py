"""From the engine's events to the log: read what they mean, note when they came, see them end.

In: events from the mailbox. Out: events for the log. Thread: the event loop. Next: `log.py`.

A pump is the engine's reader of one generation, without a task of its own: events are in the log
in the same turn of the loop that brought them.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from headrace.engine.engine import Engine, Prepared
from headrace.engine.stream import Ticket
from headrace.errors import HeadraceError
from headrace.events import (
    Delta,
    Event,
    Failed,
    Finished,
    FinishReason,
    Started,
    Timings,
    ToolCall,
    Usage,
)
from headrace.streams.log import StreamLog
from headrace.streams.patience import Patience, Watchdog


class Parser(Protocol):
    """Reads one choice's text: what of it is thought, called or said."""

    def push(self, delta: Delta) -> Sequence[Delta | ToolCall]: ...

    def finish(self, reason: FinishReason) -> tuple[Sequence[Delta | ToolCall], FinishReason]:
        """What was held back, and why the answer really ended. Raises `HeadraceError` where the
        answer is not what was asked for."""


class Pump:
    """One generation on the event loop: submitted to the engine once for each prompt.

    Choices of several prompts are numbered through: those of the second follow those of the first.
    """

    def __init__(
        self,
        num_choices: int,
        *,
        parser: Callable[[int], Parser | None],
        patience: Patience,
        on_end: Callable[[Pump], None],
    ) -> None:
        """`parser` makes the reader of a choice's text, None where text is text. `on_end` is called
        once, when all choices have ended."""
        self.log = StreamLog(num_choices)
        self.tally = Tally(num_choices)
        self.seed = 0
        self._parsers = [parser(choice) for choice in range(num_choices)]
        self._on_end = on_end
        self._tickets: list[Ticket[_Ear]] = []
        self._watchdog = Watchdog(num_choices, patience, self._run_out)

    def submit(self, engine: Engine, prepared: Sequence[Prepared]) -> None:
        """Ask the engine. Raises what refuses a prompt, and then leaves nothing running."""
        first = 0
        try:
            for one in prepared:
                self._tickets.append(engine.submit(one, _Ear(self, first)))
                first += one.request.n
        except BaseException:
            self.cancel()
            raise
        self.seed = self._tickets[0].submission.seed
        self._watchdog.start()

    def cancel(self) -> None:
        """Stop within a step: nobody wants the rest. Each choice still says its end."""
        for ticket in self._tickets:
            ticket.cancel()

    def hear(self, events: Sequence[Event]) -> None:
        """Take in what the engine said. What it says of a choice that has ended here is dropped."""
        now = time.perf_counter()
        said: list[Event] = []
        over: set[int] = set()
        for event in events:
            if event.choice in over or self.log.has_ended(event.choice):
                continue
            try:
                self._read(event, now, said)
            except HeadraceError as error:
                said.append(self._failure(event.choice, error))
            if said and isinstance(said[-1], (Finished, Failed)):
                over.add(event.choice)
        self._say(said)

    def _read(self, event: Event, now: float, said: list[Event]) -> None:
        """Add what `event` means to `said`. Raises what makes its choice fail."""
        choice = event.choice
        parser = self._parsers[choice]
        match event:
            case Delta():
                self._watchdog.heard(choice, now)
                self.tally.heard(event, now)
                if parser is None:
                    said.append(event)
                else:
                    said.extend(parser.push(event))
            case Started():
                self._watchdog.began(choice, now)
                self.tally.began(event)
                said.append(event)
            case Finished():
                self.tally.ended(event, event.reason)
                if parser is not None:
                    rest, reason = parser.finish(event.reason)
                    said.extend(rest)
                    event = replace(event, reason=reason)
                    self.tally.ended(event, reason)
                said.append(event)
            case _:
                if isinstance(event, Failed):
                    self.tally.ended(event, "error")
                said.append(event)

    def _failure(self, choice: int, error: HeadraceError) -> Failed:
        """The end of a choice that cannot go on here, whatever the engine says later."""
        return self.tally.failure(choice, error)

    def _say(self, events: list[Event]) -> None:
        if not events:
            return
        self.log.extend(events)
        for event in events:
            if isinstance(event, (Finished, Failed)):
                self._watchdog.ended(event.choice)
        if self.log.is_over:
            self._watchdog.stop()
            self.cancel()
            self._on_end(self)

    def _run_out(self, error: HeadraceError) -> None:
        self._say([self._failure(choice, error) for choice in self.log.open_choices()])


class Tally:
    """What one generation cost so far, and when its tokens came here."""

    def __init__(self, num_choices: int) -> None:
        self.first_token_at: float | None = None
        """On the clock of `time.perf_counter`."""
        self.gaps_s = array("d")
        """Seconds between the tokens of each choice."""
        self.usages = [Usage(0, 0, 0)] * num_choices
        self.timings = [Timings(0.0, 0.0, 0.0)] * num_choices
        self.reasons: list[str] = [""] * num_choices
        self._heard_at: dict[int, float] = {}
        self._num_heard = [0] * num_choices

    def began(self, event: Started) -> None:
        self.usages[event.choice] = Usage(event.num_prompt_tokens, event.num_cached_tokens, 0)

    def heard(self, delta: Delta, now: float) -> None:
        choice = delta.choice
        if self.first_token_at is None:
            self.first_token_at = now
        before = self._heard_at.get(choice)
        if before is not None:
            self.gaps_s.append(now - before)
        self._heard_at[choice] = now
        self._num_heard[choice] = delta.start + len(delta.token_ids)

    def ended(self, event: Finished | Failed, reason: str) -> None:
        self.usages[event.choice] = event.usage
        self.timings[event.choice] = event.timings
        self.reasons[event.choice] = reason

    def failure(self, choice: int, error: HeadraceError) -> Failed:
        """The end of a choice of which the engine has not said it, from what was heard."""
        usage = replace(self.usages[choice], num_completion_tokens=self._num_heard[choice])
        failed = Failed(choice, error, usage, self.timings[choice])
        self.ended(failed, "error")
        return failed


class _Ear:
    """The engine's reader of one prompt's choices."""

    def __init__(self, pump: Pump, first_choice: int) -> None:
        self._pump = pump
        self._first_choice = first_choice
        self._loop = asyncio.get_running_loop()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def receive(self, events: Sequence[Event]) -> None:
        first = self._first_choice
        if first:
            events = [replace(event, choice=event.choice + first) for event in events]
        self._pump.hear(events)
