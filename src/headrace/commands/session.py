"""What the commands that generate have in common: an engine for one, and a line about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.events import Choice

if TYPE_CHECKING:
    from headrace.engine.engine import Engine


def open_engine(model: str | None, threads: int | None) -> Engine:
    """An engine for one, with a progress bar where the model must be fetched first."""
    # Not before they are needed: `--help` must not wait for them.
    from headrace.commands.progress import showing
    from headrace.engine.engine import Engine, EngineConfig
    from headrace.engine.loading import open_model
    from headrace.engine.scheduler import SchedulerConfig

    # One sequence at a time needs a KV pool of one context.
    alone = EngineConfig(scheduler=SchedulerConfig(max_running=1))
    with showing(Path(model).name if model else "the default model") as report:
        opened = open_model(model, threads=threads, report=report)
    return Engine(opened.model, opened.tokenizer, opened.template, alone)


def describe(choice: Choice, seed: int) -> str:
    """One line: how long it took and what it cost."""
    usage, timings = choice.usage, choice.timings
    parts = [
        f"{usage.num_prompt_tokens} prompt tokens ({usage.num_cached_tokens} cached)",
        f"first token after {timings.time_to_first_token_s * 1000:.0f} ms",
        f"{usage.num_completion_tokens} tokens",
    ]
    # The first token's time is the prompt's.
    if usage.num_completion_tokens > 1 and timings.decode_s > 0:
        parts.append(f"{(usage.num_completion_tokens - 1) / timings.decode_s:.1f} tok/s")
    parts += [choice.reason, f"seed {seed}"]
    return " · ".join(parts)


def tell(line: str) -> None:
    """A line for the person, beside the answer."""
    click.echo(line, err=True)
