"""Where headrace keeps its data, and what its server is told. Importing this decides nothing.

Each setting of the server is declared once, in `ServerSettings`; flags, environment variables, the
keys of `headrace.toml` and the page `docs/settings.md` are made from that. What is given in an
earlier place holds:

    flags > HEADRACE_* variables > headrace.toml > the default

A value replaces those of later places as a whole, lists and aliases too.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeAlias

import platformdirs

from headrace.errors import SettingsError

HOME_VARIABLE = "HEADRACE_HOME"
CONFIG_VARIABLE = "HEADRACE_CONFIG"
CONFIG_FILE = "headrace.toml"
DEFAULT_ALIAS = "llama-3.1-8b-instant"
"""The model that guides and examples for Groq's API ask for."""
DEFAULT_EMBEDDING_MODEL = "all-minilm-l6-v2"

_PREFIX = "HEADRACE_"
_OTHER_VARIABLES = {
    HOME_VARIABLE,
    CONFIG_VARIABLE,
    "HEADRACE_API_KEY",
    "HEADRACE_DEBUG",
    "HEADRACE_ISA",
    "HEADRACE_PEER_PYTHON",
    "HEADRACE_TEST_HOME",
}
"""What else headrace, its benchmarks and its tests read."""

# Kubernetes tells every container about a service named `headrace` in variables of these forms.
_SERVICE_VARIABLE = re.compile(r"HEADRACE_(?:SERVICE_\w+|PORT_\d+_\w+)")
_SERVICE_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://")


def home() -> Path:
    """The data folder: `HEADRACE_HOME` if it is set, else the platform's folder for user data.

    Nothing is created; whoever writes makes the folders it needs.
    """
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    return platformdirs.user_data_path("headrace", appauthor=False)


def models_dir() -> Path:
    """The folder of the model files, each under its own `.gguf` name."""
    return home() / "models"


Shape: TypeAlias = Literal["one", "switch", "many", "pairs"]
"""How a flag gives it: once, as `--x/--no-x`, repeated, or repeated as `NAME=VALUE`."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What values a setting takes, and how they are written."""

    allowed: str
    """Ends the sentence "it must be …"."""
    metavar: str
    read: Callable[[Any], Any]
    """The value, from text or as TOML and Python have it. Raises `ValueError` if not allowed."""
    shape: Shape = "one"
    word: str = ""
    """Stands for None, or for nothing, where that is allowed."""


def _text(metavar: str, allowed: str = "text") -> Kind:
    def read(given: Any) -> str:
        if not isinstance(given, str) or not given:
            raise ValueError
        return given

    return Kind(allowed, metavar, read)


def _one_of(*choices: str) -> Kind:
    def read(given: Any) -> str:
        if given not in choices:
            raise ValueError
        return str(given)

    return Kind(f"one of {', '.join(choices)}", "|".join(choices), read)


def _whole(least: int, most: int | None = None, metavar: str = "N") -> Kind:
    def read(given: Any) -> int:
        value = int(given) if isinstance(given, str) else given
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError
        if value < least or (most is not None and value > most):
            raise ValueError
        return value

    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    return Kind(f"a whole number {bounds}", metavar, read)


def _number(metavar: str, allowed: str, is_allowed: Callable[[float], bool]) -> Kind:
    def read(given: Any) -> float:
        value = float(given)
        if isinstance(given, bool) or not is_allowed(value):
            raise ValueError
        return value

    return Kind(allowed, metavar, read)


def _seconds() -> Kind:
    return _number("SECONDS", "a number above 0", lambda value: 0 < value < math.inf)


def _from_0(metavar: str) -> Kind:
    return _number(metavar, "a number of at least 0", lambda value: 0 <= value < math.inf)


def _rate() -> Kind:
    return _number("RATE", "a number above 0, or inf", lambda value: value > 0)


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|k|m|g|ki|mi|gi)b?", re.IGNORECASE)


def _size(least: int = 1) -> Kind:
    def read(given: Any) -> int:
        if isinstance(given, str):
            found = _SIZE.fullmatch(given.strip())
            if found is None:
                raise ValueError
            given = int(float(found[1]) * _UNITS[found[2].lower()])
        if not isinstance(given, int) or isinstance(given, bool) or given < least:
            raise ValueError
        return given

    return Kind("a number of bytes, like 4000000, 4MB or 2GiB", "SIZE", read)


_SPELLINGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _switch() -> Kind:
    def read(given: Any) -> bool:
        value = _SPELLINGS.get(given.lower()) if isinstance(given, str) else given
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Kind("true or false", "", read, "switch")


_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#@\s]+/?", re.IGNORECASE)
_HOST = re.compile(r"[^/?#@\s]+")


def _many(metavar: str, allowed: str, form: re.Pattern[str] | None = None) -> Kind:
    """`form`: what each must look like."""

    def read(given: Any) -> tuple[str, ...]:
        items = [item.strip() for item in given.split(",")] if isinstance(given, str) else given
        if not isinstance(items, (list, tuple)):
            raise ValueError
        if not all(isinstance(item, str) and item for item in items):
            raise ValueError
        if form is not None and not all(map(form.fullmatch, items)):
            raise ValueError
        return tuple(items)

    return Kind(allowed, metavar, read, "many")


def _pairs(metavar: str, allowed: str, word: str) -> Kind:
    """None is for what the server makes of it; `word` is for no pairs at all."""

    def read(given: Any) -> dict[str, str] | None:
        if given is None:
            return None
        if isinstance(given, str):
            given = [] if given == word else given.split(",")
        if not isinstance(given, Mapping):
            given = dict([_pair(item) for item in given])
        if not all(isinstance(part, str) and part for pair in given.items() for part in pair):
            raise ValueError
        return dict(given)

    return Kind(allowed, metavar, read, "pairs", word)


def _pair(text: Any) -> tuple[str, str]:
    name, _, value = text.partition("=") if isinstance(text, str) else ("", "", "")
    return name.strip(), value.strip()


def _or(word: str, kind: Kind) -> Kind:
    """`kind`, or None, which is written as `word`."""

    def read(given: Any) -> Any:
        return None if given is None or given == word else kind.read(given)

    return Kind(f"{kind.allowed}, or {word}", f"{kind.metavar}|{word}", read, word=word)


def _setting(group: str, default: Any, kind: Kind, text: str, *flags: str, shown: str = "") -> Any:
    """A field of `ServerSettings`. `flags` where they are not the name's own; `shown` where the
    default is better said than written."""
    return field(default=default, metadata={"setting": (group, kind, text, flags, shown)})


