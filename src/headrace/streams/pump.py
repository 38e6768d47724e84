"""From the engine's events to the log: read what they mean, note when they came, see them end.

In: events from the mailbox. Out: events for the log. Thread: the event loop. Next: `log.py`.

A pump is the engine's reader of one generation, without a task of its own: events are in the log
in the same turn of the loop that brought them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
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
    ToolCall,
    Usage,
)
from headrace.streams.ear import Bypass, Ear, Unread, are_deltas
from headrace.streams.journal import is_interruption
from headrace.streams.log import StreamLog
from headrace.streams.patience import Patience, Watchdog
from headrace.streams.tally import Tally

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


class Record(Protocol):
    """One generation's place on disk: what is said to its readers is kept there first."""

    def attach(self, reader: Reader) -> None:
        """What the engine says to `reader` is kept."""

    def ended(self, failures: Sequence[Failed]) -> None:
        """Choices end that the engine has not ended. Returns when that is kept."""

    def refused(self) -> None:
        """The engine did not take it; there is nothing to keep."""


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
        said_before: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        """`parser` makes the reader of a choice's text, None where text is text. `on_end` is called
        once, when all choices have ended. With `record` the generation survives this process.
        `age_s`: how long ago it was asked for, and `said_before` how many tokens each choice had
        said, where that was in another one. Those are said again, but not timed."""
        self.log = StreamLog(num_choices)
        self.tally = Tally(num_choices)
        self.seed = 0
        self._engine: Engine | None = None
        self._parsers = [parser(choice) for choice in range(num_choices)]
        self._when_over: list[Callable[[], None]] = [lambda: on_end(self)]
        self._tickets: list[Ticket[Ear]] = []
        self._num_choices_of: list[int] = []
        """Of each prompt."""
        self._bypass: Bypass | None = None
        self._record = record
        self._said_before = said_before
        self._is_interrupted = False
        self._watchdog = Watchdog(patience, self._catch_up, self._run_out, age_s=age_s)

    def submit(self, engine: Engine, prepared: Sequence[Prepared]) -> None:
        """Ask the engine. Raises what refuses a prompt, and then leaves nothing running."""
        first = 0
        self._engine = engine
        try:
            for one in prepared:
                ear = Ear(self, first, one.request.n)
                if self._record is not None:
                    self._record.attach(ear)
                self._tickets.append(engine.submit(one, ear))
                self._num_choices_of.append(one.request.n)
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
        for num_choices in self._num_choices_of:
            end = first + num_choices
            prompts.append(max(usages[first:end], key=_num_computed))
            first = end
        return Usage(
            sum(usage.num_prompt_tokens for usage in prompts),
            sum(usage.num_cached_tokens for usage in prompts),
            sum(usage.num_completion_tokens for usage in usages),
            sum(usage.num_reasoning_tokens for usage in usages),
            sum(usage.num_loaded_tokens for usage in prompts),
            sum(usage.num_shifted_tokens for usage in prompts),
        )

    def progress(self) -> Progress | None:
        """How far the first prompt is; None once there is a token, or an end."""
        if self._engine is None or self.tally.first_token_at is not None or self.log.is_over:
            return None
        return self._engine.progress(self._tickets[0].submission)

    def open_bypass(self, bypass: Bypass) -> bool:
        """Let deltas go to `bypass` as they come, for a reader that has read the log up to its
        `position`. False where there is more to read, or no more will come, or another bypass is
        open."""
        self._catch_up()
        has_read_all = bypass.position == len(self.log)
        if self._bypass is not None or not has_read_all or self.log.is_over:
            return False
        self._bypass = bypass
        if self._is_plain:
            self._tickets[0].reader.open_bypass(bypass)
        return True

    def close_bypass(self, bypass: Bypass) -> None:
        """When this returns, `bypass` is not running and will not be called."""
        if self._bypass is bypass:
            self._bypass = None
            if self._is_plain:
                self._tickets[0].reader.close_bypass()

    async def ended(self) -> None:
        """Returns when all choices have ended. Nobody else may read the log meanwhile: it hears of
        tokens late, because nobody need be woken for them."""
        self.open_bypass(Unread(len(self.log)))
        await self.log.ended()

    @property
    def _is_plain(self) -> bool:
        """One choice, whose text means what it says: there is nothing to read in its deltas."""
        return len(self._parsers) == 1 and self._parsers[0] is None

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
            # What was said last may be another choice's end: a parser may hold all of this back.
            last = said[-1] if said else None
            if isinstance(last, (Finished, Failed)) and last.choice == event.choice:
                over.add(event.choice)
        self._say(said, taken_by)

    def _read(self, event: Event, now: float, said: list[Event]) -> None:
        """Add what `event` means to `said`."""
        choice = event.choice
        parser = self._parsers[choice]
        match event:
            case Delta():
                if self._said_before and event.start < self._said_before.get(choice, 0):
                    self.tally.heard_again(event)
                else:
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

    def _say(self, events: list[Event], taken_by: Bypass | None = None) -> None:
        if not events:
            return
        ends = self.log.extend(events)
        self._pass_by(events, taken_by)
        for end in ends:
            self._watchdog.ended(end.choice)
            self.tally.ended(end)
        if ends and self.log.is_over:
            self._watchdog.stop()
            self.cancel()
            when_over = self._when_over
            self._let_go()
            for hear_of_it in when_over:
                try:
                    hear_of_it()
                except Exception:  # others must hear of it all the same
                    _log.exception("the end of a generation was not taken in")

    def _let_go(self) -> None:
        """Of all that only a running generation needs. It may be kept for long, and the collector
        of garbage stops the process for as long as there is much to look through."""
        self._engine = self._record = None
        self._tickets, self._when_over = [], []
        self._parsers = [None] * len(self._parsers)

    def _pass_by(self, events: list[Event], taken_by: Bypass | None) -> None:
        """Give what the log has now to the bypass, unless it was first; what it does not take, its
        reader must read."""
        bypass = taken_by or self._bypass
        if bypass is None:
            return
        if taken_by is not None or (are_deltas(events) and bypass.take(events, is_early=False)):
            bypass.position = len(self.log)
        else:
            self.close_bypass(bypass)
            bypass.closed()

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


def _num_computed(usage: Usage) -> int:
    return usage.num_prompt_tokens - usage.num_cached_tokens
