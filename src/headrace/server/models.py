"""The models behind the server: what a request's `model` means, and which there are.

In: a model id, as asked for. Out: a `ServedModel`. Thread: the event loop, `load` beside it.
Next: `engine/engine.py`.

An id is looked for among the models, then the aliases, then the catch-all alias `*`. The names are
known from the start; a model that is still loading is refused with `ModelLoading`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from headrace.engine.engine import Engine, EngineConfig
from headrace.engine.memory import MAX_SHARE, free_memory
from headrace.engine.parking.parking import ParkingConfig
from headrace.engine.scheduler import SchedulerConfig
from headrace.errors import (
    EngineClosed,
    HeadraceError,
    ModelLoading,
    ModelNotFound,
    SettingsError,
)
from headrace.model import catalogue
from headrace.model.sources import spec as sources
from headrace.server.embedders import embedder_names, without_embedder
from headrace.settings import DEFAULT_ALIAS, ServerSettings, home
from headrace.wire.ids import fingerprint
from headrace.wire.model_cards import ModelCard

BANKS_FOLDER = "banks"
"""In the data folder."""
CATCH_ALL = "*"
FAKE_MODEL = "fake"
OWNER = "headrace"
RETRY_LOADING_S = 2.0
"""A guess: small models load faster, large ones do not."""
_MAX_SHOWN = 200


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model that answers."""

    id: str
    engine: Engine
    created: int
    """Unix seconds."""
    owned_by: str
    context_window: int
    """The most tokens of one prompt and its answer."""
    max_completion_tokens: int
    fingerprint: str
    """`fp_…`: the same wherever equal seeds give equal answers."""
    style: Any = None
    """How its answers are read, as whoever made the registry wants it."""


NO_SUMMARY_MODEL = "none"
"""The `summary_model` that asks none."""


@dataclass(frozen=True, slots=True)
class ModelNames:
    """What may be asked for, known before any model is loaded."""

    sources: Mapping[str, str]
    """Model id → what the settings call it: a name, a source or a file. The default comes first."""
    aliases: Mapping[str, str]
    """Other name → model id, without the catch-all."""
    catch_all: str | None = None
    """The model id that answers for every other name."""

    @property
    def default(self) -> str:
        return next(iter(self.sources))

    def meant_by(self, asked: str) -> str:
        """The model id that `asked` means. Raises `ModelNotFound`."""
        if asked in self.sources:
            return asked
        found = self.aliases.get(asked, self.catch_all)
        if found is None:
            shown = asked if len(asked) <= _MAX_SHOWN else asked[:_MAX_SHOWN] + "…"
            raise ModelNotFound(
                f"The model `{shown}` does not exist or you do not have access to it."
            )
        return found


def model_names(settings: ServerSettings) -> ModelNames:
    """The models and aliases of the settings. Raises `SettingsError` where two have one name, or an
    alias means no model; `InvalidRequest` where a source has no form that is known."""
    default = FAKE_MODEL if settings.engine == "fake" else catalogue.DEFAULT_MODEL
    by_id: dict[str, str] = {}
    for named in settings.models or (default,):
        model_id = model_id_of(named)
        if model_id in by_id:
            raise SettingsError(
                f"`models`: {by_id[model_id]} and {named} would both be called {model_id!r}; "
                "serve one of them, or give one file another name",
                param="models",
            )
        by_id[model_id] = named
    embedder = embedder_names(settings)
    if embedder.id in by_id:
        raise SettingsError(
            f"`embedding_model`: {embedder.source} would be called {embedder.id!r}, as a model is; "
            "give one of them another name",
            param="embedding_model",
        )
    given = without_embedder(settings.aliases, embedder)
    if given is None:
        given = {} if DEFAULT_ALIAS in by_id else {DEFAULT_ALIAS: next(iter(by_id))}
    targets = {alias: _target(alias, meant, by_id) for alias, meant in given.items()}
    names = ModelNames(
        sources=by_id,
        aliases={alias: meant for alias, meant in targets.items() if alias != CATCH_ALL},
        catch_all=targets.get(CATCH_ALL),
    )
    _check_summary_model(settings.summary_model, names)
    return names


