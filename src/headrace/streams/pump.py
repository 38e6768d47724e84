"""From the engine's events to the log: read what they mean, note when they came, see them end.

In: events from the mailbox. Out: events for the log. Thread: the event loop. Next: `log.py`.

A pump is the engine's reader of one generation, without a task of its own: events are in the log
in the same turn of the loop that brought them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from headrace.engine.engine import Engine, Prepared
from headrace.engine.mailbox import Reader
from headrace.engine.progress import Progress
from headrace.engine.stream import Ticket
from headrace.errors import GenerationFailed, HeadraceError
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
from headrace.streams.journal import is_interruption
from headrace.streams.log import StreamLog
from headrace.streams.patience import Patience, Watchdog

_log = logging.getLogger(__name__)


class Parser(Protocol):
    """Reads one choice's text: what of it is thought, called or said."""

    @property
    def num_reasoning_tokens(self) -> int:
        """How many of the tokens heard so far were thoughts."""

    def push(self, delta: Delta) -> Sequence[Delta | ToolCall]:
        """What is sure now, maybe nothing."""

    def finish(self, reason: FinishReason) -> tuple[Sequence[Delta | ToolCall], FinishReason]:
        """What was held back, and why the answer really ended. Raises `HeadraceError` where the
        answer is not what was asked for."""


class Bypass(Protocol):
    """Takes deltas on the engine thread, before the log has them."""

    position: int
    """Up to this number, the log's events were taken by it or by who opened it. Written on the
    loop, when the log has them."""

    def take(self, events: Sequence[Event]) -> bool:
        """Engine thread: False where it cannot, and then nothing of them. Raises nothing."""


class Record(Protocol):
    """One generation's place on disk: what is said to its readers is kept there first."""

    def attach(self, reader: Reader) -> None:
        """What the engine says to `reader` is kept."""

    def ended(self, failures: Sequence[Failed]) -> None:
        """Choices end that the engine has not ended. Returns when that is kept."""

    def refused(self) -> None:
        """The engine did not take it; there is nothing to keep."""


