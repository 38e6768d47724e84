"""The seam where a text is gone on from: its last tokens are taken back and chosen anew.

In: the tokens of a text that somebody cut where they liked. Out: those that stay, and a grammar
that spells the others' bytes before it lets the model go on. Thread: any; states: engine.
Next: `sampler.py`.

A text that ends inside a word ends with tokens that the model would not have written: `wat` `er`
for `water`. So the end of the text is taken back, as far as a longer token could reach over it, and
further to the beginning of its word. Then the model chooses among the tokens that agree with what
was taken back, shorter and longer ones, until all of it is said. A text that a model wrote goes on
as it did: what it said then is also now the likeliest of all tokens, so of those that agree.

A text that somebody else wrote may be none that the model would write, and the likeliest of the
tokens that agree with it a strange one: ` ` `t` `w` `o` where the model would have said a number.
There only a token that says all of the rest may take the place of those that were taken back.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

from headrace.engine.grammar import ContinuedGrammar, Grammar, GrammarState
from headrace.engine.language import Tokenizer
from headrace.errors import GenerationFailed

_MAX_FURTHER = 8
"""Tokens that are taken back for the beginning of a word, at most: each costs a step."""
_NUM_KEPT_MASKS = 256
_SENTINEL = "\x01"
"""Merges with nothing, so that what follows it is cut as if inside a text."""


@runtime_checkable
class HealableTokenizer(Tokenizer, Protocol):
    """One whose texts can be gone on from anywhere."""

    @property
    def marker_ids(self) -> Set[int]:
        """Tokens that are never taken back: control tokens, and others found before a text is
        cut."""


class Healer:
    """One model's vocabulary, in order. Usable from any thread."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """Masks have `vocab_size` bits. A tokenizer that is not healable has nothing taken back."""
        self._tokenizer = tokenizer
        self._markers: Set[int] = frozenset()
        self.can_heal = isinstance(tokenizer, HealableTokenizer)
        if isinstance(tokenizer, HealableTokenizer):
            self._markers = tokenizer.marker_ids
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._made: Spellings | None = None

    @property
    def spellings(self) -> Spellings:
        """Made at the first use: about a tenth of a second for a large vocabulary."""
        with self._lock:
            if self._made is None:
                self._made = Spellings(self._tokenizer, self._vocab_size)
            return self._made

    def warm_up(self) -> None:
        """Make the vocabulary, and the mask that takes longest."""
        self.spellings.mask(b" ")

    def healing(self, begun: bytes, inner: Grammar | None, tokens: Sequence[int] = ()) -> Healing:
        """A grammar that spells `begun` first: by `tokens` or one that says all the rest where they
        are given, else by any. Its first mask is made here, because the widest take milliseconds,
        and the engine thread has none to spare."""
        if tokens:
            self.spellings.covering(begun)
        else:
            self.spellings.mask(begun)
        return Healing(self.spellings, begun, inner, tuple(tokens))

    def after(self, before: Sequence[int], text: str) -> list[int]:
        """Tokens of `text` where it follows the tokens `before`: those a model would write there,
        whatever the end of `before` could merge with."""
        encode = self._tokenizer.encode
        is_inside = bool(before) and bool(self._tokenizer.token_bytes(before[-1]))
        if not text or not self.adds_space or not (is_inside or text.startswith(" ")):
            return encode(text)
        prefix = encode(_SENTINEL)
        tokens = encode(_SENTINEL + text)
        return tokens[len(prefix) :] if tokens[: len(prefix)] == prefix else encode(text)

    @property
    def adds_space(self) -> bool:
        """Whether encoding puts a space before a text."""
        tokens = self._tokenizer.encode("a")
        return b"".join(map(self._tokenizer.token_bytes, tokens)) != b"a"

    def num_kept(self, tokens: Sequence[int], floor: int) -> int:
        """How many of `tokens` stay. The first `floor`, and all up to the last marker, always do;
        and where some stay, the text of the others begins with a whole character."""
        spell, markers = self._tokenizer.token_bytes, self._markers
        end = len(tokens)
        if not self.can_heal:
            return end
        floor = max(floor, 1)
        # The longest token cannot reach over more than so many bytes.
        first, num_bytes = end, 0
        while first > floor and num_bytes < self.spellings.longest:
            if tokens[first - 1] in markers:
                floor = first
                break
            first -= 1
            num_bytes += len(spell(tokens[first]))
        data = b"".join(map(spell, tokens[first:]))
        reached = self.spellings.reached_from(data)
        if reached is None:
            return end
        kept = first
        position = len(spell(tokens[kept])) if kept < end else 0
        while kept + 1 < end and position <= reached:
            kept += 1
            position += len(spell(tokens[kept]))
        return self._word_start(tokens, kept, floor)

    def _word_start(self, tokens: Sequence[int], kept: int, floor: int) -> int:
        """The token at or before `kept` that begins a word; none further away than a bound."""
        spell, markers = self._tokenizer.token_bytes, self._markers
        lowest = max(floor, kept - _MAX_FURTHER)
        while kept > lowest and not _begins_word(spell(tokens[kept])):
            if tokens[kept - 1] in markers:
                break
            kept -= 1
        while kept > floor and _is_inside_character(spell(tokens[kept])):
            kept -= 1
        return kept

    def bytes_of(self, tokens: Iterable[int]) -> bytes:
        return b"".join(map(self._tokenizer.token_bytes, tokens))


