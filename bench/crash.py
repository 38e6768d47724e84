"""Servers that are killed at random moments: do their streams end as undisturbed ones do?

    .venv/bin/python bench/crash.py [--kills 200] [--restarts 10] [--seed 1]

`headrace serve` with the default model, on a data folder of its own, is killed with `kill -9` while
it starts, while it goes on with what it had begun, and while it speaks. Five streams at a time are
in flight, sampled at temperature 1: text, a JSON schema, tools, a text gone on with, log
probabilities. Their clients know nothing of the server's death but that the connection broke, and
come back with `Last-Event-ID`, or with their `Idempotency-Key` where they have no number yet.

Each stream is held against one of the same question and seed that nobody disturbed: the numbers of
its events (there is one for each token that says something), what each says, log probabilities to
the last bit, finish reason and number of tokens. Then how soon a stream goes on: from the moment
when a restarted server has it again to its first new token, beside the time to the first token of
a new prompt of as many tokens. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.crashing import (
    QUESTIONS,
    STORY,
    Mortal,
    Reader,
    disturbed,
    home_with,
    random_kills,
    undisturbed,
    wait_for_news,
)
from support.models import default_model_path

KILLS_A_CREW = len(QUESTIONS)
"""A crew is a stream of each kind: so there are as many streams as kills."""
RESTART_BAR = 1.5
NUM_TOKENS = 400
"""Of a stream whose restart is timed."""


@dataclass
class Outcome:
    """What became of the streams."""

    num_kills: int = 0
    num_streams: int = 0
    num_lost: int = 0
    num_doubled: int = 0
    num_wrong_ends: int = 0
    wrong: list[str] = field(default_factory=list)
    """In words, what differs."""

    def judge(self, name: str, found: Reader, expected: Reader) -> None:
        """Count a stream."""
        self.num_streams += 1
        numbers = [number for number, *_ in found.heard]
        self.num_doubled += len(numbers) - len(set(numbers))
        self.num_lost += len({number for number, *_ in expected.heard}.difference(numbers))
        self.num_wrong_ends += found.num_ends != expected.num_ends
        if found.heard != expected.heard:
            pairs = zip(found.heard, expected.heard, strict=False)
            first = next((pair for pair in pairs if pair[0] != pair[1]), None)
            self.wrong.append(f"{name}: {first or 'one ends before the other'}")


@dataclass(frozen=True)
class Restart:
    """How soon one stream went on; seconds."""

    num_tokens: int
    """Of its prompt and what it had said."""
    resumed_s: float
    prefill_s: float

    @property
    def ratio(self) -> float:
        return self.resumed_s / self.prefill_s


def storm(mortal: Mortal, num_kills: int, seed: int, show: Progress) -> Outcome:
    """Kill, and hold what was heard against what should have been."""
    chance = random.Random(seed)
    crews = [_crew(chance.getrandbits(31)) for _ in range(-(-num_kills // KILLS_A_CREW))]
    task = show.add_task("undisturbed", total=None)
    expected = undisturbed(mortal, [question for each in crews for question in each])
    show.update(task, description="kills", total=num_kills)
    outcome = Outcome()
    for number, questions in enumerate(crews):
        kills = random_kills(chance, min(KILLS_A_CREW, num_kills - outcome.num_kills))
        found = disturbed(mortal, questions, kills, f"crew-{number}")
        for kind, left in zip(QUESTIONS, found, strict=True):
            outcome.judge(f"crew {number}, {kind}", left, expected.pop(0))
        outcome.num_kills += len(kills)
        show.update(task, completed=outcome.num_kills)
    return outcome


def _crew(seed: int) -> list[Mapping[str, Any]]:
    return [{**question, "seed": seed} for question in QUESTIONS.values()]


def measure_restart(mortal: Mortal, seed: int) -> Restart:
    """Kill one stream's server, and see how soon the next one goes on with it."""
    chance = random.Random(seed)
    question = {**STORY, "seed": seed, "max_tokens": NUM_TOKENS, "ignore_eos": True}
    reader = Reader(mortal.port, question, f"restart-{seed}")
    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(reader.read_to_end)
        with mortal.alive():
            wait_for_news([reader], chance.randrange(20, NUM_TOKENS - 50))
            mortal.kill()
            num_before = len(reader.heard)
            mortal.start()
            wait_for_news([reader], 4)
            reading.result()
            return _restart(mortal, reader, num_before)


