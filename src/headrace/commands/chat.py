"""`headrace chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from headrace.commands.options import model_options, sampling_options
from headrace.commands.session import describe, open_engine, tell
from headrace.engine.request import Request
from headrace.engine.turns import Turns
from headrace.errors import ContextLengthExceeded, EngineClosed, HeadraceError

if TYPE_CHECKING:
    from headrace.engine.engine import Engine
    from headrace.engine.stream import Generation

HELP = """\
/help          this
/reset         forget the conversation
/system TEXT   begin anew with this system message; without TEXT, with none
/stats         show figures after each answer, or no more
/quit          leave, as Ctrl-D does
Ctrl-C         stop the answer"""


@click.command(short_help="Talk to a model in the terminal.")
@model_options
@sampling_options
@click.option("--stats", is_flag=True, help="Show figures after each answer.")
def chat(
    model: str | None,
    threads: int | None,
    system: str | None,
    stats: bool,
    **settings: Any,
) -> None:
    """Talk to a model in the terminal.

    Each turn computes only what is new. Ctrl-C stops an answer, Ctrl-D leaves; `/help` lists what
    else can be said.

    \b
    Examples:
      headrace chat
      headrace chat --model my.gguf --temperature 0.7 --stats
      headrace chat --system "You are a pirate."
    """
    Request(prompt="checked before the model is loaded", **settings)
    with open_engine(model, threads) as engine:
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            import readline  # noqa: F401  # gives `input` its editing and history

            tell(_banner(engine))
        room = Chat(engine, settings, system=system, shows_stats=stats)
        room.run(input if is_terminal else _read_line)


class Chat:
    """A conversation: lines in, answers out. `run` it with a function that reads a line."""

    def __init__(
        self, engine: Engine, settings: dict[str, Any], *, system: str | None, shows_stats: bool
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._system = system
        self._shows_stats = shows_stats
        self._turns = self._new_turns()
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: tell(HELP),
            "/reset": lambda _: self._reset(),
            "/system": self._begin_anew,
            "/stats": lambda _: self._switch_stats(),
        }

    def run(self, read_line: Callable[[str], str]) -> None:
        """Until the reader ends, or `/quit`."""
        while True:
            try:
                line = read_line("> ").strip()
            except EOFError:
                tell("")
                return
            except KeyboardInterrupt:
                tell("\n(Ctrl-D leaves)")
                continue
            if line == "/quit":
                return
            try:
                self._take(line)
            except KeyboardInterrupt:  # a second Ctrl-C, while the first one takes effect
                tell("")

    def _take(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if not word:
            return
        if word in self._commands:
            self._commands[word](rest.strip())
        elif word.startswith("/") and word[1:].isalpha():
            tell(f"{word} is no command; /help lists them")
        else:
            self._answer(line)

    def _answer(self, text: str) -> None:
        try:
            prompt_ids = self._turns.prompt_for(text)
            request = Request(token_ids=prompt_ids, **self._settings)
            with self._engine.generate_sync(request) as generation:
                self._show(generation)
                choice = generation.choice
        except ContextLengthExceeded:
            tell(
                f"That is more than the {self._engine.context_length} tokens that fit, with the "
                f"{self._turns.num_tokens} so far; /reset forgets the conversation"
            )
            return
        except EngineClosed:
            raise
        except HeadraceError as error:
            tell(f"headrace: {error.message}")
            return
        if choice.token_ids:
            self._turns.answered(text, prompt_ids, choice.text, choice.token_ids)
        if self._shows_stats:
            tell(describe(choice, generation.seed))

    def _show(self, generation: Generation) -> None:
        """Write the answer; Ctrl-C stops it, and what was said stays said."""
        try:
            _write(generation)
        except KeyboardInterrupt:
            generation.cancel()
            _write(generation)  # what was said before that took effect
        _write("\n")

    def _reset(self) -> None:
        self._turns = self._new_turns()
        tell("The conversation is forgotten.")

    def _begin_anew(self, system: str) -> None:
        self._system = system or None
        self._turns = self._new_turns()
        tell("A new conversation, " + ("with that system message." if system else "without one."))

    def _switch_stats(self) -> None:
        self._shows_stats = not self._shows_stats
        tell(f"Figures are {'shown' if self._shows_stats else 'not shown'} after each answer.")

    def _new_turns(self) -> Turns:
        return Turns(self._engine.tokenizer, self._engine.template, self._system)


def _write(pieces: Iterable[str]) -> None:
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()


def _banner(engine: Engine) -> str:
    spec = engine.spec
    return (
        f"{spec.name} · {spec.quantization} · {spec.isa}, {spec.num_threads} threads · "
        f"{engine.context_length} tokens of context\n"
        "/help for help, Ctrl-C stops an answer, Ctrl-D leaves"
    )


def _read_line(prompt: str) -> str:
    """For input that is no terminal: no prompt, no echo."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
