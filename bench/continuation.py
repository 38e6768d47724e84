"""How seamless a continuation is: greedy answers cut at every character, and gone on from there.

    .venv/bin/python bench/continuation.py [--model FILE] [--answers 240] [--runs 400]

Every answer is cut at every character, as if a client had lost the rest. For each cut the engine
is asked what it would compute: where the tokens that it keeps are those that the model said, and
what it took back is all that lies between them and the cut, the rest of the answer follows, because
what the model said is the likeliest of all tokens, so of those that agree with the text. All other
cuts are really gone on from; of the proven ones, `--runs`, chosen at random. Beside it: as many
cuts with `heal: false`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Any

import click

from headrace.bench import opening
from headrace.commands.telling import told_plainly
from headrace.engine.engine import Engine
from headrace.engine.request import Request
from headrace.engine.stream import Generation
from headrace.events import Choice

OTHERS_BAR = 0.95
AT_A_TIME = 16
FURTHER = 8
"""Tokens beyond those that the answer had left."""

TASKS = (
    "Explain {} in a few sentences.",
    "Write a short story about {}.",
    "List five facts about {}.",
    "Write a Python function about {} with comments.",
    "Give a JSON object that describes {}.",
    "Write a Markdown table about {}.",
    "Write a dialogue between two people who don't agree about {}.",
    "Schreibe einen kurzen Text über {} auf Deutsch.",
    "Tell me about {} with numbers, dates and prices.",
    "Write an email to a friend about {}, with emoji.",
)
TOPICS = (
    *("the sea", "bread", "the moon", "a lost dog", "prime numbers", "the French revolution"),
    *("coffee", "a city at night", "gravity", "old letters", "a train", "chess", "rivers"),
    *("the number 1234.56", "glaciers", "a garden", "computer networks", "birds", "the heart"),
    *("music", "winter", "a bridge", "honey", "time"),
)


@dataclass(frozen=True)
class Answer:
    """A greedy answer, undisturbed."""

    question: dict[str, str]
    prompt: Sequence[int]
    text: str
    tokens: Sequence[int]
    """Without the one that ended it."""
    ends: Sequence[int]
    """Bytes of the answer at the end of each token."""
    is_whole: bool
    """It came to its end."""


@dataclass(frozen=True)
class Cut:
    """One answer, and how many characters of it somebody has."""

    answer: Answer
    at: int

    @property
    def given(self) -> str:
        return self.answer.text[: self.at]

    @property
    def num_bytes(self) -> int:
        return len(self.given.encode())

    @property
    def is_boundary(self) -> bool:
        """Whether it lies between two tokens."""
        return self.num_bytes in self.answer.ends

    def request(self, *, heal: bool = True) -> Request:
        num_left = sum(end > self.num_bytes for end in self.answer.ends)
        return Request(
            messages=[self.answer.question, {"role": "assistant", "content": self.given}],
            continue_final_message=True,
            max_tokens=num_left + FURTHER,
            heal=heal,
        )


@dataclass
class Rate:
    """How many cuts were gone on from as if there had been none."""

    num_equal: int = 0
    num_cuts: int = 0

    def add(self, is_equal: bool) -> None:
        self.num_equal += is_equal
        self.num_cuts += 1

    @property
    def share(self) -> float:
        return self.num_equal / self.num_cuts if self.num_cuts else 1.0

    def __str__(self) -> str:
        return f"{self.share:.3%} ({self.num_cuts - self.num_equal} of {self.num_cuts} differ)"


def answers(engine: Engine, number: int, max_tokens: int) -> Iterable[Answer]:
    """Greedy answers to different questions. One whose text is no Unicode cannot be sent back, so
    it is left out."""
    questions = [
        {"role": "user", "content": task.format(topic)} for topic, task in product(TOPICS, TASKS)
    ]
    requests = (Request(messages=[asked], max_tokens=max_tokens) for asked in questions[:number])
    spell = engine.tokenizer.token_bytes
    for asked, choice in zip(questions, choices(engine, requests), strict=False):
        tokens = [token for token in choice.token_ids if token not in engine.tokenizer.eog_ids]
        said = b"".join(map(spell, tokens))
        # The limit may have come inside a character.
        text = choice.text.removesuffix("\ufffd")
        if said.startswith(text.encode()):
            ends = list(accumulate(len(spell(token)) for token in tokens))
            prompt = engine.prepare(Request(messages=[asked])).prompt
            yield Answer(asked, prompt, text, tokens, ends, choice.reason == "stop")


def choices(engine: Engine, requests: Iterable[Request]) -> Iterable[Choice]:
    waiting: deque[Generation] = deque()
    for request in requests:
        waiting.append(engine.generate_sync(request))
        if len(waiting) == AT_A_TIME:
            yield waiting.popleft().choice
    for generation in waiting:
        yield generation.choice


def is_proven(engine: Engine, cut: Cut) -> bool:
    """Whether what is computed is the model's own beginning, and all of the text is begun."""
    answer = cut.answer
    num_asked = len(answer.prompt)
    prepared = engine.prepare(cut.request())
    kept = list(prepared.prompt[num_asked:])
    if prepared.prompt[:num_asked] != answer.prompt or kept != answer.tokens[: len(kept)]:
        return False
    kept_bytes = answer.ends[len(kept) - 1] if kept else 0
    return answer.text.encode()[kept_bytes : cut.num_bytes] == prepared.request.begun