_LATEST_S = 0.05
"""How long the log may not know of what was taken early, while more of it comes."""


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
        record: Record | None = None,
        age_s: float = 0.0,
    ) -> None:
        """`parser` makes the reader of a choice's text, None where text is text. `on_end` is called
        once, when all choices have ended. With `record` the generation survives this process.
        `age_s`: how long ago it was asked for, where that was in another one."""
        self.log = StreamLog(num_choices)
        self.tally = Tally(num_choices)
        self.seed = 0
        self._engine: Engine | None = None
        self._parsers = [parser(choice) for choice in range(num_choices)]
        self._when_over: list[Callable[[], None]] = [lambda: on_end(self)]
        self._tickets: list[Ticket[_Ear]] = []
        self._record = record
        self._is_interrupted = False
        self._watchdog = Watchdog(patience, self._catch_up, self._run_out, age_s=age_s)

    def submit(self, engine: Engine, prepared: Sequence[Prepared]) -> None:
        """Ask the engine. Raises what refuses a prompt, and then leaves nothing running."""
        first = 0
        self._engine = engine
        try:
            for one in prepared:
                ear = _Ear(self, first, one.request.n)
                if self._record is not None:
                    self._record.attach(ear)
                self._tickets.append(engine.submit(one, ear))
                first += one.request.n
        except BaseException:
            self.cancel()
            if self._record is not None:
                self._record.refused()
            raise
        self.seed = self._tickets[0].submission.seed
        self._watchdog.start()

    @property
    def usage(self) -> Usage:
        """What all choices cost until now. A prompt counts once for all of its choices: as for the
        one that computed most of it."""
        usages = self.tally.usages
        prompts: list[Usage] = []
        first = 0
        for ticket in self._tickets:
            end = first + ticket.submission.request.n
            prompts.append(max(usages[first:end], key=_num_computed))
            first = end
        return Usage(
            sum(usage.num_prompt_tokens for usage in prompts),
            sum(usage.num_cached_tokens for usage in prompts),
            sum(usage.num_completion_tokens for usage in usages),
            sum(usage.num_reasoning_tokens for usage in usages),
        )

    def progress(self) -> Progress | None:
        """How far the first prompt is; None once there is a token, or an end."""
        if self._engine is None or self.tally.first_token_at is not None or self.log.is_over:
            return None
        return self._engine.progress(self._tickets[0].submission)

    @property
    def can_be_bypassed(self) -> bool:
        """One choice, whose text means what it says."""
        return len(self._parsers) == 1 and self._parsers[0] is None

    @property
    def is_busy(self) -> bool:
        """A bypass would not be used now."""
        return any(ticket.reader.is_busy for ticket in self._tickets)

    def open_bypass(self, bypass: Bypass) -> bool:
        """Let deltas go to `bypass` as they come, on the engine thread, before the log has them.
        Only for a reader that has read all that is in the log; False when more is on its way, or
        another bypass is open."""
        return self._tickets[0].reader.open_bypass(bypass)

    def close_bypass(self, bypass: Bypass) -> None:
        """When this returns, `bypass` is not running and will not be called."""
        for ticket in self._tickets:
            ticket.reader.close_bypass(bypass)

    def when_over(self, hear_of_it: Callable[[], None]) -> None:
        """Call `hear_of_it` when all choices have ended; at once where they have."""
        if self.log.is_over:
            hear_of_it()
        else:
            self._when_over.append(hear_of_it)

    def cancel(self) -> None:
        """Stop within a step: nobody wants the rest. Each choice still says its end."""
        for ticket in self._tickets:
            if ticket.reader.num_open:  # else it would wake the engine thread for nothing
                ticket.cancel()

    def fail(self, error: HeadraceError) -> None:
        """Stop all choices that have not ended; each says `error` as its end, at once."""
        self._catch_up()
        self._run_out(error)

    def hear(self, events: Sequence[Event], now: float, *, taken_by: Bypass | None = None) -> None:
        """Take in what the engine said at `now`. What it says of a choice that has ended here is
        dropped; so is all that it says when it goes, where another engine will go on with it."""
        if self._record is not None and is_interruption(events):
            self._is_interrupted = True
            self._watchdog.stop()
        if self._is_interrupted:
            return
        said: list[Event] = []
        over: set[int] = set()
        for event in events:
            if event.choice in over or self.log.has_ended(event.choice):
                continue
            try:
                self._read(event, now, said)
            except Exception as error:
                _log.exception("a choice could not be read")
                failure = GenerationFailed(f"internal error: {error!r}")
                said.append(self.tally.failure(event.choice, failure))
            if said and isinstance(said[-1], (Finished, Failed)):
                over.add(event.choice)
        if taken_by is not None and said:
            taken_by.position = len(self.log) + len(said)
        self._say(said)

    def _read(self, event: Event, now: float, said: list[Event]) -> None:
        """Add what `event` means to `said`."""
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
            case Finished() | Failed():
                said.extend(_ending(parser, event))
            case _:
                said.append(event)

    def _say(self, events: list[Event]) -> None:
        if not events:
            return
        self.log.extend(events)
        for event in events:
            if isinstance(event, (Finished, Failed)):
                self._watchdog.ended(event.choice)
                self.tally.ended(event)
        if self.log.is_over:
            self._watchdog.stop()
            self.cancel()
            for hear_of_it in self._when_over:
                hear_of_it()

    def _catch_up(self) -> None:
        for ticket in self._tickets:
            ticket.reader.catch_up()

    def _run_out(self, error: HeadraceError) -> None:
        if self._is_interrupted:
            return
        failures = [self.tally.failure(choice, error) for choice in self.log.open_choices()]
        if self._record is not None and failures:
            # First, and before the engine is told to stop: there is one end on record, this one.
            self._record.ended(failures)
        self._say([*failures])


