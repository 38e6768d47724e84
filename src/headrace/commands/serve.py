"""`headrace serve`: Groq's streaming API, from this machine."""

from __future__ import annotations

import asyncio
import gc
import json
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from headrace import __version__
from headrace.commands.telling import WrongUsage
from headrace.errors import CannotListen, HeadraceError, InvalidRequest, SettingsError
from headrace.settings import SETTINGS, ServerSettings, Setting, server_settings

if TYPE_CHECKING:
    import socket

    from headrace.server.models import ModelNames
    from headrace.server.run import Runner
    from headrace.server.serving import Serving

_F = TypeVar("_F", bound=Callable[..., Any])

INTERRUPTED = 130
_GROUPS = {setting.name: setting.group for setting in SETTINGS}


class _Grouped(click.Command):
    """Its help shows the settings under the headings of their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                group = _GROUPS.get(param.name or "", "Options")
                sections.setdefault(group, []).append(record)
        for heading in (*dict.fromkeys(_GROUPS.values()), "Options"):
            with formatter.section(heading):
                formatter.write_dl(sections[heading])


def _setting_options(command: _F) -> _F:
    """An option for each setting. What it was given is read by the setting itself."""
    for setting in reversed(SETTINGS):
        command = _option(setting)(command)
    return command


def _option(setting: Setting) -> Callable[[_F], _F]:
    text = f"{setting.text}  [default: {setting.shown.replace('`', '')}]"
    flags, name = setting.flags, setting.name
    match setting.kind.shape:
        case "switch":
            both = f"{flags[0]}/--no-{flags[0].removeprefix('--')}"
            return click.option(both, name, default=None, help=text)
        case "many" | "pairs":
            return click.option(
                *flags, name, multiple=True, metavar=setting.kind.metavar, help=text
            )
        case _:
            return click.option(*flags, name, metavar=setting.kind.metavar, help=text)


@click.command(cls=_Grouped, short_help="Serve models over Groq's streaming API.")
@_setting_options
@click.option("--no-aliases", is_flag=True, help="No other names for models, not even the default.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A file of settings instead of ./headrace.toml.",
)
@click.option("--check", is_flag=True, help="Check all settings, say what is wrong, and exit.")
def serve(config: Path | None, check: bool, no_aliases: bool, **given: Any) -> None:
    """Serve models over Groq's streaming API, which OpenAI's clients speak as well.

    Clients need the base URL only: http://127.0.0.1:8000/openai/v1 for OpenAI's,
    http://127.0.0.1:8000 for Groq's. The default model is fetched on first use.

    \b
    Examples:
      headrace serve
      headrace serve --port 9000 --model my.gguf --alias 'gpt-4o=my'
      headrace serve --alias '*=smollm2-135m-instruct'  any model name will do
      headrace serve --alias 'text-embedding-3-small=all-minilm-l6-v2'
      headrace serve --limits groq-free                 429 as on Groq's free tier
      headrace serve --engine fake --fake-text "Hi."    for tests, without a model
      headrace keys create me && headrace serve --host 0.0.0.0
      headrace serve --check                            0 if all is well, else 2

    Each setting may also stand in headrace.toml (`port = 9000`) or in the environment
    (HEADRACE_PORT=9000); flags come first, then the environment, then the file.

    Ctrl-C or SIGTERM lets answers that were begun end; a second one stops at once.
    """
    try:
        settings = server_settings(_flags(given, no_aliases), config=config)
        serving = _prepared(settings)
    except (SettingsError, InvalidRequest) as error:
        raise WrongUsage(error.message) from error
    if check:
        _tell_check(serving)
        return
    for problem in _problems(serving, of_all=False):
        raise problem
    _run(serving)


def _flags(given: dict[str, Any], no_aliases: bool) -> dict[str, Any]:
    """What was really given."""
    flags = {name: value for name, value in given.items() if value is not None and value != ()}
    if no_aliases:
        if "aliases" in flags:
            raise click.UsageError("--alias and --no-aliases contradict each other; drop one.")
        flags["aliases"] = "none"
    return flags


def _prepared(settings: ServerSettings) -> Serving:
    """The server's parts, with nothing loaded. Raises `SettingsError` and `InvalidRequest` for all
    that can be wrong but the models."""
    from headrace.server.access import check_binding
    from headrace.server.serving import Serving

    if settings.database is not None:
        from headrace.conversations.reaching import database_url  # which takes a while to import

        database_url(settings.database)
    serving = Serving(settings)
    check_binding(settings.host, not serving.access.is_open, settings.insecure)
    return serving


def _problems(serving: Serving, *, of_all: bool) -> list[HeadraceError]:
    """What is wrong with the models; with those that are loaded at once, which says it too, only
    where `of_all`."""
    from headrace.server.embedders import check_embedder
    from headrace.server.models import check_models

    if serving.settings.engine == "fake":
        return []
    problems = check_models(serving.registry.names) if of_all else []
    return problems + check_embedder(serving.embedders.names)


def _unreachable(host: str) -> list[HeadraceError]:
    """What keeps the server from listening there. The port may be in use: by the server whose
    settings are being checked, as a rule."""
    from headrace.server.run import close_all, listen

    try:
        close_all(listen(host, 0))
    except CannotListen as error:
        return [error]
    return []


def _tell_check(serving: Serving) -> None:
    problems = [*_problems(serving, of_all=True), *_unreachable(serving.settings.host)]
    for problem in problems:
        click.echo(f"headrace: {problem.message}", err=True)
    if problems:
        sys.exit(2)
    names = serving.registry.names
    settings = serving.settings
    click.echo(
        f"All is well: {', '.join(names.sources)}, for embeddings: "
        f"{serving.embedders.names.id or 'none'}, at {_url(settings.host, settings.port)}, "
        f"aliases: {_aliases(names) or 'none'}, limits: {settings.limits}"
    )


def _run(serving: Serving) -> None:
    from headrace.observe.logs import configure
    from headrace.server.run import Runner, close_all, listen

    settings = serving.settings
    sockets = listen(settings.host, settings.port)
    try:
        _fetch_missing(serving)
        configure(_log_format(settings.log_format), settings.log_level)
        serving.open_streams()
        serving.conversations.expect()
        loading = _Loading(serving)
        loading.start()
        runner = _runner(serving, Runner)
        loading.belongs_to(runner)

        def on_started() -> None:
            _welcome(serving, sockets)
            loading.may_tell(asyncio.get_running_loop())

        came = runner.run(sockets, on_started)
    finally:
        close_all(sockets)
        serving.registry.close()
    loading.join()
    # The models are garbage now, which is found again at the interpreter's end.
    gc.unfreeze()
    serving.durable.close()
    serving.memories.stop()
    serving.conversations.close()
    if loading.error is not None:
        raise loading.error
    if came is signal.SIGINT:
        sys.exit(INTERRUPTED)


def _runner(serving: Serving, make: type[Runner]) -> Runner:
    from headrace.server.app import create_app

    settings = serving.settings
    return make(
        create_app(serving),
        serving,
        drain_timeout_s=settings.drain_timeout_s,
        keep_alive_s=settings.keep_alive_s,
        read_timeout_s=settings.read_timeout_s,
        write_timeout_s=settings.write_timeout_s,
        max_message_bytes=settings.max_body_bytes,
        cut=serving.registry.close,
    )


def _log_format(named: str) -> Any:
    if named != "auto":
        return named
    return "pretty" if sys.stderr.isatty() else "json"


def _fetch_missing(serving: Serving) -> None:
    """Bring models that are not here yet, with a progress bar."""
    from headrace.server.models import is_missing

    if serving.settings.engine == "fake":
        return
    for model_id, named in serving.registry.names.sources.items():
        if is_missing(named):
            from headrace.commands.progress import showing
            from headrace.model import pull

            with showing(model_id) as report:
                pull.ensure(named, report)


class _Loading(threading.Thread):
    """Loads the models beside the server, which answers meanwhile that it is not ready. A model
    that cannot be loaded ends the server."""

    def __init__(self, serving: Serving) -> None:
        super().__init__(name="headrace-loading", daemon=True)
        self._serving = serving
        self._runner: Runner | None = None
        self._began_at = time.perf_counter()
        self._may_tell = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.error: BaseException | None = None

    def belongs_to(self, runner: Runner) -> None:
        """Whom to stop. A failure that came before stops it as well."""
        self._runner = runner
        if self.error is not None:
            runner.stop()

    def may_tell(self, loop: asyncio.AbstractEventLoop) -> None:
        """The welcome is over, and the server runs on `loop`."""
        self._loop = loop
        self._may_tell.set()

    def run(self) -> None:
        from headrace.observe import logs
        from headrace.server.reviving import made_ready, revive

        serving = self._serving
        is_database_named = serving.settings.database is not None
        try:
            if is_database_named:  # without it, nothing is served
                serving.open_conversations()
            serving.load()
            self._tell_ready()
            logs.warm_up()  # soonest: the first answer has a line
            if not is_database_named:
                serving.open_conversations()
            self._soon(revive, serving, made_ready(serving))
            self._soon(serving.conversations.tend)
            serving.warm_up()
        except BaseException as error:
            self._fail(error)
            return
        # Models and modules stay: looking through them for garbage took tens of milliseconds.
        gc.freeze()

    def _tell_ready(self) -> None:
        seconds = time.perf_counter() - self._began_at
        self._may_tell.wait()
        with suppress(OSError):  # who started it reads no more, which ends no server
            click.echo(f"Ready after {seconds:.1f} s. Ctrl-C stops it.")

    def _soon(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do that on the server's loop."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(work, *arguments)

    def _fail(self, error: BaseException) -> None:
        if self._serving.is_draining:
            return  # Nobody waits for the models any more.
        self.error = error
        if self._runner is not None:
            self._runner.stop()


def _welcome(serving: Serving, sockets: list[socket.socket]) -> None:
    """What a person needs to know to begin."""
    settings, names = serving.settings, serving.registry.names
    url = _url(settings.host, sockets[0].getsockname()[1])
    lines = [
        f"headrace {__version__} serves at {url}/openai/v1 and {url}/v1",
        f"Models:  {', '.join(names.sources)}",
        f"Aliases: {_aliases(names) or 'none'}",
        f"Embeddings: {_embeddings(serving)}",
    ]
    if settings.engine == "fake":
        lines.append("The engine is fake: it says its script, whatever it is asked.")
    click.echo("\n".join([*lines, "", "Try it:", f"  {_curl(serving, url)}", ""]))


def _embeddings(serving: Serving) -> str:
    names = serving.embedders.names
    if not names.id:
        return "none"
    told = [names.id, *(f"{alias} means {names.id}" for alias in names.aliases)]
    return f"{', '.join(told)}, loaded when asked for"


def _aliases(names: ModelNames) -> str:
    told = [f"{alias} means {meant}" for alias, meant in names.aliases.items()]
    if names.catch_all is not None:
        told.append(f"every other name means {names.catch_all}")
    return ", ".join(told)


def _curl(serving: Serving, url: str) -> str:
    names = serving.registry.names
    model = next(iter(names.aliases), names.default)
    question = {
        "model": model,
        "stream": True,
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
    }
    body = shlex.quote(json.dumps(question, ensure_ascii=False, separators=(",", ":")))
    key = "" if serving.access.is_open else "-H 'Authorization: Bearer YOUR_KEY' "
    return f"curl -N {url}/v1/chat/completions {key}-d {body}"


def _url(host: str, port: int) -> str:
    """Where a client on this machine reaches it."""
    here = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    if ":" in here and not here.startswith("["):
        here = f"[{here}]"
    return f"http://{here}:{port}"