_LISTENING = "Listening"
_MODELS = "Models"
_ANSWERS = "Answers"
_CONTEXT = "Conversations"
_ACCESS = "Access"
_QUEUE = "Queue and time"
_STREAMS = "Streams that are kept"
_CONVERSATIONS = "Conversations"
_BODIES = "Bodies"
_LOGS = "Logs"
_FAKE = "Fake engine"


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What `headrace serve` is told. Every instance is checked: raises `SettingsError`."""

    host: str = _setting(
        _LISTENING,
        "127.0.0.1",
        _text("HOST", "an address or name of this machine"),
        "The address to listen on. `0.0.0.0` is every IPv4 address of this machine.",
    )
    port: int = _setting(
        _LISTENING,
        8000,
        _whole(0, 65535, "PORT"),
        "The port to listen on; 0 takes a free one.",
    )
    keep_alive_s: float = _setting(
        _LISTENING,
        75.0,
        _seconds(),
        "How long a connection may stay open between two requests. Load balancers and clients "
        "should give up first, so that none asks on a connection that is just being closed.",
    )
    read_timeout_s: float = _setting(
        _LISTENING,
        30.0,
        _seconds(),
        "How long a client may take to send a request whole, from connecting or its first byte on.",
    )
    write_timeout_s: float = _setting(
        _LISTENING,
        60.0,
        _seconds(),
        "How long a client may take nothing of an answer that waits for it; then its connection "
        "ends. A resumable stream goes on without it.",
    )
    drain_timeout_s: float = _setting(
        _LISTENING,
        25.0,
        _from_0("SECONDS"),
        "After SIGTERM or Ctrl-C: how long answers that were begun may take to end, while new "
        "requests get 503. A second signal stops at once.",
    )

    models: tuple[str, ...] = _setting(
        _MODELS,
        (),
        _many("NAME|FILE.gguf", "names of models or paths of .gguf files"),
        "A model to serve: one of `headrace models`, a source to pull from, or a file. Repeat it "
        "for several; the first is the default. They share threads and KV memory evenly.",
        "--model",
        "-m",
        shown="the default model",
    )
    aliases: Mapping[str, str] | None = _setting(
        _MODELS,
        None,
        _pairs("NAME=MODEL", "pairs of NAME=MODEL, or none", "none"),
        "Another name for a model. `*` catches every name that nothing else has. Aliases that are "
        "given replace the default one.",
        "--alias",
        shown=f"`{DEFAULT_ALIAS}` = the first model",
    )
    embedding_model: str | None = _setting(
        _MODELS,
        DEFAULT_EMBEDDING_MODEL,
        _or("none", _text("NAME|FOLDER", "the name or the folder of an embedding model")),
        "The model that answers `/embeddings`, loaded when it is first asked for, and fetched then "
        "if it is not here. `--alias text-embedding-3-small=NAME` gives it another name.",
    )
    engine: str = _setting(
        _MODELS,
        "native",
        _one_of("native", "fake"),
        "`fake` serves a script without a model, on the real scheduler: for tests.",
    )
    threads: int | None = _setting(
        _MODELS,
        None,
        _or("auto", _whole(1, 1024)),
        "Threads that compute, all models together; auto: one a core.",
        shown="auto",
    )
    context_length: int | None = _setting(
        _MODELS,
        None,
        _or("auto", _whole(2)),
        "The most tokens of one prompt and its answer; auto: what each model was made for.",
        shown="auto",
    )
    max_running: int = _setting(
        _MODELS,
        32,
        _whole(1, 256),
        "Answers that each model works on at the same time; more wait.",
    )
    pool_bytes: int | None = _setting(
        _MODELS,
        None,
        _or("auto", _size()),
        "Memory for keys and values, all models together; auto: enough for `max_running` whole "
        "contexts, at most a quarter of what is free.",
        "--pool-size",
        shown="auto",
    )
    bank_disk_bytes: int = _setting(
        _MODELS,
        2_000_000_000,
        _size(0),
        "Disk for the keys and values of conversations, all models together, so that the next turn "
        "of yesterday's is warm; what was used longest ago makes room. They lie in `banks` of the "
        "data folder, for this user's eyes only. 0: none. Not with the fake engine.",
        "--bank-disk",
        shown="2GB",
    )

    strict: bool = _setting(
        _ANSWERS,
        False,
        _switch(),
        "Refuse unknown and unsupported fields as Groq does, instead of naming them in "
        "`x-headrace-ignored`.",
    )
    stream_by_default: bool = _setting(
        _ANSWERS,
        False,
        _switch(),
        "Stream where a request does not say; else only where it accepts `text/event-stream`.",
    )

    context: str = _setting(
        _CONTEXT,
        "full",
        _one_of("full", "sliding_window", "summary", "retrieval"),
        "How a conversation becomes a prompt where neither request nor conversation says it; "
        "`/api/chat` slides.",
    )
    context_tokens: int = _setting(
        _CONTEXT,
        4096,
        _whole(16),
        "The most tokens of a prompt where a strategy leaves something out and nobody says how "
        "many.",
    )
    context_fallback: str | None = _setting(
        _CONTEXT,
        None,
        _or("none", _one_of("sliding_window", "summary", "retrieval")),
        "The strategy where `full` does not fit and the request names none; none: an error.",
        shown="none",
    )
    summary_model: str | None = _setting(
        _CONTEXT,
        None,
        _or("same", _text("MODEL|none", "the name of a served model, none")),
        "The model that writes summaries, between turns; same: the one that answers; none: no "
        "model, they are sentences that were said.",
        shown="same",
    )

    retrieval_timeout_s: float = _setting(
        _CONTEXT,
        2.0,
        _seconds(),
        "How long a question waits for what may answer it; what comes later is done without.",
    )

    limits: str = _setting(
        _ACCESS,
        "none",
        _text("none|groq-free|FILE", "none, groq-free, or the path of a file"),
        "Rate limits of each key: none, Groq's free tier, or a file of your own.",
    )
    insecure: bool = _setting(
        _ACCESS,
        False,
        _switch(),
        "Listen beyond this machine without any key. Whoever reaches the port can use it; web "
        "pages of other hosts cannot, but for one whose own name was made to mean this server.",
    )
    cors_origins: tuple[str, ...] = _setting(
        _ACCESS,
        (),
        _many("ORIGIN", "origins like https://app.example.com, or *", _ORIGIN),
        "A web page's origin that may call the server from a browser.",
        "--cors-origin",
        shown="none",
    )
    allowed_hosts: tuple[str, ...] = _setting(
        _ACCESS,
        (),
        _many("HOST", "host names, or *", _HOST),
        "A further `Host` that requests may name, for a server behind a name of its own.",
        "--allowed-host",
        shown="those of the address listened on",
    )

    max_pending: int = _setting(
        _QUEUE,
        1024,
        _whole(1),
        "Requests that may run or wait, for each model; more get 503.",
    )
    max_queue_s: float = _setting(
        _QUEUE,
        20.0,
        _seconds(),
        "How long the prompts that wait may take to compute, at the measured rate; more get 503. "
        "Clients commonly give up after 30 s, and work for them would be lost.",
        "--max-queue",
    )
    queue_timeout_s: float | None = _setting(
        _QUEUE,
        30.0,
        _or("never", _seconds()),
        "How long a request may wait for its first step; then it gets 503.",
    )
    first_token_timeout_s: float | None = _setting(
        _QUEUE,
        60.0,
        _or("never", _seconds()),
        "How long the first token may take from the first step; then 504.",
    )
    stall_timeout_s: float | None = _setting(
        _QUEUE,
        30.0,
        _or("never", _seconds()),
        "How long a further token may take; then the stream ends with an error.",
    )
    total_timeout_s: float | None = _setting(
        _QUEUE,
        600.0,
        _or("never", _seconds()),
        "How long a whole answer may take.",
    )

    stream_ttl_s: float = _setting(
        _STREAMS,
        600.0,
        _seconds(),
        "How long a resumable stream is kept after its end; then its readers get 410.",
        "--stream-ttl",
    )
    orphan_timeout_s: float = _setting(
        _STREAMS,
        60.0,
        _seconds(),
        "How long a resumable stream goes on while nobody reads it; then it is stopped.",
        "--orphan-timeout",
    )
    socket_idle_s: float = _setting(
        _STREAMS,
        600.0,
        _seconds(),
        "How long a WebSocket stays open on which nothing is asked or answered.",
        "--socket-idle",
    )
    socket_answers: int = _setting(
        _STREAMS,
        64,
        _whole(1),
        "Answers at a time over one WebSocket, and inputs that were not committed; more are "
        "refused.",
        "--socket-answers",
    )
    heartbeat_s: float = _setting(
        _STREAMS,
        15.0,
        _seconds(),
        "How often a silent resumable stream says that it lives.",
        "--heartbeat",
    )
    max_streams: int = _setting(
        _STREAMS,
        10_000,
        _whole(1),
        "Resumable streams kept at the same time; the ones that ended first make room.",
    )
    stream_memory_bytes: int = _setting(
        _STREAMS,
        256_000_000,
        _size(),
        "Memory for resumable streams, about; what does not fit goes to disk, or makes room where "
        "there is none (`--durability off`).",
        "--stream-memory",
        shown="256MB",
    )
    stream_disk_bytes: int = _setting(
        _STREAMS,
        2_000_000_000,
        _size(),
        "Disk for streams that do not fit into memory; the ones that ended first make room, and "
        "one that runs fails where it takes more than an eighth.",
        "--stream-disk",
        shown="2GB",
    )

    durability: str = _setting(
        _STREAMS,
        "write",
        _one_of("write", "fsync", "off"),
        "What resumable streams and answers under an `Idempotency-Key` survive: `write` the death "
        "of the server, `fsync` that of the machine as well, `off` neither. They are kept in "
        "`streams` of the data folder, until they are gone. Not with the fake engine.",
    )

    database: str | None = _setting(
        _CONVERSATIONS,
        None,
        _or("file", _text("URL", "a URL like postgresql://user@host/name or sqlite:///FILE")),
        "Where conversations are kept: PostgreSQL (`pip install 'headrace[postgres]'`), or a file "
        "of SQLite. A URL with a password belongs into the environment.",
        shown="`conversations.db` in the data folder",
    )
    conversation_ttl_s: float | None = _setting(
        _CONVERSATIONS,
        None,
        _or("never", _seconds()),
        "How long a conversation is kept after its last use; then it is deleted. Responses that "
        "belong to none are kept for 30 days at most.",
        "--conversation-ttl",
        shown="never",
    )
    max_conversation_messages: int = _setting(
        _CONVERSATIONS,
        10_000,
        _whole(1),
        "The most messages of one conversation.",
    )

    max_body_bytes: int = _setting(
        _BODIES,
        4_000_000,
        _size(),
        "The longest body that is read; a longer one gets 413.",
        shown="4MB",
    )
    max_messages: int = _setting(_BODIES, 2048, _whole(1), "Messages in one request.")
    max_tools: int = _setting(_BODIES, 128, _whole(0), "Tools in one request.")
    max_depth: int = _setting(
        _BODIES, 64, _whole(8, 200), "How deeply objects and lists may nest in a body."
    )

    log_format: str = _setting(
        _LOGS,
        "auto",
        _one_of("auto", "json", "pretty"),
        "One line a request on stderr; auto: pretty on a terminal, else JSON.",
    )
    log_level: str = _setting(
        _LOGS, "info", _one_of("debug", "info", "warning", "error"), "The least that is logged."
    )
    log_prompts: bool = _setting(
        _LOGS,
        False,
        _switch(),
        "Log prompts and answers too. They may be nobody's business but the user's.",
    )

    fake_text: str = _setting(
        _FAKE,
        "The channel carries fast water to the wheel, and the wheel turns the stone. "
        "What the river brings in the morning is flour in the evening.",
        _text("TEXT"),
        "What the fake engine answers.",
        shown="two sentences",
    )
    fake_tokens_per_s: float = _setting(
        _FAKE,
        300.0,
        _rate(),
        "Tokens a second of one stream; inf does not wait.",
        "--fake-rate",
    )
    fake_prefill_tokens_per_s: float = _setting(
        _FAKE,
        3000.0,
        _rate(),
        "Prompt tokens a second; inf does not wait.",
        "--fake-prefill-rate",
    )
    fake_batch_cost: float = _setting(
        _FAKE,
        0.14,
        _from_0("SHARE"),
        "How much longer a step takes for each further stream, as a share of one stream's step.",
    )

    def __post_init__(self) -> None:
        for setting in SETTINGS:
            value = setting.read(getattr(self, setting.name), "")
            object.__setattr__(self, setting.name, value)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its name is its key in `headrace.toml`."""

    name: str
    group: str
    kind: Kind
    default: Any
    text: str
    flags: tuple[str, ...]
    """`--flag`, and `-f` where it has a short one."""
    shown: str
    """The default, for people."""

    @property
    def variable(self) -> str:
        return _variable(self.name)

    def read(self, given: object, source: str) -> Any:
        """The value that was `given`. Raises `SettingsError`, which names `source`."""
        try:
            return self.kind.read(given)
        except (ValueError, TypeError, OverflowError):
            # Flags that can be repeated come as tuples, which nobody wrote.
            shown = ", ".join(map(repr, given)) if isinstance(given, tuple) else repr(given)
            shown = shown if len(shown) <= 60 else shown[:57] + "…"
            place = f"{source}: " if source else ""
            raise SettingsError(
                f"{place}`{self.name}` must be {self.kind.allowed}, not {shown}", param=self.name
            ) from None


