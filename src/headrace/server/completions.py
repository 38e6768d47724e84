"""`POST /completions`: raw prompts, one or several, gone on from.

In: a JSON object. Out: a `Form`. Next: `respond.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.events import Choice, Delta, Event, Started
from headrace.wire.answer_parts import Spelling
from headrace.wire.ask import JSON, Ask, Stamp
from headrace.wire.body import BodyLimits
from headrace.wire.completion_answer import CompletionStream, completion_answer
from headrace.wire.completion_request import parse_completion
from headrace.wire.ids import completion_id
from headrace.wire.numbered import Encoder


class CompletionForm:
    """Prompts in, text out. With `echo` each text begins with its prompt's."""

    def __init__(self, body: Mapping[str, JSON], limits: BodyLimits, strict: bool) -> None:
        self._asked = parse_completion(body, limits, strict=strict)

    @property
    def asks(self) -> Sequence[Ask]:
        return self._asked.asks

    def new_id(self) -> str:
        return completion_id()

    def stream(self, stamp: Stamp, seed: int, spelling: Spelling | None) -> Encoder:
        first = self._asked.first
        encoder = CompletionStream(
            stamp,
            n=first.n,
            num_prompts=len(self.asks),
            include_usage=first.include_usage,
            spelling=spelling,
        )
        return _Echoing(encoder, self._echoes()) if self._asked.echo else encoder

    def whole(
        self, stamp: Stamp, seed: int, choices: Sequence[Choice], spelling: Spelling | None
    ) -> bytes:
        n = self._asked.first.n
        echoes = self._echoes() if self._asked.echo else ()
        prompts = [choices[i : i + n] for i in range(0, len(choices), n)]
        return completion_answer(stamp, prompts, seed=seed, spelling=spelling, echoes=echoes)

    def _echoes(self) -> list[str]:
        """What each choice repeats. Prompts given as tokens were refused together with `echo`."""
        return [ask.prompt or "" for ask in self.asks for _ in range(ask.n)]


class _Echoing:
    """Lets each choice say its prompt first."""

    def __init__(self, encoder: CompletionStream, echoes: Sequence[str]) -> None:
        self._encoder = encoder
        self._echoes = echoes

    @property
    def is_ended(self) -> bool:
        return self._encoder.is_ended

    def encode(self, event: Event) -> bytes:
        said = self._encoder.encode(event)
        if isinstance(event, Started):
            echo = Delta(event.choice, 0, (), self._echoes[event.choice])
            return said + self._encoder.encode(echo)
        return said
