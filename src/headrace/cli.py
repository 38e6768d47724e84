"""The `headrace` command: which commands there are, and how errors are told.

In: arguments. Out: an exit code. Thread: the process's main one.
Next: `commands/`, each imported only when it is called.

0 is success, 1 an error that was raised on purpose or a reader of our output that has gone (click's
part), 2 wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import sys
from difflib import get_close_matches
from importlib import import_module

import click

from headrace import __version__
from headrace.errors import HeadraceError

_COMMANDS = {
    # name: (module, what it does)
    "serve": ("headrace.commands.serve", "Serve Groq's streaming API on this machine."),
    "chat": ("headrace.commands.chat", "Talk to a model in the terminal."),
    "generate": ("headrace.commands.generate", "Answer one prompt, streaming to stdout."),
    "pull": ("headrace.commands.models", "Fetch a model to this machine."),
    "models": ("headrace.commands.models", "List the models that are here and that can be had."),
    "keys": ("headrace.commands.keys", "Make, list and revoke keys for the server."),
    "doctor": ("headrace.commands.doctor", "Look at this machine: how fast could it be?"),
    "bench": ("headrace.commands.bench", "Measure speed, ours and llama.cpp's."),
}

INTERRUPTED = 130


class _Commands(click.Group):
    """A group that knows its commands by heart and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            near = get_close_matches(cmd_name, _COMMANDS, n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"There is no command {cmd_name!r}.{meant}")
        module, _ = _COMMANDS[cmd_name]
        command = getattr(import_module(module), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="headrace %(version)s")
def cli() -> None:
    """Run language models on your own machine, fast, as a stream.

    \b
    Examples:
      headrace serve                           Groq's API at http://127.0.0.1:8000
      headrace chat                            talk to the default model
      headrace generate "Why is the sky blue?"
      echo "Summarize: ..." | headrace generate -
      headrace generate --model my.gguf --temperature 0.7 --seed 1 "A haiku"
      headrace pull hf:Qwen/Qwen3-0.6B-GGUF:Q8_0
      headrace doctor                          how fast could this machine be?

    The default model is fetched on first use. `headrace COMMAND --help` says more.
    """


def main() -> None:
    """The entry point: run, and end with the right exit code and at most one line about it."""
    is_debugging = bool(os.environ.get("HEADRACE_DEBUG"))
    if not is_debugging:
        logging.getLogger("headrace").addHandler(logging.NullHandler())
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows a question mark, and the answer goes on.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except HeadraceError as error:
        if is_debugging:
            raise
        _tell(error.message)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)


def _tell(message: str) -> None:
    click.echo(f"headrace: {message}", err=True)
