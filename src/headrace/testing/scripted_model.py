"""A model that says a given text at a given pace, and costs almost no processor time.

What `headrace serve --engine fake` runs on the real scheduler and mailbox: for users' own tests,
and for measuring what the server itself costs. It keeps no history and computes no logits, so it
notices none of the faults that `FakeModel` does.
"""

from __future__ import annotations

import math
import re
import time
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from string import ascii_lowercase

from headrace.engine.engine import Engine, EngineConfig
from headrace.engine.scheduler import SchedulerConfig
from headrace.errors import ModelError
from headrace.model.interface import (
    Batch,
    Model,
    ModelSpec,
    Move,
    Sampled,
    SampleRow,
    SamplingSettings,
    TokenIds,
)
from headrace.model.prompt import RenderedPrompt
from headrace.testing.fake_tokenizer import END_ID, START_ID, FakeTemplate

SCRIPT = (
    "The channel carries fast water to the wheel, and the wheel turns the stone. "
    "What the river brings in the morning is flour in the evening."
)
_MARKERS = {"<|start|>": START_ID, "<|end|>": END_ID}
_SPELLINGS = {token: marker for marker, token in _MARKERS.items()}
_MARKER = re.compile("|".join(map(re.escape, _MARKERS)))
_FIRST_PIECE = 256 + len(_MARKERS)
_PIECE = re.compile(r" ?[A-Za-z]+|[^A-Za-z]")
_MAX_PIECE = 8
_MIN_CONTEXT = 2
"""A token of the prompt and one of the answer."""
_COMMON = (
    "the of and to in is that it was for on are with as his they be at one have this from or had "
    "by not but what all were when we there can an your which their said if do will each about "
    "how up out them then she many some so these would other into has more her two like him see "
    "time could no make than first been its who now people my made over did down only way find "
    "use may water long little very after words called just where most know get through back much "
    "before also around another came come work three word must because does part even place well "
    "such here take why things help put years different away again off went old number great tell "
    "men say small every found still between name should home big give air line set own under "
    "read last never us left end along while might next sound below saw something thought both "
    "few those always looked show large often together asked house world going want school "
    "important until form food keep children feet land side without boy once animals life enough "
    "took sometimes four head above kind began almost live page got earth need far hand high year "
    "mother light parts country father let night following picture being study second eyes soon "
    "times story boys since white days ever paper hard near sentence better best across during "
    "today others however sure means knew try told young miles sun ways thing whole hear example "
    "heard several change answer room sea against top turned learn point city play toward five "
    "using himself usually user assistant system"
)
"""English words that prompts are mostly made of."""
_VOWELS = "aeiou"
_CONSONANTS = "bcdfghjklmnpqrstvwxyz"
_ENDINGS = (
    "ing ion tion ment ness able ible ally ful less ence ance ers ies ity ous ive ize est ate ish "
    "ent ant ect ort ull ight ough ould ound ember ever over under tional"
)


