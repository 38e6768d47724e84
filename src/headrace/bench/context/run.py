"""One run of `headrace bench context`: every strategy, one after the other, on one engine."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.bench.context.keeping import installed_embedder
from headrace.bench.context.play import Played, Player
from headrace.bench.context.report import Long
from headrace.bench.context.talk import talk
from headrace.engine.engine import Engine
from headrace.wire.ask import Context, StrategyName

STRATEGIES: tuple[StrategyName, ...] = ("full", "sliding_window", "summary", "retrieval")
_LONG_TURNS = 10
_LONG_SENTENCES = 15
"""Of each answer, so that ten turns have about 3,000 tokens."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What to play."""

    model: Path
    threads: int | None = None
    num_turns: int = 60
    window: int = 1024
    """`max_tokens` of the strategies that leave something out."""
    strategies: Sequence[StrategyName] = STRATEGIES
    has_long: bool = True

    @property
    def num_steps(self) -> int:
        """Turns of all plays."""
        return self.num_turns * len(self.strategies) + _LONG_TURNS * self.has_long


def run(setup: Setup, step: Callable[[], None]) -> tuple[list[Played], Long | None]:
    """`step` is called after each turn."""
    embedder = installed_embedder(setup.threads) if "retrieval" in setup.strategies else None
    with Engine.load(setup.model, threads=setup.threads) as engine:
        return asyncio.run(_run(Player(engine, embedder), setup, step))


async def _run(
    player: Player, setup: Setup, step: Callable[[], None]
) -> tuple[list[Played], Long | None]:
    # Nobody's first turn pays for what is made once.
    for name in setup.strategies:
        await player.play(talk(2), Context(strategy=name, max_tokens=256))
    said = talk(setup.num_turns)
    plays = []
    for name in setup.strategies:
        max_tokens = None if name == "full" else setup.window
        plays.append(await player.play(said, Context(strategy=name, max_tokens=max_tokens), step))
    return plays, await _long(player, step) if setup.has_long else None


async def _long(player: Player, step: Callable[[], None]) -> Long:
    said = talk(_LONG_TURNS, seed=2, num_sentences=_LONG_SENTENCES)
    turns = (await player.play(said, Context(strategy="full"), step)).turns
    first, tenth = turns[0], turns[-1]
    num_new = tenth.num_prompt_tokens - tenth.num_cached_tokens
    attention_s = await _attention(player, tenth.num_cached_tokens, num_new)
    return Long(first.ttft_s, tenth.ttft_s, tenth.num_cached_tokens, attention_s)


async def _attention(player: Player, num_history: int, num_new: int) -> float:
    """Seconds that so many new tokens take longer after a history than alone; medians of three."""
    chance = random.Random(3)
    vocab_size = player.engine.spec.vocab_size

    def tokens(num: int) -> list[int]:
        return [chance.randrange(vocab_size) for _ in range(num)]

    alone, after = [], []
    for index in range(3):
        history = tokens(num_history)
        await player.compute(history, f"history {index}")
        after.append(await player.compute([*history, *tokens(num_new)], f"history {index}"))
        alone.append(await player.compute(tokens(num_new), f"alone {index}"))
    return max(0.0, sorted(after)[1] - sorted(alone)[1])
