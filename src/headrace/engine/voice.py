"""What one choice says: its tokens become events.

In: sampled tokens. Out: `Started`, `Delta`, `Finished` or `Failed`. Thread: engine.
Next: `mailbox.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

from headrace.engine.mailbox import Submission
from headrace.engine.past import Ended, Said
from headrace.engine.pins import TurnEnd
from headrace.engine.sampler import ChoiceSampler
from headrace.engine.sequence import Sequence
from headrace.engine.text import TextStream
from headrace.errors import GenerationFailed, HeadraceError
from headrace.events import (
    Delta,
    Event,
    Failed,
    Finished,
    FinishReason,
    Started,
    Timings,
    TokenLogprob,
    Usage,
)
from headrace.model.interface import Sampled, SampleRow


class Voice:
    """One choice on the engine thread, from its submission to its terminal event.

    Times are moments on the engine's clock, in seconds.
    """

    __slots__ = (
        "_end_ids",
        "_first_token_at",
        "_has_started",
        "_logprobs",
        "_num_given_said",
        "_num_said",
        "_sampler",
        "_started_at",
        "_text",
        "_unsaid",
        "_unsaid_text",
        "choice",
        "conversation",
        "is_forgotten",
        "sequence",
        "submission",
    )

    def __init__(
        self,
        submission: Submission,
        choice: int,
        sequence: Sequence,
        sampler: ChoiceSampler,
        text: TextStream,
        end_ids: Set[int],
    ) -> None:
        """`end_ids` are the tokens that end this choice; none where it ignores them."""
        self.submission = submission
        self.choice = choice
        # Only one answer can be what the conversation goes on from; nobody knows which.
        self.conversation = submission.request.conversation if choice == 0 else None
        """Which one keeps this voice's banks when it ends."""
        self.is_forgotten = False
        """That one has been forgotten meanwhile, and its banks are to be, too."""
        self.sequence = sequence
        self._sampler = sampler
        self._text = text
        self._end_ids = end_ids
        self._num_said = 0
        self._num_given_said = 0
        self._unsaid: list[int] = []
        self._unsaid_text = ""
        self._logprobs: list[TokenLogprob] | None = [] if submission.request.logprobs else None
        self._started_at: float | None = None
        self._has_started = False
        self._first_token_at: float | None = None

    def admit(self, now: float) -> None:
        """The sequence has its place. Its prompt's time begins, though banks may have to be read
        before it is computed."""
        if self._started_at is None:
            self._started_at = now

    def start(self, now: float) -> Started | None:
        """The sequence is about to be computed; None when it goes on after a preemption."""
        self.admit(now)
        if self._has_started:
            return None
        self._has_started = True
        return Started(
            self.submission.request_id,
            self.choice,
            self.submission.seed,
            self.sequence.num_prompt_tokens,
            self.sequence.num_cached_tokens,
        )

    @property
    def is_prefilled(self) -> bool:
        """It was begun, and nothing is left to compute: where no answer is wanted, its end."""
        return self._started_at is not None and self.sequence.has_caught_up

    def row(self, row: int) -> SampleRow:
        """What to ask of logits row `row`, the one of the sequence's last token."""
        return self._sampler.row(row, len(self.sequence.tokens))

    def hear(self, sampled: Sampled, now: float) -> FinishReason | None:
        """Take in the next token; returns why it was the last one, if it was. Raises
        `HeadraceError` where there is none."""
        token = sampled.token
        if token is None:
            raise GenerationFailed(f"token {self._num_said + len(self._unsaid)}: {sampled.error}")
        if self._first_token_at is None:
            self._first_token_at = now
        self.sequence.append(token)
        self._unsaid.append(token)
        if self._logprobs is not None:
            self._logprobs.append(TokenLogprob(token, sampled.logprob, tuple(sampled.top)))
        self._sampler.accept(token)
        if token in self._end_ids:
            return "stop"
        self._unsaid_text += self._text.push(token)
        if self._text.stopped is not None or self._sampler.is_complete:
            return "stop"
        if len(self.sequence.tokens) >= self.sequence.max_num_tokens or self._has_said_all():
            return "length"
        return None

    def _has_said_all(self) -> bool:
        """As much as was asked for; what says again what was given does not count."""
        max_tokens = self.submission.request.max_tokens
        num_said = self.sequence.num_generated_tokens - self._text.num_given_tokens
        return max_tokens is not None and num_said >= max_tokens

    def repeat(self, past: Said | Ended, now: float) -> Iterator[Event]:
        """Say again what was said before the process died: the same events in the same cuts, with
        a terminal event where that was the end. Raises `HeadraceError` where it cannot be."""
        if isinstance(past, Said):
            yield from self._say_again(past, now)
        elif isinstance(past.how, HeadraceError):
            yield from self.fail(past.how, now)
        else:
            yield from self.finish(past.how, now)

    def _say_again(self, said: Said, now: float) -> Iterator[Event]:
        started = self.start(now)
        if started is not None:
            yield started
        for sampled in _sampled_before(said, with_logprobs=self._logprobs is not None):
            reason = self.hear(sampled, now)
            if reason is not None:
                yield from self.finish(reason, now)
                return
            delta = self.speak()
            if delta is not None:
                yield delta

    def speak(self) -> Delta | None:
        """What can be said now: text that is sure, with all tokens since the last time."""
        return self._delta() if self._unsaid_text else None

    def finish(self, reason: FinishReason, now: float) -> list[Event]:
        """The last words: what was held back so far, then the end."""
        words = self._last_words()
        timings = self._timings(now)
        words.append(Finished(self.choice, reason, self._usage(), timings, self._text.stopped))
        return words

    def fail(self, error: HeadraceError, now: float) -> list[Event]:
        """The last words, and what went wrong."""
        words = self._last_words()
        words.append(Failed(self.choice, error, self._usage(), self._timings(now)))
        return words

    def turn_end(self, reason: FinishReason, now: float) -> TurnEnd | None:
        """What its conversation is told when it ends."""
        if self.conversation is None:
            return None
        return TurnEnd(self.conversation, now, is_good=reason != "cancelled")

    def _last_words(self) -> list[Event]:
        self._unsaid_text += self._text.finish()
        return [self._delta()] if self._unsaid or self._unsaid_text else []

    def _delta(self) -> Delta:
        tokens, text, start = tuple(self._unsaid), self._unsaid_text, self._num_said
        self._num_said += len(tokens)
        self._unsaid.clear()
        self._unsaid_text = ""
        if self._logprobs is None:
            return Delta(self.choice, start, tokens, text)
        logprobs = tuple(self._logprobs)
        self._logprobs.clear()
        num_given = self._text.num_given_tokens - self._num_given_said
        self._num_given_said += num_given
        return Delta(self.choice, start, tokens, text, logprobs, num_given=num_given)

    def _usage(self) -> Usage:
        sequence, num_given = self.sequence, self._text.num_given_tokens
        return Usage(
            sequence.num_prompt_tokens + num_given,
            sequence.num_cached_tokens,
            sequence.num_generated_tokens - num_given,
            num_loaded_tokens=sequence.num_loaded_tokens,
            num_shifted_tokens=sequence.num_shifted_tokens,
        )

    def _timings(self, now: float) -> Timings:
        submitted_at = self.submission.submitted_at
        started_at = now if self._started_at is None else self._started_at
        first_at = now if self._first_token_at is None else self._first_token_at
        return Timings(started_at - submitted_at, first_at - started_at, now - first_at)


def _sampled_before(said: Said, *, with_logprobs: bool) -> Iterator[Sampled]:
    """The tokens as they came from the model."""
    if not with_logprobs:
        for token in said.token_ids:
            yield Sampled(token, 0.0, [], None)
        return
    if len(said.logprobs) != len(said.token_ids):
        raise GenerationFailed(
            f"{len(said.token_ids)} tokens were kept and {len(said.logprobs)} log probabilities; "
            "an answer with `logprobs` needs one for each"
        )
    for token, kept in zip(said.token_ids, said.logprobs, strict=True):
        yield Sampled(token, kept.logprob, list(kept.top), None)