def _check_summary_model(named: str | None, names: ModelNames) -> None:
    if named in (None, NO_SUMMARY_MODEL):
        return
    try:
        names.meant_by(named or "")
    except ModelNotFound:
        raise SettingsError(
            f"`summary_model` means no model here: {named!r}; there is "
            f"{', '.join((*names.sources, *names.aliases))}",
            param="summary_model",
        ) from None


def model_id_of(named: str) -> str:
    """What a model is called on the wire: its name in the catalogue, its repository on the hub, or
    its file's name without `.gguf`. Raises `InvalidRequest` for a source of no known form."""
    entry = catalogue.find(named)
    if entry is not None:
        return entry.name
    if not sources.is_source(named) and not sources.is_path(named):
        return named.removesuffix(".gguf")
    match sources.parse(named):
        case sources.HubSpec(repo):
            return repo
        case spec:
            return Path(spec.file_name).name.removesuffix(".gguf") or named


def _target(alias: str, meant: str, by_id: Mapping[str, str]) -> str:
    """The model id that an alias means, given as an id or as in `models`."""
    if alias in by_id:
        raise SettingsError(
            f"`aliases`: {alias!r} is a model's own name; leave the alias out", param="aliases"
        )
    found = next((i for i, named in by_id.items() if meant in (i, named)), None)
    if found is None:
        raise SettingsError(
            f"`aliases`: {alias!r} means {meant!r}, which is not served; served are: "
            f"{', '.join(by_id)}",
            param="aliases",
        )
    return found


OpenEngine: TypeAlias = Callable[[str, EngineConfig], Engine]
"""Makes the engine of a model, named as in the settings. Raises `HeadraceError`."""
StyleOf: TypeAlias = Callable[[Engine], Any]


class ModelRegistry:
    """The models that are served. Made with their names; `load` brings them, one by one.

    All methods but `load` and `close` belong on the event loop; `load` may run beside them on a
    thread of its own, and either may be followed by `close` at any time.
    """

    def __init__(self, names: ModelNames) -> None:
        self.names = names
        self._served: dict[str, ServedModel] = {}
        self._is_closed = False

    @property
    def is_ready(self) -> bool:
        """Every model is loaded."""
        return len(self._served) == len(self.names.sources) and not self._is_closed

    @property
    def default(self) -> ServedModel:
        """The first model. Raises `ModelLoading`."""
        return self._loaded(self.names.default)

    @property
    def served(self) -> Sequence[ServedModel]:
        """Those that are loaded, in order."""
        return [self._served[each] for each in self.names.sources if each in self._served]

    def resolve(self, asked: str) -> ServedModel:
        """The model that answers for `asked`. Raises `ModelNotFound`, `ModelLoading`."""
        return self._loaded(self.names.meant_by(asked))

    def cards(self) -> list[ModelCard]:
        """The models in order, then the aliases. Raises `ModelLoading` until all are loaded."""
        return [self.card(asked) for asked in (*self.names.sources, *self.names.aliases)]

    def card(self, asked: str) -> ModelCard:
        """The entry of one name, which may be an alias. Raises `ModelNotFound`, `ModelLoading`."""
        model = self.resolve(asked)
        return ModelCard(
            id=asked,
            created=model.created,
            owned_by=model.owned_by,
            context_window=model.context_window,
            max_completion_tokens=model.max_completion_tokens,
        )

    def load(
        self,
        settings: ServerSettings,
        *,
        open_engine: OpenEngine | None = None,
        style_of: StyleOf = lambda engine: None,
    ) -> None:
        """Load all models, one after the other. Raises what the first that fails raises, and
        `EngineClosed` when the registry was closed meanwhile."""
        open_engine = open_engine or engine_opener(settings, len(self.names.sources))
        for model_id, named in self.names.sources.items():
            engine = open_engine(named, engine_config(settings, len(self.names.sources)))
            try:
                self._served[model_id] = _served_model(model_id, engine, style_of)
            except BaseException:
                engine.close()
                raise
            if self._is_closed:
                engine.close()
                raise EngineClosed("the server is shutting down")

    def close(self) -> None:
        """Close all engines. Whoever still waits gets `EngineClosed`. Any number of times."""
        self._is_closed = True
        for model in list(self._served.values()):
            model.engine.close()

    def _loaded(self, model_id: str) -> ServedModel:
        model = self._served.get(model_id)
        if model is None:
            raise ModelLoading(
                f"the model `{model_id}` is being loaded; try again in a moment",
                retry_after_s=RETRY_LOADING_S,
            )
        return model


