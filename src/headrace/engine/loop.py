"""The heart: one step after the other, for all sequences together.

In: commands from the mailbox. Out: events to the mailbox. Thread: engine, which alone touches the
model, the scheduler and the sequences. Next: `mailbox.py`, on the way out.

Whatever goes wrong, everybody hears of it: a bad row fails its choice, a failed model step the
choices of that step, and the death of this thread every choice there is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from headrace.engine.beginning import Beginnings, failure
from headrace.engine.choices import Choices
from headrace.engine.language import Tokenizer
from headrace.engine.mailbox import (
    Call,
    Cancel,
    Command,
    Forget,
    Inbox,
    Submission,
    Submit,
)
from headrace.engine.outbox import BeforePublish
from headrace.engine.parking.parking import Parking
from headrace.engine.profile import StepProfile, Stopwatch
from headrace.engine.progress import Progress
from headrace.engine.scheduler import Plan, Scheduler
from headrace.engine.sequence import Sequence
from headrace.engine.stats import EngineStats
from headrace.engine.voice import Voice
from headrace.model.interface import Model, Move, Sampled, SampleRow, Span

_log = logging.getLogger(__name__)


_WARM_POSITIONS = 4096
_WARM_BANKS = 2
"""A virtual machine may take milliseconds for a page it has never used; so few at a time, because
somebody may come meanwhile."""
_CALM_S = 0.03
"""Whoever asks again at once does not wait for such a page, while there are enough."""

_PATIENCE = 100
"""Steps in a row without a plan, while there is work, that are taken for a fault."""


class EngineLoop:
    """Drains, plans, computes, samples, speaks, publishes."""

    def __init__(
        self,
        model: Model,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        inbox: Inbox,
        clock: Callable[[], float],
        parking: Parking,
    ) -> None:
        """`clock` tells seconds; submissions carry moments of the same clock."""
        self._model = model
        self._scheduler = scheduler
        self._inbox = inbox
        self._clock = clock
        self._parking = parking
        self._beginnings = Beginnings(model, tokenizer)
        self._choices = Choices(scheduler, parking, inbox, clock)
        self._watch = Stopwatch()
        self._num_still = 0
        self._num_warm = 0
        """Banks whose memory is in place."""
        self._waits_for_banks = False
        """All that is left to do needs banks that are being read from disk."""

    def run(self) -> None:
        """Step until the inbox is closed; sleep while there is nothing to do."""
        try:
            while True:
                if not self._scheduler.has_work:
                    self._rest()
                elif self._waits_for_banks:
                    self._inbox.wait()
                if self._inbox.is_closed:
                    break
                self.step()
        except BaseException as error:
            _log.exception("the engine thread stopped")
            self._inbox.close(f"the engine stopped after an internal error: {error!r}")
        finally:
            self.bury()

    def step(self) -> None:
        """One step, for all sequences together."""
        self._watch.begin()
        self._waits_for_banks = False
        self._obey(self._inbox.drain())
        self._keep_banks()
        plan = self._scheduler.plan()
        self._announce(plan)
        self._watch.lap("plan")
        if self._move(plan) and self._compute(plan):
            rows, voices = self._rows(plan)
            self._speak(voices, self._sample(rows, voices))
        self._choices.end_prefills()
        self._choices.publish()
        self._watch.lap("publish")

    def _keep_banks(self) -> None:
        """Let go what was kept for long, and move some banks to disk and back."""
        now, scheduler = self._clock(), self._scheduler
        scheduler.kv.pins.drop_ended(now)
        is_busy = scheduler.num_running > self._parking.num_loading
        for sequence in self._parking.step(scheduler, now, is_busy=is_busy):
            self._choices.start(sequence)

    def _rest(self) -> None:
        """Nobody waits now: have memory in place for the banks that will be used next, and sleep
        until there is something to do."""
        kv, inbox = self._scheduler.kv, self._inbox
        enough = _WARM_POSITIONS // kv.bank_size
        self._num_warm = max(self._num_warm, kv.num_ever_used)
        pause_s = self._parking.pause_s(self._clock())
        if self._num_warm - kv.num_ever_used >= enough // 8:
            inbox.wait(_CALM_S if pause_s is None else min(_CALM_S, pause_s))
        wanted = min(kv.num_banks, kv.num_ever_used + enough)
        while self._num_warm < wanted and not inbox.has_commands and not inbox.is_closed:
            self._model.touch(self._num_warm, _WARM_BANKS)
            self._num_warm += _WARM_BANKS
        inbox.wait(self._parking.pause_s(self._clock()))

    @property
    def has_work(self) -> bool:
        has_banks = self._parking.is_due(self._clock())
        return has_banks or self._scheduler.has_work or self._inbox.has_commands

    def record_with(self, before_publish: BeforePublish) -> None:
        """Before the first request: let it keep every step's events before anybody hears them."""
        self._choices.before_publish = before_publish

    def stats(self) -> EngineStats:
        """Any thread: how busy the engine is."""
        return EngineStats.of(self._inbox, self._scheduler, self._parking)

    def progress(self, submission: Submission) -> Progress:
        """Any thread: how far a submission is that has not ended."""
        return self._choices.progress(submission)

    def profile(self) -> StepProfile:
        """Any thread: where the time went so far."""
        return self._watch.read()

    def bury(self) -> None:
        """The end: take no more, tell everybody who still waits, close the model. Trusts nothing
        that may have broken."""
        self._inbox.close("the engine is closed")
        try:
            self._choices.bury()
            self._parking.close()
        finally:
            self._model.close()

    def _obey(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Submit(submission):
                    begun = self._beginnings.begin(submission, self._clock())
                    self._choices.open(submission, *begun)
                case Cancel(submission):
                    self._choices.cancel(submission.reader)
                case Forget():
                    self._choices.forget(command)
                case Call(work):
                    work()

    def _announce(self, plan: Plan) -> None:
        if plan.preempted:
            self._watch.count_preemptions(len(plan.preempted))
            for sequence in plan.preempted:
                self._parking.drop(sequence)
        for load in plan.loads:
            self._parking.load(*load)
        for sequence in plan.admitted:
            self._choices.admit(sequence)

    def _move(self, plan: Plan) -> bool:
        """Bring what conversations keep to its new positions; False where that failed, and with it
        the whole step."""
        if not plan.moves:
            return True
        try:
            self._model.move([Move(*move) for move in plan.moves])
        except Exception as error:
            _log.warning("the model failed to move banks", exc_info=True)
            # Those admitted just now may count what was to be moved as computed.
            reason = f"the model failed while it moved banks: {error}"
            self._choices.fail_all([*plan.admitted, *_sequences(plan)], reason)
            return False
        self._watch.lap("model")
        return True

    def _compute(self, plan: Plan) -> bool:
        """Run the model; False when there is nothing to sample from."""
        if not plan.spans:
            self._notice_standstill(plan)
            return False
        self._num_still = 0
        try:
            self._model.step([_span(*planned) for planned in plan.spans])
        except Exception as error:
            _log.warning("the model failed in a step", exc_info=True)
            self._choices.fail_all(
                _sequences(plan), f"the model failed while it computed this: {error}"
            )
            return False
        cost = self._scheduler.cost
        cost.observe(plan.spans, self._watch.lap("model"))
        self._inbox.token_s = cost.token_s
        self._scheduler.complete(plan)
        return True

    def _notice_standstill(self, plan: Plan) -> None:
        """Work that no plan ever takes up would let its readers wait for ever."""
        is_loading = self._parking.num_loading > 0
        self._waits_for_banks = is_loading and not self._parking.has_arrived
        has_gone_on = plan.preempted or plan.admitted or is_loading
        is_still = self._scheduler.has_work and not has_gone_on
        self._num_still = self._num_still + 1 if is_still else 0
        if self._num_still > _PATIENCE:
            raise RuntimeError("the scheduler has work and plans none of it")

    def _rows(self, plan: Plan) -> tuple[list[SampleRow], list[Voice]]:
        """The logits rows to sample, and whose they are."""
        rows: list[SampleRow] = []
        voices: list[Voice] = []
        row = -1
        for sequence, _, _, num_logits in plan.spans:
            if num_logits:
                row += num_logits
                voice = self._choices.of(sequence)
                try:
                    rows.append(voice.row(row))
                    voices.append(voice)
                except Exception as error:
                    self._choices.fail(sequence, failure(error))
        self._watch.count(plan.num_tokens, len(rows))
        self._watch.lap("rows")
        return rows, voices

    def _sample(self, rows: list[SampleRow], voices: list[Voice]) -> list[Sampled]:
        try:
            return self._model.sample(rows) if rows else []
        except Exception as error:
            _log.warning("the model failed to sample", exc_info=True)
            reason = f"the model failed to sample: {error}"
            return [Sampled(None, 0.0, [], reason) for _ in voices]
        finally:
            self._watch.lap("sample")

    def _speak(self, voices: list[Voice], outcomes: list[Sampled]) -> None:
        """Let each voice hear its token and say what it can."""
        now = self._clock()
        for voice, sampled in zip(voices, outcomes, strict=True):
            try:
                reason = voice.hear(sampled, now)
            except Exception as error:
                self._choices.fail(voice.sequence, failure(error))
                continue
            if reason is not None:
                self._choices.finish(voice, reason, now)
            else:
                self._choices.say(voice)
        self._watch.lap("text")


def _span(sequence: Sequence, position: int, num_tokens: int, num_logits: int) -> Span:
    tokens = sequence.tokens[position : position + num_tokens]
    return Span(tokens, position, sequence.banks, num_logits)


def _sequences(plan: Plan) -> list[Sequence]:
    """Whose tokens a step computes."""
    return [span.sequence for span in plan.spans]