def _variable(name: str) -> str:
    return _PREFIX + name.upper()


def _settings() -> Iterator[Setting]:
    for each in fields(ServerSettings):
        group, kind, text, flags, shown = each.metadata["setting"]
        own = "--" + each.name.removesuffix("_s").removesuffix("_bytes").replace("_", "-")
        yield Setting(
            each.name,
            group,
            kind,
            each.default,
            text,
            flags or (own,),
            shown or _shown(each.default),
        )


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


SETTINGS: tuple[Setting, ...] = tuple(_settings())
"""All settings of the server, in the order of the page."""

_BY_NAME = {setting.name: setting for setting in SETTINGS}


def server_settings(
    flags: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    config: Path | None = None,
) -> ServerSettings:
    """What the server is told, all places together. `flags` holds those that were given, by the
    name of their setting; `environ` is the process's own where it is None; `config` is another file
    than `headrace.toml` in the working directory.

    Raises `SettingsError`, naming the setting, the place and what is allowed.
    """
    environ = os.environ if environ is None else environ
    values = _from_file(_config_path(config, environ))
    values |= _from_environment(environ)
    for name, given in (flags or {}).items():
        setting = _known(name, "the flags")
        values[name] = setting.read(given, setting.flags[0])
    return ServerSettings(**values)