def goes_on(cut: Cut, choice: Choice) -> bool:
    """Whether a continuation is the undisturbed rest, as far as that goes."""
    rest = cut.answer.text[cut.at :]
    if cut.answer.is_whole:
        return choice.text == rest and choice.reason == "stop"
    return choice.text.startswith(rest)


def run(engine: Engine, cuts: Sequence[Cut], *, heal: bool = True) -> list[bool]:
    said = choices(engine, (cut.request(heal=heal) for cut in cuts))
    return [goes_on(cut, choice) for cut, choice in zip(cuts, said, strict=True)]


def measure(engine: Engine, number: int, max_tokens: int, num_runs: int) -> dict[str, Any]:
    """Rates by name. `at boundaries` and `elsewhere` are of all cuts, `proven, run` says how many
    of the proven ones held."""
    source = random.Random(1)
    all_answers = list(answers(engine, number, max_tokens))
    cuts = [Cut(answer, at) for answer in all_answers for at in range(1, len(answer.text))]
    proven = [cut for cut in cuts if is_proven(engine, cut)]
    known = set(map(id, proven))
    doubtful = [cut for cut in cuts if id(cut) not in known]
    rates = {name: Rate() for name in ("at boundaries", "elsewhere", "proven, run", "unhealed")}
    for cut, is_equal in [
        *((cut, True) for cut in proven),
        *zip(doubtful, run(engine, doubtful), strict=True),
    ]:
        rates["at boundaries" if cut.is_boundary else "elsewhere"].add(is_equal)
    some = source.sample(proven, min(num_runs, len(proven)))
    for is_equal in run(engine, some):
        rates["proven, run"].add(is_equal)
    some = source.sample(cuts, min(num_runs, len(cuts)))
    for is_equal in run(engine, some, heal=False):
        rates["unhealed"].add(is_equal)
    return {"answers": len(all_answers), "cuts": len(cuts), "doubtful": len(doubtful), **rates}


@click.command(help=__doc__)
@click.option("--model", default=None, help="A catalogue name or a .gguf file.")
@click.option("--answers", "number", default=240, show_default=True)
@click.option("--max-tokens", default=100, show_default=True)
@click.option("--runs", "num_runs", default=400, show_default=True)
def main(model: str | None, number: int, max_tokens: int, num_runs: int) -> None:
    with told_plainly(), Engine.load(opening.model_path(model)) as engine:
        found = measure(engine, number, max_tokens, num_runs)
    for name, value in found.items():
        click.echo(f"{name:15}{value}")
    boundaries, others = found["at boundaries"].share, found["elsewhere"].share
    verdict("every cut between two tokens goes on as if there had been none", boundaries == 1)
    verdict(f"so do {others:.1%} of the others (bar {OTHERS_BAR:.0%})", others >= OTHERS_BAR)


def verdict(what: str, is_met: bool) -> None:
    click.echo(f"{'met' if is_met else 'MISSED':7}{what}")


if __name__ == "__main__":
    main()
