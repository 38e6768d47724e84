"""A submission becomes voices: one for each choice, silent, or where it stopped when it died.

In: a submission. Out: voices that have something to compute, and what is said at once.
Thread: engine. Next: `choices.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import count

from headrace.engine.language import Tokenizer
from headrace.engine.mailbox import Submission
from headrace.engine.past import Ended, Said
from headrace.engine.request import Request
from headrace.engine.sampler import ChoiceSampler
from headrace.engine.sequence import Sequence
from headrace.engine.text import TextStream
from headrace.engine.voice import Voice
from headrace.errors import GenerationFailed, HeadraceError
from headrace.events import Event, Failed, Finished, Timings, Usage
from headrace.model.interface import Model

_log = logging.getLogger(__name__)


class Beginnings:
    """Makes voices. One that cannot be made is refused alone."""

    def __init__(self, model: Model, tokenizer: Tokenizer) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._ids = count()

    def begin(self, submission: Submission, now: float) -> tuple[list[Voice], list[Event]]:
        """The voices that have something to compute, and what is said before they do: refusals,
        and what those that spoke before have said."""
        voices: dict[int, Voice] = {}
        said: list[Event] = []
        for choice in range(submission.request.n):
            try:
                voices[choice] = self._voice(submission, choice)
            except Exception as error:
                said.append(refusal(submission, choice, failure(error), now))
        for past in submission.past or ():
            if past.choice in voices:
                again = list(_repeated(voices[past.choice], past, now))
                said += again
                if again and isinstance(again[-1], (Finished, Failed)):
                    del voices[past.choice]
        return list(voices.values()), said

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


def _repeated(voice: Voice, past: Said | Ended, now: float) -> Iterator[Event]:
    """What a voice said before, and its end where that was it, or where it cannot say it again."""
    try:
        yield from voice.repeat(past, now)
    except Exception as error:
        yield from voice.fail(_not_again(error), now)


def refusal(submission: Submission, choice: int, error: HeadraceError, now: float) -> Failed:
    """The terminal event of a choice that never had a voice, or has lost it."""
    usage = Usage(len(submission.prompt), 0, 0)
    timings = Timings(now - submission.submitted_at, 0.0, 0.0)
    return Failed(choice, error, usage, timings)


def failure(error: Exception) -> HeadraceError:
    """What a choice is told of whatever went wrong with it."""
    if isinstance(error, HeadraceError):
        return error
    _log.error("a choice failed", exc_info=error)
    return GenerationFailed(f"internal error: {error!r}")


def _not_again(error: Exception) -> HeadraceError:
    """Why an answer that was cut cannot go on."""
    reason = failure(error).message
    return GenerationFailed(f"this answer cannot go on where it was interrupted: {reason}")