def _ending(parser: Parser | None, end: Finished | Failed) -> Sequence[Event]:
    """The last events of a choice, as its parser has it."""
    if parser is None or isinstance(end, Failed):
        return [end]
    usage = replace(end.usage, num_reasoning_tokens=parser.num_reasoning_tokens)
    try:
        rest, reason = parser.finish(end.reason)
    except HeadraceError as error:
        return [Failed(end.choice, error, usage, end.timings)]
    return [*rest, replace(end, reason=reason, usage=usage)]


_NOTHING = Usage(0, 0, 0)


def _num_computed(usage: Usage) -> int:
    return usage.num_prompt_tokens - usage.num_cached_tokens


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
        self.error: HeadraceError | None = None
        """Of the first choice that failed."""
        self._begun: set[int] = set()
        self._heard_at: dict[int, float] = {}
        self._num_heard = [0] * num_choices

    def began(self, event: Started) -> None:
        self._begun.add(event.choice)
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

    def ended(self, event: Finished | Failed) -> None:
        usage, has_begun = event.usage, event.choice in self._begun
        # A prompt for which no step ever computed was not used.
        self.usages[event.choice] = usage if has_begun else _NOTHING
        self.timings[event.choice] = event.timings
        if isinstance(event, Finished):
            self.reasons[event.choice] = event.reason
        else:
            self.reasons[event.choice] = "error"
            self.error = self.error or event.error

    def failure(self, choice: int, error: HeadraceError) -> Failed:
        """The end of a choice of which the engine has not said it, from what was heard."""
        usage = replace(self.usages[choice], num_completion_tokens=self._num_heard[choice])
        return Failed(choice, error, usage, self.timings[choice])


class _Ear:
    """The engine's reader of one prompt's choices.

    With a bypass, deltas may have been taken when they come here: the loop hears of them now and
    then, for the log. What was handed over the usual way closes the bypass, so that nothing
    overtakes it; in the log, all events stand in the order in which they were said.
    """

    def __init__(self, pump: Pump, first_choice: int, num_choices: int) -> None:
        self.num_open = num_choices
        """Choices whose end the engine has not said."""
        self._pump = pump
        self._first_choice = first_choice
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._bypass: Bypass | None = None
        self._early: list[tuple[Sequence[Event], float, Bypass]] = []
        self._is_busy = False
        """The loop was woken for many readers the last time: a bypass would not be used."""
        self._num_on_their_way = 0
        """Hand-overs to the loop that have not arrived."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    @property
    def is_busy(self) -> bool:
        return self._is_busy

    def open_bypass(self, bypass: Bypass) -> bool:
        with self._lock:
            if self._is_busy or self._num_on_their_way or self._early or self._bypass is not None:
                return False
            self._bypass = bypass
            return True

    def close_bypass(self, bypass: Bypass) -> None:
        with self._lock:
            if self._bypass is bypass:
                self._bypass = None

    def receive_early(self, events: Sequence[Event], is_busy: bool) -> bool:
        with self._lock:
            self._is_busy = is_busy
            bypass, now = self._bypass, time.perf_counter()
            if bypass is None or is_busy or not _are_deltas(events) or not bypass.take(events):
                self._bypass = None
                self._num_on_their_way += 1
                return False
            self._early.append((events, now, bypass))
            is_late = now - self._early[0][1] > _LATEST_S
        if is_late:
            with suppress(RuntimeError):  # the loop is closed: nobody asks any more
                self._loop.call_soon_threadsafe(self.catch_up)
        return True

    def receive(self, events: Sequence[Event]) -> None:
        self.catch_up()
        with self._lock:
            self._num_on_their_way -= 1
        self.num_open -= sum(isinstance(event, (Finished, Failed)) for event in events)
        first = self._first_choice
        if first:
            events = [replace(event, choice=event.choice + first) for event in events]
        self._pump.hear(events, time.perf_counter())

    def catch_up(self) -> None:
        """Let the pump hear of what was taken early."""
        with self._lock:
            early, self._early = self._early, []
        for events, at, bypass in early:
            self._pump.hear(events, at, taken_by=bypass)


def _are_deltas(events: Sequence[Event]) -> bool:
    return all(type(event) is Delta for event in events)