def _begins_word(data: bytes) -> bool:
    return data[:1].isspace()


def _is_inside_character(data: bytes) -> bool:
    return bool(data) and data[0] & 0xC0 == 0x80


class Spellings:
    """The tokens that say something, by their bytes."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        control = set(tokenizer.control_tokens.values())
        known = sorted(
            (data, token)
            for token in range(min(tokenizer.vocab_size, vocab_size))
            if token not in control and (data := tokenizer.token_bytes(token))
        )
        self._bytes = [data for data, _ in known]
        self._ids = array("i", (token for _, token in known))
        self._num_words = (vocab_size + 31) // 32
        self.longest = max(map(len, self._bytes), default=0)
        """Bytes of the longest token."""
        self.mask = lru_cache(_NUM_KEPT_MASKS)(self._mask)
        """The tokens that agree with these bytes: that begin them, or that they begin."""
        self.covering = lru_cache(_NUM_KEPT_MASKS)(self._covering)
        """The tokens that begin with these bytes."""
        self.bytes_of = tokenizer.token_bytes

    def reached_from(self, data: bytes) -> int | None:
        """The first place in `data` from which one token could reach over its end; None where
        there is none."""
        start = max(0, len(data) - self.longest)
        return next((at for at in range(start, len(data)) if self._goes_on(data[at:])), None)

    def _goes_on(self, data: bytes) -> bool:
        index = bisect_right(self._bytes, data)
        return index < len(self._bytes) and self._bytes[index].startswith(data)

    def mask_of(self, data: bytes, due: int) -> memoryview:
        """The tokens that begin with `data`, and `due`."""
        words = array("I", self.covering(data))
        words[due >> 5] |= 1 << (due & 31)
        return memoryview(words).toreadonly()

    def _mask(self, data: bytes) -> memoryview:
        words = array("I", self.covering(data))
        for length in range(1, min(len(data), self.longest + 1)):
            start = data[:length]
            self._allow(words, bisect_left(self._bytes, start), bisect_right(self._bytes, start))
        return memoryview(words).toreadonly()

    def _covering(self, data: bytes) -> memoryview:
        words = array("I", bytes(4 * self._num_words))
        self._allow(words, bisect_left(self._bytes, data), self._end_of(data))
        return memoryview(words).toreadonly()

    def _end_of(self, data: bytes) -> int:
        """The index after the last token that begins with `data`."""
        stem = data.rstrip(b"\xff")
        if not stem:
            return len(self._bytes)
        return bisect_left(self._bytes, stem[:-1] + bytes((stem[-1] + 1,)))

    def _allow(self, words: array[int], first: int, end: int) -> None:
        for token in self._ids[first:end]:
            words[token >> 5] |= 1 << (token & 31)


@dataclass(frozen=True, slots=True)
class Healing:
    """A grammar that spells `begun` before anything else. Implements `engine.grammar.Grammar`."""

    spellings: Spellings
    begun: bytes
    inner: Grammar | None
    """What the answer must be besides, `begun` included."""
    tokens: tuple[int, ...] = ()
    """The spelling that is kept to, unless one token says all the rest; none: any spelling will
    do."""

    def start(self, vocab_size: int) -> GrammarState:
        inner = None if self.inner is None else self.inner.start(vocab_size)
        return HealingState(self.spellings, self.begun, inner, self.tokens)


class HealingState:
    """How much of what was begun one choice has said. Implements `engine.grammar.GrammarState`."""

    __slots__ = ("_due", "_inner", "_rest", "_spellings")

    def __init__(
        self,
        spellings: Spellings,
        begun: bytes,
        inner: GrammarState | None,
        tokens: Sequence[int] = (),
    ) -> None:
        self._spellings = spellings
        self._due = deque(tokens)
        self._rest = begun
        self._inner = inner

    def mask(self) -> memoryview | None:
        inner = None if self._inner is None else self._inner.mask()
        if not self._rest:
            return inner
        spellings = self._spellings
        mask = (
            spellings.mask_of(self._rest, self._due[0]) if self._due else spellings.mask(self._rest)
        )
        return mask if inner is None else _both(mask, inner)

    def accept(self, token: int) -> None:
        """Raises `GenerationFailed` where `token` does not agree with what was begun."""
        if self._inner is not None:
            self._inner.accept(token)
        if not self._rest:
            return
        data = self._spellings.bytes_of(token)
        if not data or not (self._rest.startswith(data) or data.startswith(self._rest)):
            raise GenerationFailed(f"token {token} does not go on with what was begun")
        self._rest = self._rest[len(data) :]
        if self._due and self._due.popleft() != token:
            self._due.clear()

    @property
    def is_complete(self) -> bool:
        return not self._rest and self._inner is not None and self._inner.is_complete


def _both(mask: memoryview, other: memoryview) -> memoryview:
    """The tokens that both allow."""
    words = int.from_bytes(mask, "little") & int.from_bytes(other, "little")
    return memoryview(words.to_bytes(mask.nbytes, "little")).cast("I")


def before(grammar: Grammar | None, begun: bytes) -> Grammar | None:
    """`grammar` where `begun` is not said yet. Raises `LookupError` where it knows no such
    place."""
    match grammar:
        case None:
            return None
        case Healing() if grammar.begun == begun:
            return grammar.inner
        case ContinuedGrammar():
            unsaid = grammar.unsaid(begun)
            if unsaid is not None:
                return unsaid
    raise LookupError("the grammar begins where the answer goes on")
