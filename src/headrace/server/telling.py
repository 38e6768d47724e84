"""How one answer is told: by which endpoint's format, under which names.

In: events. Out: an encoder for each reader, or the whole body. Next: `sse.py`, `streams.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from headrace.events import Choice
from headrace.wire.answer_parts import Spelling
from headrace.wire.ask import Ask, Stamp
from headrace.wire.numbered import Encoder


class Form(Protocol):
    """One endpoint's way to be asked and to answer: made from a body."""

    @property
    def asks(self) -> Sequence[Ask]: ...

    def new_id(self) -> str: ...

    def stream(self, stamp: Stamp, seed: int, spelling: Spelling | None) -> Encoder: ...

    def whole(
        self, stamp: Stamp, seed: int, choices: Sequence[Choice], spelling: Spelling | None
    ) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Telling:
    """One answer's form and names: the same for everybody who reads it."""

    form: Form
    stamp: Stamp
    seed: int
    spelling: Spelling | None
    """Where log probabilities were asked for."""
    is_streamed: bool
    conversation_id: str | None = None
    """Where the conversation is kept under an id."""

    def encoder(self) -> Encoder:
        """A new reader's."""
        return self.form.stream(self.stamp, self.seed, self.spelling)

    def whole(self, choices: Sequence[Choice]) -> bytes:
        return self.form.whole(self.stamp, self.seed, choices, self.spelling)
