"""`headrace generate`: one prompt, one answer, streamed to stdout."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from headrace.commands.options import model_options, sampling_options
from headrace.commands.session import describe, open_engine, tell
from headrace.engine.request import Request

if TYPE_CHECKING:
    from headrace.engine.stream import Generation


@click.command(short_help="Answer one prompt, streaming to stdout.")
@click.argument("prompt", metavar="PROMPT")
@model_options
@sampling_options
@click.option("--raw", is_flag=True, help="Go on from PROMPT as it is, without a chat template.")
@click.option("--stats", is_flag=True, help="Afterwards, say on stderr how long it took.")
def generate(
    prompt: str,
    model: str | None,
    threads: int | None,
    system: str | None,
    raw: bool,
    stats: bool,
    **settings: Any,
) -> None:
    """Answer PROMPT; `-` reads it from stdin.

    The prompt goes through the model's chat template, and the answer comes as it is generated.

    \b
    Examples:
      headrace generate "Why is the sky blue?"
      headrace generate --system "Answer in French." --stats "Why is it blue?"
      headrace generate --temperature 0.8 --top-p 0.95 --seed 7 "A story"
      headrace generate --raw --stop $'\\n' "The three primary colours are"
      git diff | headrace generate - --system "Write a commit message."
    """
    text = _read_stdin() if prompt == "-" else prompt
    request = _request(text, system, raw, settings)
    with open_engine(model, threads) as engine, engine.generate_sync(request) as generation:
        try:
            _write(generation)
        except KeyboardInterrupt:
            generation.cancel()
            tell("")
            if stats:
                tell(describe(generation.choice, generation.seed))
            raise
        if stats:
            tell(describe(generation.choice, generation.seed))


def _request(text: str, system: str | None, raw: bool, settings: dict[str, Any]) -> Request:
    if not raw:
        messages = [{"role": "system", "content": system}] if system is not None else []
        return Request(messages=[*messages, {"role": "user", "content": text}], **settings)
    if system is not None:
        raise click.UsageError("--raw writes no system message; put it into the prompt")
    return Request(prompt=text, **settings)


def _read_stdin() -> str:
    text = sys.stdin.buffer.read()
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"stdin is not UTF-8: {error}") from None


def _write(generation: Generation) -> None:
    last = "\n"
    for piece in generation:
        sys.stdout.write(piece)
        sys.stdout.flush()
        last = piece
    if not last.endswith("\n"):
        sys.stdout.write("\n")
        sys.stdout.flush()
