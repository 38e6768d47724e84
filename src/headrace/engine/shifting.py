"""Turns were dropped from the middle of a conversation: which of its banks are of use all the same.

In: the tokens that a conversation kept banks of, and the tokens of its next prompt. Out: what both
have, and how it gets to its new place. Thread: the engine thread only. Next: `kv_cache.py`.

    before   | system | dropped turns |  kept turns  | rest
    now      | system |  kept turns  | new turn
             |<-start>|<--- gone ---->|
                      |<------------->| end

The kept turns' keys and values depend on the dropped ones, and stand at other positions. Keys can
be turned to the new positions; what they know of the dropped turns stays in them. So this is an
approximation, and never mixed with what is exact.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

_BYTES = array("i").itemsize
_MOST_PLACES = 64
"""Where a text repeats itself, its beginning stands in many places; so many are looked at."""


class BankMove(NamedTuple):
    """Work for the model before the next step: positions from slot `first` of bank `source`
    on go to slot `at` of bank `target`, their keys turned by `delta` positions."""

    source: int
    first: int
    target: int
    at: int
    num_positions: int
    delta: int


class Kept(NamedTuple):
    """What a prompt has of what came before it, but for one run of tokens that is gone."""

    start: int
    """Both begin with as many tokens."""
    gone: int
    """Tokens left out after those."""
    end: int
    """Tokens of the prompt that are kept, the beginning among them."""


def what_is_kept(before: array[int], now: array[int], least: int) -> Kept | None:
    """How `now` goes on from `before` with one run left out; None where nothing is left out, or
    fewer than `least` tokens follow that are kept. Of several ways, the one that keeps most."""
    start = num_common(before, 0, now, 0)
    end = 0
    gone = 0
    places = _places(before, now[start : start + least], start + 1)
    for at in islice(places, _MOST_PLACES):
        num_kept = num_common(before, at, now, start)
        if start + num_kept > end:
            end, gone = start + num_kept, at - start
    if not gone or end - start < least:
        return None
    return Kept(start, gone, end)


def moves(
    kept: Kept, num_tokens: int, sources: Sequence[int], targets: Sequence[int], bank_size: int
) -> list[BankMove]:
    """What brings the first `num_tokens` of what is kept from the banks `sources` into `targets`;
    both are tables, by position."""
    found = []
    position = 0
    while position < num_tokens:
        is_moved = position >= kept.start
        source = position + kept.gone if is_moved else position
        end = num_tokens if is_moved else min(kept.start, num_tokens)
        room = bank_size - max(position % bank_size, source % bank_size)
        count = min(room, end - position)
        found.append(
            BankMove(
                sources[source // bank_size],
                source % bank_size,
                targets[position // bank_size],
                position % bank_size,
                count,
                position - source,
            )
        )
        position += count
    return found


def num_common(one: array[int] | bytes, at: int, other: array[int] | bytes, start: int) -> int:
    """How many tokens are equal from there on. Others wait: looked for by halves, as bytes."""
    mine, others = memoryview(one).cast("B"), memoryview(other).cast("B")
    at, start = at * _BYTES, start * _BYTES
    low, high = 0, min(len(mine) - at, len(others) - start) // _BYTES
    while low < high:
        middle = (low + high + 1) // 2
        begin, end = low * _BYTES, middle * _BYTES
        if mine[at + begin : at + end] == others[start + begin : start + end]:
            low = middle
        else:
            high = middle - 1
    return low


def _places(tokens: array[int], part: array[int], first: int) -> Iterator[int]:
    """Where `part` stands in `tokens`, from `first` on."""
    data, wanted = tokens.tobytes(), part.tobytes()
    at = data.find(wanted, first * _BYTES) if wanted else -1
    while at >= 0:
        if at % _BYTES == 0:
            yield at // _BYTES
        at = data.find(wanted, at + 1)
