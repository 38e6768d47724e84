"""What a generation says, as plain values, and the fold that makes a whole answer of them.

Every choice of a request speaks for itself, in this order and no other:

    Started  (Delta | ToolCall)*  (Finished | Failed)

A stream carries the events of all `n` choices, interleaved; each event names its `choice`. A choice
that ends before a step computed for it says its terminal event alone. The stream ends after the
last choice's terminal event, so a stream of `n` choices has exactly `n` terminal events, and one of
`n=1` exactly one. Every completion token is covered by exactly one `Delta`, in order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeAlias

from headrace.errors import HeadraceError

FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "tool_calls"]
"""`stop`: an end-of-generation token, a stop string or a finished grammar. `length`: `max_tokens`
or the context is used up, or no answer was asked for. `cancelled`: somebody said so. `tool_calls`:
the answer calls tools (said above the engine, by whoever reads calls in its text)."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one choice cost, in tokens."""

    num_prompt_tokens: int
    num_cached_tokens: int
    """Prompt tokens that were not computed, because their banks were still there."""
    num_completion_tokens: int
    """Sampled tokens, with the end-of-generation token if there was one."""
    num_reasoning_tokens: int = 0
    """Those of them that were thoughts: counted above the engine, by whoever reads the markers."""
    num_loaded_tokens: int = 0
    """Cached tokens whose banks came from disk; those of the others were in memory."""
    num_shifted_tokens: int = 0
    """Cached tokens whose banks were moved from other positions, in this turn or an earlier one:
    where it is not 0, the answer is approximate."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Where one choice's time went, measured. What did not happen took 0 s."""

    queued_s: float
    """From the submission to the first step that computed for it."""
    prefill_s: float
    """From there to the first token."""
    decode_s: float
    """From there to the end."""

    @property
    def time_to_first_token_s(self) -> float:
        return self.queued_s + self.prefill_s


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One sampled token's natural-log probability, and the best alternatives asked for."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """(token, log probability), best first."""


@dataclass(frozen=True, slots=True)
class Started:
    """The first step that computes for this choice has been planned."""

    request_id: str
    choice: int
    seed: int
    num_prompt_tokens: int
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """More tokens and the text they gave. Text is whole characters, free of stop strings.

    Text may be held back until it is sure; it then comes with a later token. So `text` can be
    empty while `token_ids` is not, and after a stop string the last tokens have no text.
    """

    choice: int
    start: int
    """Index of the first covered token in the completion: where a log or a reader goes on."""
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of `token_ids` where asked for, else empty."""
    reasoning: str = ""
    """Text that the model thought rather than said: said above the engine, by whoever reads the
    markers in its text. Thoughts come before `text`."""
    num_given: int = 0
    """So many of `token_ids`, the first ones, only say again what was given: the prompt's end."""

    @property
    def new_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Those of the tokens that say something new."""
        return self.logprobs[self.num_given :]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One whole call of a tool, read in the text; the tokens it was made of are in deltas."""

    choice: int
    index: int
    """0 for the first call of this choice."""
    id: str
    name: str
    arguments: str
    """JSON text."""


@dataclass(frozen=True, slots=True)
class Finished:
    """This choice ended as it should."""

    choice: int
    reason: FinishReason
    usage: Usage
    timings: Timings
    matched_stop: str | None = None
    """The stop string that ended it, if one did."""


@dataclass(frozen=True, slots=True)
class Failed:
    """This choice ended in an error; others are not concerned."""

    choice: int
    error: HeadraceError
    usage: Usage
    timings: Timings


Event: TypeAlias = Started | Delta | ToolCall | Finished | Failed


def merge(deltas: list[Delta]) -> Delta:
    """One delta that says what consecutive `deltas` of one choice say. Needs at least one."""
    first = deltas[0]
    if len(deltas) == 1:
        return first
    return Delta(
        first.choice,
        first.start,
        tuple(chain.from_iterable(delta.token_ids for delta in deltas)),
        "".join([delta.text for delta in deltas]),
        tuple(chain.from_iterable(delta.logprobs for delta in deltas)),
        "".join([delta.reasoning for delta in deltas]),
        sum([delta.num_given for delta in deltas]),  # nothing is given after the first new token
    )


def merge_all(events: Iterable[Event]) -> list[Event]:
    """`events` with at most one delta a choice: what a reader gets who has fallen behind."""
    merged: list[Event] = []
    deltas: dict[int, list[Delta]] = {}
    place: dict[int, int] = {}
    for event in events:
        if not isinstance(event, Delta):
            merged.append(event)
        elif event.choice in deltas:
            deltas[event.choice].append(event)
        else:
            place[event.choice] = len(merged)
            deltas[event.choice] = [event]
            merged.append(event)
    for choice, index in place.items():
        merged[index] = merge(deltas[choice])
    return merged


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole answer."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    """One for each token where asked for, but none for those that only say again what was given."""
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    reason: FinishReason
    matched_stop: str | None
    usage: Usage
    timings: Timings


def fold(events: Iterable[Event]) -> list[Choice]:
    """The whole answers that a stream's `events` told, by choice index.

    Raises the error of the first choice that failed, and `ValueError` where a choice has not ended.
    """
    deltas: dict[int, list[Delta]] = {}
    calls: dict[int, list[ToolCall]] = {}
    finished: dict[int, Finished] = {}
    for event in events:
        spoken = deltas.setdefault(event.choice, [Delta(event.choice, 0, (), "")])
        match event:
            case Delta():
                spoken.append(event)
            case ToolCall():
                calls.setdefault(event.choice, []).append(event)
            case Finished():
                finished[event.choice] = event
            case Failed():
                raise event.error
    if unended := deltas.keys() - finished.keys():
        raise ValueError(f"choice {min(unended)} has no terminal event: the stream was cut")
    return [
        _choice(merge(deltas[index]), calls.get(index, []), end)
        for index, end in sorted(finished.items())
    ]


def _choice(whole: Delta, calls: list[ToolCall], end: Finished) -> Choice:
    return Choice(
        index=end.choice,
        text=whole.text,
        token_ids=whole.token_ids,
        logprobs=whole.new_logprobs,
        reasoning=whole.reasoning,
        tool_calls=tuple(calls),
        reason=end.reason,
        matched_stop=end.matched_stop,
        usage=end.usage,
        timings=end.timings,
    )
