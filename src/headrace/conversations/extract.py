"""The sentences of a conversation that carry facts, word for word: for summaries that forget none.

In: messages, an earlier summary, a number of tokens. Out: lines such as `user: My dog is called
Bo.`. Thread: any; no model, the same lines for the same messages.

Small models lose names and numbers when they condense, or make them up. So a summary begins with
the sentences that have some: figures, capitals inside a sentence, words that only occur here, what
somebody says of themselves. Lines of the summary before compete with new ones on equal terms.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from headrace.conversations.strategies.values import Message

_ENDS = re.compile(r"(?<=[.!?])\s+|[\n\r]+|(?<=[。！？])")  # noqa: RUF001 - Chinese ends
_WORD = re.compile(r"\w+")
_LINE = re.compile(r"(user|assistant|tool): (.+)")
_OWN = frozenset(
    {"i", "my", "mine", "we", "our", "ours", "name", "called", "remember", "decided", "agreed"}
    | {"prefer", "must", "never", "always", "deadline"}
)
_WEIGHTS = {"user": 1.0, "tool": 0.7, "assistant": 0.6}
_QUESTION = 0.3
_MOST_WORDS = 60


@dataclass(frozen=True, slots=True)
class _Sentence:
    place: int
    role: str
    text: str

    @property
    def line(self) -> str:
        return f"{self.role}: {self.text}"


def key_lines(
    block: Sequence[Message], before: str | None, room: int, count: Callable[[str], int]
) -> list[str]:
    """The lines that tell most, in the order in which they were said; of at most `room` tokens,
    as `count` counts them."""
    sentences = [*_lines_of(before or ""), *_sentences(block)]
    told = [_Sentence(place, role, text) for place, (role, text) in enumerate(sentences)]
    common = Counter(word.lower() for one in told for word in set(_WORD.findall(one.text)))
    values = {one.place: _value(one, common) for one in told}
    chosen: dict[str, _Sentence] = {}
    for one in sorted(told, key=lambda one: (-values[one.place], one.place)):
        if values[one.place] <= 0 or one.text in chosen:
            continue
        cost = count(f"{one.line}\n")
        if cost <= room:
            chosen[one.text] = one
            room -= cost
    return [one.line for one in sorted(chosen.values(), key=lambda one: one.place)]


def without_lines(summary: str) -> str:
    """What a summary says beside its lines."""
    return "\n".join(row for row in summary.splitlines() if not _LINE.fullmatch(row)).strip()


def _lines_of(summary: str) -> Iterator[tuple[str, str]]:
    for row in summary.splitlines():
        if found := _LINE.fullmatch(row):
            yield found[1], found[2]


def _sentences(block: Sequence[Message]) -> Iterator[tuple[str, str]]:
    for message in block:
        role, content = str(message.get("role")), message.get("content")
        if role in _WEIGHTS and isinstance(content, str):
            for sentence in _ENDS.split(content):
                if sentence.strip():
                    yield role, " ".join(sentence.split())


def _value(sentence: _Sentence, common: Counter[str]) -> float:
    """How much a sentence tells for its length; 0 where it has nothing to be remembered."""
    words = _WORD.findall(sentence.text)
    if not 2 <= len(words) <= _MOST_WORDS:
        return 0.0
    num_figures = sum(any(letter.isdigit() for letter in word) for word in words)
    num_names = sum(word[0].isupper() and word != "I" for word in words[1:])
    num_own = min(2, sum(word.lower() in _OWN for word in words))
    marks = 2 * num_figures + 1.5 * num_names + num_own
    if not marks:
        return 0.0
    rarity = sum(1 / common[word.lower()] for word in words) / len(words)
    weight = _WEIGHTS[sentence.role] * (_QUESTION if sentence.text.endswith("?") else 1.0)
    return float((marks + 2 * rarity) * weight / (8 + len(words)))