def _restart(mortal: Mortal, reader: Reader, num_before: int) -> Restart:
    """What a reader's times say. Events that were only said again come before the long wait."""
    times = [reader.back_at, *reader.heard_at[num_before : num_before + 4]]
    longest = max(range(1, len(times)), key=lambda number: times[number] - times[number - 1])
    num_prompt_tokens = next(counts[0] for *_, counts in reader.heard if counts[0] is not None)
    num_tokens = num_prompt_tokens + num_before
    prefills = [_prefill_s(mortal, num_tokens, number) for number in range(3)]
    return Restart(num_tokens, times[longest] - reader.back_at, statistics.median(prefills))


def _prefill_s(mortal: Mortal, num_tokens: int, number: int) -> float:
    """From asking to the first token of a new prompt."""
    chance = random.Random(num_tokens + number)
    prompt = [chance.randrange(100, 40_000) for _ in range(num_tokens)]
    question = {"model": STORY["model"], "prompt": prompt, "max_tokens": 2, "ignore_eos": True}
    key = f"prefill-{num_tokens}-{time.time()}"
    reader = Reader(mortal.port, question, key, path="/v1/completions")
    begun_at = time.perf_counter()
    reader.read_to_end()
    return reader.heard_at[0] - begun_at


def tell(outcome: Outcome, restarts: list[Restart]) -> dict[str, bool]:
    """Print what came of it; returns each bar and whether it holds."""
    for each in outcome.wrong[:10]:
        click.echo(f"  {each}")
    verdicts = {
        f"{outcome.num_streams} streams, {outcome.num_kills} kills: as undisturbed": (
            not outcome.wrong
        ),
        f"{outcome.num_lost} events lost": outcome.num_lost == 0,
        f"{outcome.num_doubled} events doubled": outcome.num_doubled == 0,
        f"{outcome.num_wrong_ends} with more or fewer ends": outcome.num_wrong_ends == 0,
    }
    if restarts:
        middle = statistics.median(restart.ratio for restart in restarts)
        worst = max(restart.ratio for restart in restarts)
        text = f"goes on after {middle:.2f} x a prefill (median; worst {worst:.2f})"
        verdicts[f"{text}, bar {RESTART_BAR}"] = middle <= RESTART_BAR
        for restart in restarts:
            click.echo(
                f"  {restart.num_tokens} tokens: first new one after "
                f"{restart.resumed_s * 1000:.0f} ms, prefill {restart.prefill_s * 1000:.0f} ms"
            )
    for bar, holds in verdicts.items():
        click.echo(f"{'✓' if holds else '✗'} {bar}")
    return verdicts


@click.command()
@click.option("--kills", default=200, show_default=True)
@click.option("--restarts", default=10, show_default=True, help="How many are timed.")
@click.option("--seed", default=1, show_default=True)
def main(kills: int, restarts: int, seed: int) -> None:
    """Kill servers, and hold their streams against undisturbed ones."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(console=Console(stderr=True), transient=True) as show,
    ):
        mortal = Mortal(home_with(default_model_path(), Path(folder) / "home"))
        outcome = storm(mortal, kills, seed, show)
        task = show.add_task("restarts", total=restarts)
        timed = []
        for number in range(restarts):
            timed.append(measure_restart(mortal, seed + number))
            show.advance(task)
    sys.exit(not all(tell(outcome, timed).values()))


if __name__ == "__main__":
    main()