class ScriptedTokenizer:
    """Implements `headrace.engine.language.Tokenizer`: bytes, pairs of letters, common words and
    the words of `text`. English takes a token for about three characters."""

    adds_bos = False
    bos_id: int | None = None
    eog_ids = frozenset({END_ID})
    control_tokens: Mapping[str, int] = _MARKERS

    def __init__(self, text: str = "") -> None:
        pieces = dict.fromkeys(_pieces(text))
        self._bytes = [bytes((value,)) for value in range(256)] + [b""] * len(_MARKERS)
        self._bytes += [piece.encode() for piece in pieces]
        self._ids = {piece: _FIRST_PIECE + index for index, piece in enumerate(pieces)}

    @property
    def vocab_size(self) -> int:
        return len(self._bytes)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return self._encode(text, ((0, len(text)),) if special else ())

    def encode_prompt(self, prompt: RenderedPrompt) -> list[int]:
        return self._encode(prompt.text, prompt.template_spans)

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token] if token < len(self._bytes) else b""

    def token_text(self, token: int) -> str:
        return _SPELLINGS.get(token) or self.token_bytes(token).decode(errors="replace")

    def _encode(self, text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
        tokens: list[int] = []
        position = 0
        for start, end in spans:
            for match in _MARKER.finditer(text, start, end):
                tokens += self._plain(text[position : match.start()])
                tokens.append(_MARKERS[match.group()])
                position = match.end()
        return tokens + self._plain(text[position:])

    def _plain(self, text: str) -> list[int]:
        tokens: list[int] = []
        for piece in _PIECE.findall(text):
            token = self._ids.get(piece)
            if token is None:
                tokens.extend(self._spelled(piece))
            else:
                tokens.append(token)
        return tokens

    def _spelled(self, piece: str) -> Iterator[int]:
        """A piece that is no token, as the longest tokens that it begins with."""
        start = 0
        while start < len(piece):
            for length in range(min(_MAX_PIECE, len(piece) - start), 0, -1):
                token = self._ids.get(piece[start : start + length])
                if token is not None:
                    yield token
                    break
            else:
                length = 1
                yield from piece[start].encode("utf-8", "surrogatepass")
            start += length


def _pieces(text: str) -> Iterator[str]:
    for first, second in product(ascii_lowercase, repeat=2):
        yield first + second
        yield " " + first + second
    for letter in ascii_lowercase:
        yield " " + letter
    for syllable in product(_CONSONANTS, _VOWELS, _CONSONANTS):
        yield "".join(syllable)
        yield " " + "".join(syllable)
    yield from _ENDINGS.split()
    for word in _COMMON.split():
        yield from (word, " " + word, word.capitalize())
    yield from (word for word in _PIECE.findall(text) if len(word) > 1 and word.isascii())


@dataclass(slots=True)
class ScriptedSampler:
    """Where one choice began: it keeps nothing else, and no counts."""

    settings: SamplingSettings
    begins_at: int | None = None
    """Position of its first token."""

    def observe(self, tokens: TokenIds, is_prompt: bool = False) -> None:
        """A script does not tire of its words."""


class ScriptedModel:
    """Implements `headrace.model.interface.Model`: every choice says `text`, then ends.

    A step lasts `1 / tokens_per_s` if any stream takes part in it, `batch_cost` of that longer for
    each further stream, and `1 / prefill_tokens_per_s` for each token of a prompt. It waits without
    holding the interpreter; `math.inf` does not wait. Sampling settings change nothing; a grammar's
    mask is obeyed. A choice that ignores its end begins anew. Raises `ValueError` for a rate that
    is not above 0, a `batch_cost` below 0 and a `context_length` below 2.
    """

    def __init__(
        self,
        tokenizer: ScriptedTokenizer,
        text: str = SCRIPT,
        *,
        tokens_per_s: float = math.inf,
        prefill_tokens_per_s: float = math.inf,
        batch_cost: float = 0.0,
        context_length: int = 8192,
        name: str = "fake",
    ) -> None:
        _check(tokens_per_s, prefill_tokens_per_s, batch_cost, context_length)
        self._script = (*tokenizer.encode(text), END_ID)
        self._step_s = 1 / tokens_per_s
        self._prefill_s = 1 / prefill_tokens_per_s
        self._batch_cost = batch_cost
        self._spec = ModelSpec(
            name=name,
            architecture="fake",
            quantization="none",
            vocab_size=tokenizer.vocab_size,
            context_length=context_length,
            bank_size=32,
            bank_bytes=1,
            num_layers=1,
            # What makes the scheduler's first guess of a step's time the right one.
            num_parameters=max(1, round(self._prefill_s / 2e-12)),
            weight_bytes=max(1, round(self._step_s * 40e9)),
            isa="python",
            num_threads=1,
            identity=f"scripted-{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}",
        )
        self._num_rows = 0
        self.is_closed = False

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    def allocate(self, num_banks: int) -> None:
        """Nothing is kept, so nothing is needed."""

    def touch(self, first: int, count: int) -> None:
        """Banks hold nothing."""

    def step(self, batch: Batch) -> None:
        if self.is_closed:
            raise ModelError("the model is closed")
        seconds = self.seconds(batch)
        self._num_rows = sum(span.num_logits for span in batch)
        if seconds:
            time.sleep(seconds)

    def seconds(self, batch: Batch) -> float:
        """How long a step of `batch` lasts."""
        num_streams = sum(1 for span in batch if _is_stream(len(span.tokens), span.num_logits))
        num_prompt = sum(len(span.tokens) for span in batch) - num_streams
        seconds = self._prefill_s * num_prompt
        if num_streams:
            seconds += self._step_s * (1 + self._batch_cost * (num_streams - 1))
        return seconds

    def make_sampler(self, settings: SamplingSettings) -> ScriptedSampler:
        return ScriptedSampler(settings)

    def sample(self, rows: Sequence[SampleRow]) -> list[Sampled]:
        return [self._sample(row) for row in rows]

    def _sample(self, row: SampleRow) -> Sampled:
        sampler = row.sampler
        assert isinstance(sampler, ScriptedSampler)
        if sampler.begins_at is None:
            sampler.begins_at = row.position
        token: int | None = self._script[(row.position - sampler.begins_at) % len(self._script)]
        if row.mask is not None:
            token = _allowed(token, row.mask, self._spec.vocab_size)
            if token is None:
                return Sampled(None, 0.0, [], "no token is allowed here")
        settings = sampler.settings
        if not settings.want_logprob:
            return Sampled(token, 0.0, [], None)
        return Sampled(token, 0.0, self._top(token or 0, settings.num_logprobs), None)

    def _top(self, token: int, number: int) -> list[tuple[int, float]]:
        """The script's token for sure, then others without a chance."""
        others = (other for other in range(self._spec.vocab_size) if other != token)
        return [(token, 0.0), *((other, -100.0) for other in islice(others, number))][:number]

    def logits(self, row: int) -> memoryview[float]:
        """Zeros: a script has no opinion."""
        if not 0 <= row < self._num_rows:
            raise ModelError(f"the last step left {self._num_rows} rows of logits, none is {row}")
        return memoryview(array("f", bytes(4 * self._spec.vocab_size)))

    def copy_bank(self, source: int, target: int) -> None:
        """Banks hold nothing."""

    def shift_bank(self, bank: int, delta: int) -> None:
        """Banks hold nothing."""

    def move(self, moves: Sequence[Move]) -> None:
        return

    def export_bank(self, bank: int) -> bytes:
        return b""

    def import_bank(self, bank: int, data: bytes) -> None:
        """Banks hold nothing."""

    def close(self) -> None:
        self.is_closed = True


def _check(
    tokens_per_s: float, prefill_tokens_per_s: float, batch_cost: float, context_length: int
) -> None:
    rates = {"tokens_per_s": tokens_per_s, "prefill_tokens_per_s": prefill_tokens_per_s}
    for name, rate in rates.items():
        if not rate > 0:  # NaN, too
            raise ValueError(f"{name} must be above 0, not {rate}")
    if not batch_cost >= 0:
        raise ValueError(f"batch_cost must be at least 0, not {batch_cost}")
    if context_length < _MIN_CONTEXT:
        raise ValueError(f"context_length must be at least {_MIN_CONTEXT}, not {context_length}")


def _is_stream(num_tokens: int, num_logits: int) -> bool:
    """One token and its logits: a stream goes on. (So does a prompt whose last token alone was
    left over; one step is no great error.)"""
    return num_tokens == 1 and num_logits == 1


def _allowed(token: int | None, mask: memoryview, vocab_size: int) -> int | None:
    """`token` if the mask allows it, else the end, else what closes strings and brackets soonest:
    the first allowed one from the quotation mark on."""
    bits = mask.cast("B")
    order = (token, END_ID, *range(ord('"'), vocab_size), *range(ord('"')))
    return next((t for t in order if t is not None and bits[t // 8] >> (t % 8) & 1), None)


def scripted_engine(
    text: str = SCRIPT,
    *,
    tokens_per_s: float = math.inf,
    prefill_tokens_per_s: float = math.inf,
    batch_cost: float = 0.0,
    max_running: int = 32,
    context_length: int = 8192,
    config: EngineConfig | None = None,
    wrap: Callable[[Model], Model] = lambda model: model,
) -> Engine:
    """The real engine, on its own thread, whose every answer is `text`.

    `tokens_per_s` is the pace of one stream, `prefill_tokens_per_s` that of prompts: above 0,
    `math.inf` does not wait. Each further stream of a step makes it longer by `batch_cost`, a share
    of one stream's step, at least 0. `max_running` choices are computed at a time, 1 to 496;
    `context_length` is in tokens, at least 2. Raises `ValueError` for what is out of range.

    `wrap` may put faults around the model: `lambda model: FaultyModel(model, raise_at={3: error})`.
    `config`, where given, says `max_running` itself.
    """
    tokenizer = ScriptedTokenizer(text)
    model = ScriptedModel(
        tokenizer,
        text,
        tokens_per_s=tokens_per_s,
        prefill_tokens_per_s=prefill_tokens_per_s,
        batch_cost=batch_cost,
        context_length=context_length,
    )
    config = config or EngineConfig(scheduler=SchedulerConfig(max_running=max_running))
    return Engine(wrap(model), tokenizer, FakeTemplate(), config)
