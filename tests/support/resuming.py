"""Generations that are cut and go on elsewhere, and what of their events must be the same then."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

from headrace.engine.engine import Engine, Prepared
from headrace.engine.grammar import GrammarState
from headrace.engine.past import Ended, Past, Said
from headrace.errors import GenerationFailed
from headrace.events import Delta, Event, Failed, Finished, Started, Timings

_NO_TIME = Timings(0.0, 0.0, 0.0)


class Listener:
    """An engine's reader that keeps every event as it was said, unmerged."""

    def __init__(self, num_choices: int = 1) -> None:
        self.events: list[Event] = []
        self._num_open = num_choices
        self._over = threading.Event()

    loop = None

    def receive_early(self, events: Sequence[Event]) -> bool:
        return False

    def catch_up(self) -> None:
        """Nothing is taken early."""

    def receive(self, events: Sequence[Event]) -> None:
        self.events.extend(events)
        self._num_open -= sum(isinstance(event, (Finished, Failed)) for event in events)
        if self._num_open <= 0:
            self._over.set()

    def wait(self) -> list[Event]:
        assert self._over.wait(60), "the generation did not end"
        return self.events


def listen(engine: Engine, prepared: Prepared) -> Listener:
    listener = Listener(prepared.request.n)
    engine.submit(prepared, listener)
    return listener


def again(engine: Engine, prepared: Prepared, past: Past) -> Prepared:
    """What `prepared` was, for another engine to go on with."""
    before = replace(
        prepared.request,
        prompt=None,
        messages=None,
        token_ids=list(prepared.prompt),
        seed=prepared.seed,
    )
    return engine.prepare_again(before, past, max_num_tokens=prepared.max_num_tokens)


def past_in(events: Sequence[Event]) -> Past:
    """What a journal keeps of `events`."""
    past: list[Said | Ended] = []
    for event in events:
        match event:
            case Started(choice=choice):
                past.append(Said(choice, ()))
            case Delta(choice=choice):
                past.append(Said(choice, event.token_ids, event.logprobs))
            case Finished(choice=choice, reason=reason):
                past.append(Ended(choice, reason))
            case Failed(choice=choice, error=error):
                past.append(Ended(choice, error))
    return past


def lasting(events: Sequence[Event]) -> list[Event]:
    """`events` without what may differ: times, what was cached, the id of the submission."""
    return [_lasting(event) for event in events]


def _lasting(event: Event) -> Event:
    match event:
        case Started():
            return replace(event, request_id="", num_cached_tokens=0)
        case Finished() | Failed():
            return replace(event, usage=replace(event.usage, num_cached_tokens=0), timings=_NO_TIME)
        case _:
            return event


def by_choice(events: Sequence[Event]) -> dict[int, list[Event]]:
    """What each choice said."""
    heard: dict[int, list[Event]] = {}
    for event in lasting(events):
        heard.setdefault(event.choice, []).append(event)
    return heard


@dataclass(frozen=True)
class Alphabet:
    """A grammar of so many of these tokens, of which none comes twice in a row."""

    tokens: Sequence[int]
    length: int

    def start(self, vocab_size: int) -> GrammarState:
        return _Spelling(self, vocab_size)


class _Spelling:
    def __init__(self, alphabet: Alphabet, vocab_size: int) -> None:
        self._alphabet = alphabet
        self._vocab_size = vocab_size
        self._said: list[int] = []

    def _allowed(self) -> set[int]:
        return set(self._alphabet.tokens) - set(self._said[-1:])

    def mask(self) -> memoryview:
        words = array("I", bytes(4 * ((self._vocab_size + 31) // 32)))
        for token in self._allowed():
            words[token // 32] |= 1 << (token % 32)
        return memoryview(words)

    def accept(self, token: int) -> None:
        if token not in self._allowed():
            raise GenerationFailed(f"token {token} is not in this language")
        self._said.append(token)

    @property
    def is_complete(self) -> bool:
        return len(self._said) == self._alphabet.length
