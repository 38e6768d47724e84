"""The heart: one step after the other, for all sequences together.

In: commands from the mailbox. Out: events to the mailbox. Thread: engine, which alone touches the
model, the scheduler and the sequences. Next: `mailbox.py`, on the way out.

Whatever goes wrong, everybody hears of it: a bad row fails its choice, a failed model step the
choices of that step, and the death of this thread every choice there is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from headrace.engine.language import Tokenizer
from headrace.engine.mailbox import (
    Call,
    Cancel,
    Command,
    Forget,
    Inbox,
    Reader,
    Submission,
    Submit,
)
from headrace.engine.outbox import BeforePublish, Outbox
from headrace.engine.parking.parking import Parking, ParkingStats
from headrace.engine.past import Ended, Said
from headrace.engine.pins import TurnEnd
from headrace.engine.profile import StepProfile, Stopwatch
from headrace.engine.progress import Departures, Progress
from headrace.engine.request import Request
from headrace.engine.sampler import ChoiceSampler
from headrace.engine.scheduler import Plan, Scheduler
from headrace.engine.sequence import Sequence
from headrace.engine.text import TextStream
from headrace.engine.voice import Voice
from headrace.errors import EngineClosed, GenerationFailed, HeadraceError
from headrace.events import Event, Failed, Finished, FinishReason, Timings, Usage
from headrace.model.interface import Model, Move, Sampled, SampleRow, Span

_log = logging.getLogger(__name__)


_WARM_POSITIONS = 4096
_WARM_BANKS = 2
"""A virtual machine may take milliseconds for a page it has never used; so few at a time, because
somebody may come meanwhile."""

_PATIENCE = 100
"""Steps in a row without a plan, while there is work, that are taken for a fault."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """How busy an engine is."""

    num_pending_requests: int
    num_running: int
    num_waiting: int
    num_banks: int
    num_free_banks: int
    num_cached_banks: int
    num_held_banks: int
    num_pinned_banks: int
    """Cached or held, and kept for a conversation."""
    num_evicted_banks: int
    """Since the engine began: cached once, and given away for others."""
    parking: ParkingStats


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
        self._tokenizer = tokenizer
        self._inbox = inbox
        self._clock = clock
        self._parking = parking
        self._outbox = Outbox()
        self._watch = Stopwatch()
        self._departures = Departures()
        self._ids = count()
        self._voices: dict[int, Voice] = {}
        self._jobs: dict[Reader, list[Voice]] = {}
        """The choices of each stream that have not ended. Never an empty list between steps."""
        self._queued: set[Submission] = set()
        """Submissions for which no step has computed yet."""
        self._prefills: set[Voice] = set()
        """Those that give no answer and have not ended."""
        self.before_publish: BeforePublish | None = None
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
                    self._warm_up()
                    self._inbox.wait(self._parking.pause_s(self._clock()))
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
        if self._prefills:
            self._end_prefills()
        self._publish()

    def _keep_banks(self) -> None:
        """Let go what was kept for long, and move some banks to disk and back."""
        now, scheduler = self._clock(), self._scheduler
        scheduler.kv.pins.drop_ended(now)
        is_busy = scheduler.num_running > self._parking.num_loading
        for sequence in self._parking.step(scheduler, now, is_busy=is_busy):
            self._start(self._voices[sequence.id])

    def _warm_up(self) -> None:
        """Nobody waits now: have memory in place for the banks that will be used next."""
        kv, inbox = self._scheduler.kv, self._inbox
        wanted = min(kv.num_banks, kv.num_ever_used + _WARM_POSITIONS // kv.bank_size)
        self._num_warm = max(self._num_warm, kv.num_ever_used)
        while self._num_warm < wanted and not inbox.has_commands and not inbox.is_closed:
            self._model.touch(self._num_warm, _WARM_BANKS)
            self._num_warm += _WARM_BANKS

    @property
    def has_work(self) -> bool:
        has_banks = self._parking.is_due(self._clock())
        return has_banks or self._scheduler.has_work or self._inbox.has_commands

    def stats(self) -> EngineStats:
        """Any thread: how busy the engine is."""
        kv = self._scheduler.kv
        return EngineStats(
            num_pending_requests=self._inbox.num_pending,
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_banks=kv.num_banks,
            num_free_banks=kv.num_free,
            num_cached_banks=kv.num_cached,
            num_held_banks=kv.num_held,
            num_pinned_banks=kv.pins.num_banks,
            num_evicted_banks=kv.num_evicted,
            parking=self._parking.stats(),
        )

    def progress(self, submission: Submission) -> Progress:
        """Any thread: how far a submission is that has not ended."""
        # Copied in one go, which no step of the engine thread can fall into.
        queued, voices = tuple(self._queued), tuple(self._jobs.get(submission.reader, ()))
        is_queued = submission in queued or not voices
        ahead = [s for s in queued if s.submitted_at < submission.submitted_at] if is_queued else []
        wait_s = sum(len(one.prompt) for one in ahead) * self._inbox.token_s
        if is_queued:
            wait_s = max(wait_s, (len(ahead) + 1) * self._departures.pause_s)
        num_prompt_tokens = len(submission.prompt)
        computed = [voice.sequence.num_computed_tokens for voice in voices]
        return Progress(
            is_queued,
            len(ahead),
            wait_s,
            num_prompt_tokens,
            min(num_prompt_tokens, max(computed, default=0)),
        )

    def profile(self) -> StepProfile:
        """Any thread: where the time went so far."""
        return self._watch.read()

    def bury(self) -> None:
        """The end: take no more, tell everybody who still waits, close the model. Trusts nothing
        that may have broken."""
        self._inbox.close("the engine is closed")
        now = self._clock()
        for voice in self._voices.values():
            self._bury(voice, now)
        for command in self._inbox.drain():
            if isinstance(command, Submit):
                for choice in range(command.submission.request.n):
                    error = EngineClosed(self._inbox.closed_because)
                    self._refuse(command.submission, choice, error)
            elif isinstance(command, Forget):
                command.is_done.set_exception(EngineClosed(self._inbox.closed_because))
        self._voices.clear()
        self._jobs.clear()
        try:
            self._outbox.flush()
            self._parking.close()
        finally:
            self._model.close()

    def _bury(self, voice: Voice, now: float) -> None:
        """The terminal event of a choice, whose last words may fail; its reader is told then too,
        and so are all others."""
        error = EngineClosed(self._inbox.closed_because)
        try:
            words = voice.fail(error, now)
        except Exception:
            _log.exception("the last words of a choice were lost")
            self._refuse(voice.submission, voice.choice, error)
        else:
            self._post(voice.submission, *words)

    def _obey(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Submit(submission):
                    self._open(submission)
                case Cancel(submission):
                    self._cancel(submission.reader)
                case Forget():
                    self._forget_conversation(command)
                case Call(work):
                    work()

    def _forget_conversation(self, command: Forget) -> None:
        tenant, conversation = command.tenant, command.conversation
        for voice in self._voices.values():
            if voice.conversation == conversation and voice.sequence.tenant == tenant:
                voice.is_forgotten = True
        self._scheduler.kv.forget(tenant, conversation)
        self._parking.forget((tenant, conversation), command.is_done)

    def _open(self, submission: Submission) -> None:
        """Let each choice grow a sequence; one that cannot begin fails alone."""
        self._jobs[submission.reader] = []
        self._queued.add(submission)
        for voice in self._begin(submission):
            try:
                self._scheduler.add(voice.sequence)
            except Exception as error:
                self._post(submission, *voice.fail(_failure(error), self._clock()))
            else:
                self._jobs[submission.reader].append(voice)
                self._voices[voice.sequence.id] = voice
                if not voice.sequence.grows:
                    self._prefills.add(voice)
        if not self._jobs[submission.reader]:
            self._forget(submission)

    def _begin(self, submission: Submission) -> list[Voice]:
        """The voices that have something to compute, where they stopped if they spoke before."""
        voices: dict[int, Voice] = {}
        for choice in range(submission.request.n):
            try:
                voices[choice] = self._voice(submission, choice)
            except Exception as error:
                self._refuse(submission, choice, _failure(error))
        for past in submission.past or ():
            if past.choice in voices and self._repeat(voices[past.choice], past):
                del voices[past.choice]
        return list(voices.values())

    def _repeat(self, voice: Voice, past: Said | Ended) -> bool:
        """Let a voice say again what it said before; True where that was its end."""
        now = self._clock()
        try:
            event: Event | None = None
            for event in voice.repeat(past, now):
                self._post(voice.submission, event)
            return isinstance(event, (Finished, Failed))
        except Exception as error:
            self._post(voice.submission, *voice.fail(_not_again(error), now))
            return True

    def _voice(self, submission: Submission, choice: int) -> Voice:
        request = submission.request
        sequence = Sequence(
            next(self._ids),
            request.tenant,
            submission.prompt,
            max_num_tokens=submission.max_num_tokens,
        )
        sequence.shifts_in = request.conversation if request.shift else None
        vocab_size = self._model.spec.vocab_size
        grammar = None if request.grammar is None else request.grammar.start(vocab_size)
        settings = request.sampling(choice, submission.seed)
        return Voice(
            submission,
            choice,
            sequence,
            ChoiceSampler(self._model, settings, grammar, submission.prompt),
            TextStream(self._spelling(request), request.stops, num_given_bytes=len(request.begun)),
            frozenset() if request.ignore_eos else self._tokenizer.eog_ids,
        )

    def _spelling(self, request: Request) -> Callable[[int], bytes]:
        spell, visible = self._tokenizer.token_bytes, request.visible_tokens
        if not visible:
            return spell
        return lambda token: visible[token] if token in visible else spell(token)

    def _cancel(self, reader: Reader) -> None:
        """End all choices of a stream; those that have ended are left in peace."""
        for voice in list(self._jobs.get(reader, ())):
            self._finish(voice, "cancelled", self._clock())

    def _announce(self, plan: Plan) -> None:
        if plan.preempted:
            self._watch.count_preemptions(len(plan.preempted))
            for sequence in plan.preempted:
                self._parking.drop(sequence)
        for load in plan.loads:
            self._parking.load(*load)
        for sequence in plan.admitted:
            voice = self._voices[sequence.id]
            voice.admit(self._clock())
            self._dequeue(voice.submission)
            self._departures.note(self._clock(), len(self._queued))
            if not sequence.num_loading_banks:
                self._start(voice)

    def _start(self, voice: Voice) -> None:
        started = voice.start(self._clock())
        if started is not None:
            self._post(voice.submission, started)

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
            computed = (span.sequence for span in plan.spans)
            for sequence in dict.fromkeys([*plan.admitted, *computed]):
                failure = GenerationFailed(f"the model failed while it moved banks: {error}")
                self._fail(self._voices[sequence.id], failure)
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
            for planned in plan.spans:
                failure = GenerationFailed(f"the model failed while it computed this: {error}")
                self._fail(self._voices[planned.sequence.id], failure)
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
                voice = self._voices[sequence.id]
                try:
                    rows.append(voice.row(row))
                    voices.append(voice)
                except Exception as error:
                    self._fail(voice, _failure(error))
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
                self._fail(voice, _failure(error))
                continue
            if reason is not None:
                self._finish(voice, reason, now)
            elif (delta := voice.speak()) is not None:
                self._post(voice.submission, delta)
        self._watch.lap("text")

    def _end_prefills(self) -> None:
        """Banks were all that was wanted; some were found whole, and nothing was computed."""
        now = self._clock()
        for voice in [voice for voice in self._prefills if voice.is_prefilled]:
            self._finish(voice, "length", now)

    def _publish(self) -> None:
        if self.before_publish is not None:
            # A stream that cannot be kept as was promised fails: what it said, and then its end.
            for reader, error in self.before_publish(self._outbox.events).items():
                for voice in list(self._jobs.get(reader, ())):
                    self._fail(voice, error)
        for reader in self._outbox.flush():
            self._cancel(reader)
        self._watch.lap("publish")

    def _finish(self, voice: Voice, reason: FinishReason, now: float) -> None:
        self._end(voice, voice.finish(reason, now), voice.turn_end(reason, now))

    def _fail(self, voice: Voice, error: HeadraceError) -> None:
        self._end(voice, voice.fail(error, self._clock()), has_failed=True)

    def _end(
        self,
        voice: Voice,
        last_words: list[Event],
        turn: TurnEnd | None = None,
        *,
        has_failed: bool = False,
    ) -> None:
        """Everything that a choice holds is free or cached when this returns."""
        # Off the list first: should the rest fail, the burial has no second end for this choice.
        del self._voices[voice.sequence.id]
        self._prefills.discard(voice)
        leaf, tenant = voice.sequence.prefix, voice.sequence.tenant
        try:
            self._parking.drop(voice.sequence)
            self._scheduler.cancel(voice.sequence, turn, has_failed=has_failed)
            if voice.is_forgotten and turn is not None:
                self._scheduler.kv.forget(tenant, turn.conversation)
            elif turn is not None and turn.is_good and leaf is not None and leaf.realm == tenant:
                self._parking.turn_ended((tenant, turn.conversation), leaf)
            voices = self._jobs[voice.submission.reader]
            voices.remove(voice)
            if not voices:
                self._forget(voice.submission)
        finally:
            self._post(voice.submission, *last_words)

    def _refuse(self, submission: Submission, choice: int, error: HeadraceError) -> None:
        """The terminal event of a choice that never had a voice."""
        usage = Usage(len(submission.prompt), 0, 0)
        timings = Timings(self._clock() - submission.submitted_at, 0.0, 0.0)
        self._post(submission, Failed(choice, error, usage, timings))

    def _dequeue(self, submission: Submission) -> None:
        if submission in self._queued:
            self._queued.remove(submission)
            self._inbox.began(submission)

    def _forget(self, submission: Submission) -> None:
        self._dequeue(submission)
        del self._jobs[submission.reader]
        self._inbox.ended()

    def _post(self, submission: Submission, *events: Event) -> None:
        for event in events:
            self._outbox.post(submission.reader, event)


def _span(sequence: Sequence, position: int, num_tokens: int, num_logits: int) -> Span:
    tokens = sequence.tokens[position : position + num_tokens]
    return Span(tokens, position, sequence.banks, num_logits)


def _failure(error: Exception) -> HeadraceError:
    if isinstance(error, HeadraceError):
        return error
    _log.error("a choice failed", exc_info=error)
    return GenerationFailed(f"internal error: {error!r}")


def _not_again(error: Exception) -> HeadraceError:
    """Why an answer that was cut cannot go on."""
    reason = _failure(error).message
    return GenerationFailed(f"this answer cannot go on where it was interrupted: {reason}")
