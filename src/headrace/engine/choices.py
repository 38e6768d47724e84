"""All choices that have not ended, and how each of them ends: once, and leaving nothing behind.

In: voices, and what becomes of them. Out: events to the outbox; banks that are free or cached.
Thread: engine, but for `progress`. Next: `outbox.py`.

Whatever goes wrong, everybody hears of it: each choice has its one terminal event.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from headrace.engine.beginning import failure, refusal
from headrace.engine.mailbox import Forget, Inbox, Reader, Submission, Submit
from headrace.engine.outbox import BeforePublish, Outbox
from headrace.engine.parking.parking import Parking
from headrace.engine.pins import TurnEnd
from headrace.engine.progress import Departures, Progress
from headrace.engine.scheduler import Scheduler
from headrace.engine.sequence import Sequence
from headrace.engine.voice import Voice
from headrace.errors import EngineClosed, GenerationFailed, HeadraceError
from headrace.events import Event, FinishReason

_log = logging.getLogger(__name__)


class Choices:
    """Whose sequences are computed, and who is told of it."""

    def __init__(
        self, scheduler: Scheduler, parking: Parking, inbox: Inbox, clock: Callable[[], float]
    ) -> None:
        self._scheduler = scheduler
        self._parking = parking
        self._inbox = inbox
        self._clock = clock
        self._outbox = Outbox()
        self._departures = Departures()
        self._voices: dict[int, Voice] = {}
        self._jobs: dict[Reader, list[Voice]] = {}
        """The choices of each stream that have not ended. Never an empty list between steps."""
        self._queued: set[Submission] = set()
        """Submissions for which no step has computed yet."""
        self._prefills: set[Voice] = set()
        """Those that give no answer and have not ended."""
        self.before_publish: BeforePublish | None = None

    def __iter__(self) -> Iterator[Voice]:
        return iter(self._voices.values())

    def of(self, sequence: Sequence) -> Voice:
        """Who speaks for a sequence."""
        return self._voices[sequence.id]

    def open(self, submission: Submission, voices: Iterable[Voice], said: Iterable[Event]) -> None:
        """Post what was said at once, then let each voice grow its sequence; one that cannot begin
        fails alone."""
        jobs = self._jobs[submission.reader] = []
        self._queued.add(submission)
        self._post(submission, said)
        for voice in voices:
            try:
                self._scheduler.add(voice.sequence)
            except Exception as error:
                self._post(submission, voice.fail(failure(error), self._clock()))
            else:
                jobs.append(voice)
                self._voices[voice.sequence.id] = voice
                if not voice.sequence.grows:
                    self._prefills.add(voice)
        if not jobs:
            self._leave(submission)

    def admit(self, sequence: Sequence) -> None:
        """A step computes for it, or has its banks read from disk first."""
        voice, now = self.of(sequence), self._clock()
        voice.admit(now)
        self._dequeue(voice.submission)
        self._departures.note(now, len(self._queued))
        if not sequence.num_loading_banks:
            self.start(sequence)

    def start(self, sequence: Sequence) -> None:
        """All that it found in the cache is in its banks."""
        voice = self.of(sequence)
        started = voice.start(self._clock())
        if started is not None:
            self._post(voice.submission, [started])

    def say(self, voice: Voice) -> None:
        """What it can say now, if anything."""
        if (delta := voice.speak()) is not None:
            self._post(voice.submission, [delta])

    def publish(self) -> None:
        """Hand over what was said in this step. Streams that cannot be kept as was promised, and
        those whose readers are gone for ever, end."""
        if self.before_publish is not None:
            # One that cannot be kept fails: what it said, and then its end.
            for reader, error in self.before_publish(self._outbox.events).items():
                for voice in list(self._jobs.get(reader, ())):
                    self.fail(voice.sequence, error)
        for reader in self._outbox.flush():
            self.cancel(reader)

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

    def cancel(self, reader: Reader) -> None:
        """End all choices of a stream; those that have ended are left in peace."""
        for voice in list(self._jobs.get(reader, ())):
            self.finish(voice, "cancelled", self._clock())

    def forget(self, command: Forget) -> None:
        """Keep nothing of a conversation, nor of what still runs of it when it ends."""
        tenant, conversation = command.tenant, command.conversation
        for voice in self:
            if voice.conversation == conversation and voice.sequence.tenant == tenant:
                voice.is_forgotten = True
        self._scheduler.kv.forget(tenant, conversation)
        self._parking.forget((tenant, conversation), command.is_done)

    def end_prefills(self) -> None:
        """Banks were all that was wanted; some were found whole, and nothing was computed."""
        if not self._prefills:
            return
        now = self._clock()
        for voice in [voice for voice in self._prefills if voice.is_prefilled]:
            self.finish(voice, "length", now)

    def finish(self, voice: Voice, reason: FinishReason, now: float) -> None:
        self._end(voice, voice.finish(reason, now), voice.turn_end(reason, now))

    def fail(self, sequence: Sequence, error: HeadraceError) -> None:
        voice = self.of(sequence)
        self._end(voice, voice.fail(error, self._clock()), has_failed=True)

    def fail_all(self, sequences: Iterable[Sequence], reason: str) -> None:
        """Each of them once, though it may be named twice."""
        for sequence in dict.fromkeys(sequences):
            self.fail(sequence, GenerationFailed(reason))

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
                self._leave(voice.submission)
        finally:
            self._post(voice.submission, last_words)

    def bury(self) -> None:
        """The end of the engine: tell everybody who still waits. Trusts nothing that may have
        broken."""
        now = self._clock()
        for voice in self:
            self._post(voice.submission, _last_words(voice, self._closed(), now))
        for command in self._inbox.drain():
            if isinstance(command, Submit):
                submission = command.submission
                for choice in range(submission.request.n):
                    self._post(submission, [refusal(submission, choice, self._closed(), now)])
            elif isinstance(command, Forget):
                command.is_done.set_exception(self._closed())
        self._voices.clear()
        self._jobs.clear()
        self._outbox.flush()

    def _closed(self) -> EngineClosed:
        return EngineClosed(self._inbox.closed_because)

    def _dequeue(self, submission: Submission) -> None:
        if submission in self._queued:
            self._queued.remove(submission)
            self._inbox.began(submission)

    def _leave(self, submission: Submission) -> None:
        """Its last choice has ended."""
        self._dequeue(submission)
        del self._jobs[submission.reader]
        self._inbox.ended()

    def _post(self, submission: Submission, events: Iterable[Event]) -> None:
        for event in events:
            self._outbox.post(submission.reader, event)


def _last_words(voice: Voice, error: HeadraceError, now: float) -> list[Event]:
    """Of a choice that may be broken: whatever it can say, and its terminal event in any case."""
    try:
        return voice.fail(error, now)
    except Exception:
        _log.exception("the last words of a choice were lost")
        return [refusal(voice.submission, voice.choice, error, now)]
