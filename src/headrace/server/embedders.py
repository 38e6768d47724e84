"""The embedding model behind the server: which names mean it, and the model itself, when needed.

In: a model id, as asked for; texts. Out: vectors. Thread: the event loop; loading and computing
have threads of their own. Next: `model/embedding/native.py`.

Nothing is loaded before somebody asks, so a server that is never asked for embeddings has none of
their cost. A model that is not on this machine is fetched then.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from headrace.errors import (
    HeadraceError,
    InvalidRequest,
    ModelLoading,
    ModelNotFound,
    SettingsError,
)
from headrace.model import catalogue
from headrace.settings import ServerSettings
from headrace.wire.model_cards import ModelCard

if TYPE_CHECKING:
    from headrace.model.embedder import Embedder

T = TypeVar("T")
OpenEmbedder: TypeAlias = "Callable[[], Embedder]"
"""Makes the model; blocks. Raises `HeadraceError`."""

OWNER = "headrace"
PATIENCE_S = 20.0
"""How long a request waits for a model that is being loaded: one that is here takes a second."""
RETRY_FETCHING_S = 5.0
_FAKE_DIM = 384
_MAX_SHOWN = 200


@dataclass(frozen=True, slots=True)
class EmbedderNames:
    """What may be asked for."""

    id: str = ""
    """Empty: no embeddings are served."""
    source: str = ""
    """What the settings call it: a name or a folder."""
    aliases: tuple[str, ...] = ()

    def __contains__(self, asked: object) -> bool:
        return bool(self.id) and (asked == self.id or asked in self.aliases)


def embedder_names(settings: ServerSettings) -> EmbedderNames:
    """The embedding model of the settings, and the aliases that mean it."""
    named = settings.embedding_model
    if named is None:
        return EmbedderNames()
    entry = catalogue.find_embedder(named)
    model_id = entry.name if entry else Path(named).name
    aliases = tuple(
        alias for alias, meant in (settings.aliases or {}).items() if meant in (model_id, named)
    )
    if "*" in aliases:
        raise SettingsError(
            f"`aliases`: `*` cannot mean {model_id!r}, which only makes embeddings", param="aliases"
        )
    return EmbedderNames(model_id, named, aliases)


def check_embedder(names: EmbedderNames) -> list[HeadraceError]:
    """What is wrong before anything is fetched or loaded."""
    if not names.id:
        return []
    from headrace.model.embedding import folder

    try:
        path = folder.resolve(names.source)
    except ModelNotFound as error:
        return [] if catalogue.find_embedder(names.source) else [error]
    try:
        folder.facts_of(path)
    except HeadraceError as error:
        return [error]
    return []


def opener(names: EmbedderNames, settings: ServerSettings) -> OpenEmbedder:
    """How the settings' model is made: a native one, fetched if need be, or a fake."""
    if settings.engine == "fake":
        from headrace.testing import FakeEmbedder

        return lambda: FakeEmbedder(_FAKE_DIM, name=names.id)

    def open_native() -> Embedder:
        from headrace.model.embedding import native, pull

        return native.load(pull.ensure(names.source), name=names.id, threads=settings.threads)

    return open_native


@dataclass
class Embedders:
    """The one model that a server has for embeddings, or none. Made with its names."""

    names: EmbedderNames
    open_embedder: OpenEmbedder
    created: int = field(default_factory=lambda: int(time.time()))
    _loading: Future[Embedder] | None = None

    def check_name(self, asked: str) -> str:
        """The id of the model that `asked` means. Raises `ModelNotFound`."""
        if asked in self.names:
            return self.names.id
        shown = asked if len(asked) <= _MAX_SHOWN else asked[:_MAX_SHOWN] + "…"
        there = f"; there is `{self.names.id}`" if self.names.id else "; this server has none"
        raise ModelNotFound(f"`{shown}` is no embedding model here{there}", param="model")

    def check_not_asked(self, asked: str) -> None:
        """Refuse a question to a model that answers none. Raises `InvalidRequest`."""
        if asked in self.names:
            raise InvalidRequest(
                f"the model `{asked}` makes embeddings and answers nothing; ask another model, or "
                "POST /v1/embeddings",
                param="model",
            )

    def cards(self) -> list[ModelCard]:
        """The model, then its aliases."""
        return [self.card(name) for name in (self.names.id, *self.names.aliases) if name]

    def card(self, asked: str) -> ModelCard:
        return ModelCard(
            id=asked,
            created=self.created,
            owned_by=OWNER,
            context_window=self._max_tokens,
            max_completion_tokens=0,
        )

    async def get(self) -> Embedder:
        """The model, loaded when this is first called. Raises `ModelLoading` where that takes
        longer than a client should wait, and what loading raises: who comes next tries again."""
        if self._loading is None:
            self._loading = _in_thread(self.open_embedder)
        loading = self._loading
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(loading)), PATIENCE_S)
        except TimeoutError:
            raise ModelLoading(
                f"the embedding model `{self.names.id}` is being fetched; try again in a moment",
                retry_after_s=RETRY_FETCHING_S,
            ) from None
        except BaseException:
            has_failed = loading.done() and loading.exception() is not None
            if has_failed and self._loading is loading:
                self._loading = None
            raise

    async def run(self, work: Callable[[], T]) -> T:
        """Do something on the one thread for embeddings, after what came before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "headrace-embedding")

    @cached_property
    def _max_tokens(self) -> int:
        entry = catalogue.find_embedder(self.names.source)
        if entry is not None:
            return entry.context_length
        from headrace.model.embedding import folder

        try:
            return folder.facts_of(folder.resolve(self.names.source)).context_length
        except HeadraceError:
            return 0  # broken meanwhile; whoever asks it hears what is wrong


def _in_thread(work: Callable[[], T]) -> Future[T]:
    """Work that no end of the process waits for: fetching may take minutes."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="headrace-loading-embedder", daemon=True).start()
    return future


def without_embedder(
    aliases: Mapping[str, str] | None, names: EmbedderNames
) -> Mapping[str, str] | None:
    """The aliases that mean other models."""
    if aliases is None:
        return None
    return {alias: meant for alias, meant in aliases.items() if alias not in names.aliases}