def _config_path(config: Path | None, environ: Mapping[str, str]) -> Path | None:
    if config is None and (named := environ.get(CONFIG_VARIABLE)):
        config = Path(named)
    if config is not None:
        return config.expanduser()
    return Path(CONFIG_FILE) if Path(CONFIG_FILE).is_file() else None


def _from_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    import tomllib  # not for those who have no such file

    try:
        given = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise SettingsError(f"{path}: {error}") from error
    for name, value in given.items():
        if isinstance(value, dict) and name not in _BY_NAME:
            raise SettingsError(
                f"{path}: settings stand outside of tables; take them out of `[{name}]`", param=name
            )
    return {name: _known(name, str(path)).read(given[name], str(path)) for name in given}


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, given in environ.items():
        if not variable.startswith(_PREFIX) or variable in _OTHER_VARIABLES:
            continue
        if _SERVICE_VARIABLE.fullmatch(variable) or not given:
            continue  # An empty variable is how many tools say: not set.
        if variable == "HEADRACE_PORT" and _SERVICE_ADDRESS.match(given):
            continue
        name = variable.removeprefix(_PREFIX).lower()
        setting = _known(name, "the environment", _variable)
        values[setting.name] = setting.read(given, variable)
    return values


def _known(name: str, source: str, spelled: Callable[[str], str] = str) -> Setting:
    """The setting of that name. Raises `SettingsError` with the nearest one, as it is `spelled` in
    that source."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    near = get_close_matches(name.lower(), _BY_NAME, n=1, cutoff=0.5)
    meant = f"; did you mean `{spelled(near[0])}`?" if near else "; see `headrace serve --help`"
    raise SettingsError(f"{source}: there is no setting `{spelled(name)}`{meant}", param=name)


def document() -> str:
    """The page `docs/settings.md`."""
    lines = [*_INTRODUCTION]
    for group in dict.fromkeys(setting.group for setting in SETTINGS):
        lines += ["", f"## {group}", "", "| setting | flag | default | |", "|---|---|---|---|"]
        lines += [_row(setting) for setting in SETTINGS if setting.group == group]
    return "\n".join([*lines, "", *_LIMITS_FILE]) + "\n"


def _row(setting: Setting) -> str:
    flags = ", ".join(f"`{flag}`" for flag in setting.flags)
    shown = setting.shown if "`" in setting.shown or " " in setting.shown else f"`{setting.shown}`"
    text = f"{setting.text} Takes {setting.kind.allowed}.".replace("|", "\\|")
    return f"| `{setting.name}` | {flags} | {shown} | {text} |"


_INTRODUCTION = (
    "# Settings of `headrace serve`",
    "",
    "Each can be given in three places; what is given in an earlier one holds, as a whole:",
    "",
    "1. a flag: `--port 9000`; lists by repeating it: `--model a --model b`;",
    "   yes and no: `--strict`, `--no-strict`; no aliases at all: `--no-aliases`",
    "2. an environment variable, `HEADRACE_` and the setting's name: `HEADRACE_PORT=9000`,",
    "   `HEADRACE_MODELS=a,b`, `HEADRACE_ALIASES=fast=a,*=b`; an empty one counts as not set",
    "3. `headrace.toml` in the working directory, or the file of `--config` or `HEADRACE_CONFIG`:",
    '   `port = 9000`, `models = ["a", "b"]`, `aliases = { fast = "a", "*" = "b" }`',
    "",
    "Relative paths start at the working directory. A setting that does not exist is an error, in",
    "all three. `headrace serve --check` checks everything and exits with 0 or 2.",
    "",
    "Data is kept in `HEADRACE_HOME`, else in the platform's folder for user data: models, keys,",
    "conversations (`conversations.db`), their keys and values (`banks`) and streams (`streams`).",
)
_LIMITS_FILE = (
    "## A file of limits",
    "",
    "`--limits FILE` takes a `.toml` file, or a `.json` one of the same shape. Each limit is a",
    "whole number and holds for each key and model by itself; one that is not named is not set.",
    "",
    "```toml",
    "[default]                           # models without a row of their own; may be left out",
    "rpm = 30                            # requests per minute",
    "rpd = 14400                         # requests per day",
    "tpm = 6000                          # tokens per minute",
    "tpd = 500000                        # tokens per day",
    "",
    '[models."llama-3.3-70b-versatile"]  # a model as clients ask for it',
    "rpm = 30",
    "tpm = 12000",
    "```",
)