def _served_model(model_id: str, engine: Engine, style_of: StyleOf) -> ServedModel:
    return ServedModel(
        id=model_id,
        engine=engine,
        created=int(time.time()),
        owned_by=OWNER,
        context_window=engine.context_length,
        max_completion_tokens=engine.context_length,
        fingerprint=fingerprint(engine.spec.identity),
        style=style_of(engine),
    )


def engine_config(settings: ServerSettings, num_models: int) -> EngineConfig:
    """One model's part: of several, each gets an even share of the KV memory."""
    pool_bytes = settings.pool_bytes
    if num_models > 1:
        whole = free_memory() // MAX_SHARE if pool_bytes is None else pool_bytes
        pool_bytes = max(1, whole // num_models)
    return EngineConfig(
        max_pending=settings.max_pending,
        max_queue_s=settings.max_queue_s,
        context_length=settings.context_length,
        pool_bytes=pool_bytes,
        scheduler=SchedulerConfig(max_running=settings.max_running),
    )


def engine_opener(settings: ServerSettings, num_models: int) -> OpenEngine:
    """How the settings' models become engines: native ones, or scripts."""
    if settings.engine == "fake":
        return _fake_opener(settings)
    threads = threads_each(settings.threads, num_models)
    max_bytes = settings.bank_disk_bytes
    parking = ParkingConfig(home() / BANKS_FOLDER, max_bytes) if max_bytes else None

    def open_native(named: str, config: EngineConfig) -> Engine:
        from headrace.engine.loading import open_model

        config = replace(config, parking=parking)
        opened = open_model(named, threads=threads)
        return Engine(opened.model, opened.tokenizer, opened.template, config)

    return open_native


def _fake_opener(settings: ServerSettings) -> OpenEngine:
    def open_fake(named: str, config: EngineConfig) -> Engine:
        from headrace.testing import scripted_engine

        return scripted_engine(
            settings.fake_text,
            tokens_per_s=settings.fake_tokens_per_s,
            prefill_tokens_per_s=settings.fake_prefill_tokens_per_s,
            batch_cost=settings.fake_batch_cost,
            config=config,
        )

    return open_fake


def threads_each(threads: int | None, num_models: int) -> int | None:
    """One model's share; None: what suits the machine. Threads that wait use no processor, but two
    models that compute at once with a thread a core each would keep interrupting one another."""
    if num_models == 1:
        return threads
    if threads is None:
        from headrace import _native

        threads = int(_native.cpu()["usable_cores"])
    return max(1, threads // num_models)


def check_models(names: ModelNames) -> list[HeadraceError]:
    """What is wrong before anything is fetched or loaded: models that can neither be found nor
    fetched, and files that are broken."""
    problems: list[HeadraceError] = []
    for named in names.sources.values():
        try:
            _check(named)
        except HeadraceError as error:
            problems.append(error)
    return problems


def _check(named: str) -> None:
    from headrace.model import store

    if not is_missing(named):
        store.facts_of(store.resolve(named))


def is_missing(named: str) -> bool:
    """Whether a model must be fetched first. Raises `ModelNotFound` where it cannot be."""
    from headrace.model import store

    try:
        store.resolve(named)
    except ModelNotFound:
        can_be_fetched = catalogue.find(named) is not None or sources.is_source(named)
        if not can_be_fetched:
            raise
        return True
    return False
