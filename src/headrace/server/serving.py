"""What a server has: models, keys, limits, observers, and whether it still takes requests.

Made once from the settings, read by every handler. Thread: the event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from headrace import __version__
from headrace.conversations.service import Conversations
from headrace.conversations.values import StoreConfig
from headrace.engine.engine import Engine
from headrace.errors import DatabaseFailed, RateLimited, ServerDraining
from headrace.model.answer import AnswerStyle
from headrace.model.embedder import Embedder
from headrace.observe.logs import RequestLog
from headrace.observe.metrics import Metrics
from headrace.observe.observer import LimitHit, Observer, Observers
from headrace.server.access import Access, is_loopback
from headrace.server.contexts import Contexts
from headrace.server.durable import FOLDER, SPILLED, Durable
from headrace.server.embedders import EmbedderNames, Embedders, embedder_names, opener
from headrace.server.idempotency import Idempotency
from headrace.server.keys import KeyStore
from headrace.server.limits import Limiter, LimitTable, Permit
from headrace.server.memories import Memories
from headrace.server.models import ModelNames, ModelRegistry, model_names
from headrace.server.summaries import Summaries
from headrace.server.telling import Telling
from headrace.server.tokens import StreamTokens, kept_key
from headrace.server.warming import Warmer
from headrace.settings import ServerSettings, home
from headrace.streams.keeping import KeptConfig, KeptStreams
from headrace.streams.kept import Kept
from headrace.streams.patience import Patience
from headrace.streams.pump import Pump
from headrace.wire.body import BodyLimits

if TYPE_CHECKING:
    from headrace.conversations.database import Database

_log = logging.getLogger(__name__)


class Serving:
    """The parts that handlers need, and the count of open requests."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        keys: KeyStore | None = None,
        observers: tuple[Observer, ...] = (),
    ) -> None:
        """`observers` hear of every request beside the metrics and the log. Raises `SettingsError`
        for names or limits that make no sense."""
        self.settings = settings
        self.registry = ModelRegistry(model_names(settings))
        embedder = embedder_names(settings)
        self.embedders = Embedders(embedder, opener(embedder, settings))
        self.access = Access(keys or KeyStore())
        self.patience = Patience(
            queue_s=settings.queue_timeout_s,
            first_token_s=settings.first_token_timeout_s,
            stall_s=settings.stall_timeout_s,
            total_s=settings.total_timeout_s,
        )
        self.body_limits = BodyLimits(
            max_depth=settings.max_depth,
            max_messages=settings.max_messages,
            max_tools=settings.max_tools,
        )
        names = self.registry.names
        self._metrics = Metrics(
            __version__,
            models=(
                *names.sources,
                *names.aliases,
                *filter(None, (embedder.id, *embedder.aliases)),
            ),
            engines=lambda: {model.id: model.engine.stats() for model in self.registry.served},
            num_open=lambda: self.num_requests,
        )
        self.observer: Observer = Observers((self._metrics, RequestLog(), *observers))
        table = LimitTable.parse(settings.limits)
        self._limiter = Limiter(table, limited_as=_limited_as(names, embedder, table))
        self.streams: KeptStreams[Telling] = KeptStreams(
            KeptConfig(
                ttl_s=settings.stream_ttl_s,
                orphan_s=settings.orphan_timeout_s,
                max_streams=settings.max_streams,
                max_bytes=settings.stream_memory_bytes,
                max_disk_bytes=settings.stream_disk_bytes,
            )
        )
        self.durable = Durable()
        self.streams.when_gone(self.durable.gone)
        self.idempotency = Idempotency(self.streams)
        self.tokens = StreamTokens()
        self.conversations = Conversations(
            StoreConfig(
                max_messages=settings.max_conversation_messages, ttl_s=settings.conversation_ttl_s
            )
        )
        self.memories = Memories(self.database, self._embedder)
        self.contexts = Contexts(settings)
        self.summaries = Summaries(self.contexts, self.registry, settings.summary_model)
        self.warmer = Warmer(self.contexts)
        self.num_requests = 0
        """Questions that are being answered, over connections."""
        self.is_draining = False

    @property
    def num_open(self) -> int:
        """What a server that drains waits for: connections, streams that go on without one, and
        turns until they are kept."""
        return self.num_requests + self.streams.num_live + self.conversations.num_open

    @property
    def is_ready(self) -> bool:
        return self.registry.is_ready

    @property
    def is_streaming(self) -> bool:
        """Some engine is generating."""
        return any(model.engine.stats().num_running for model in self.registry.served)

    @property
    def has_many_names(self) -> bool:
        """Open to the network: nobody knows by which names it is reached."""
        return self.settings.insecure and not is_loopback(self.settings.host)

    def render_metrics(self, accept: str) -> tuple[bytes, str]:
        return self._metrics.render(accept)

    def open_streams(self) -> None:
        """Before anything else: find what another process left, and keep streams from now on, in
        the data folder. Where that cannot be, a warning says so. A fake engine's script knows
        nothing of what was said, so its streams stay in memory."""
        if self.settings.engine == "fake":
            return
        folder = home()
        self.durable.open(folder / FOLDER, self.settings.durability)
        if not self.durable.is_open:
            return
        try:
            self.tokens = StreamTokens(kept_key(folder))
        except OSError as error:
            _log.warning("tokens for streams will not survive this server: %s", error)
        try:
            # The journal's lock says that the folder is ours alone.
            self.streams.spill_to(folder / FOLDER / SPILLED)
        except OSError as error:
            _log.warning("streams that do not fit into memory are not kept: %s", error)

    def open_conversations(self) -> None:
        """Blocks. Raises what is wrong with a database that the settings name; where the usual one
        cannot be had, a warning says so."""
        settings = self.settings
        try:
            self.conversations.open(settings.database, is_synced=settings.durability == "fsync")
        except DatabaseFailed as error:
            if settings.database is not None:
                raise
            _log.warning("conversations are not kept: %s", error.message)
            return
        self.conversations.store.on_delete.append(self._forget)

    def _forget(self, tenant: str, conversation_id: str) -> None:
        """Its banks, vectors and summaries go with the conversation."""
        self.memories.wake()
        self.contexts.shelf.forget((tenant, conversation_id))
        for model in self.registry.served:
            model.engine.forget(tenant, conversation_id)

    async def database(self) -> Database:
        """What memories are kept in. Raises `DatabaseFailed`."""
        await self.conversations.opened()
        return self.conversations.store.database

    async def _embedder(self) -> Embedder | None:
        """What memories embed with. Raises what loading it raises."""
        return await self.embedders.get() if self.embedders.names.id else None

    def load(self) -> None:
        """On a thread of its own: load all models, and be ready. Raises what the first that fails
        raises."""
        self.registry.load(self.settings, style_of=self.style_of)

    def warm_up(self) -> None:
        """On a thread of its own, once it is ready: make what some requests would wait for."""
        for model in self.registry.served:
            model.style.warm_up()
            model.engine.warm_up()

    def style_of(self, engine: Engine) -> AnswerStyle:
        """How a model answers that was just loaded; what it says will be kept."""
        self.durable.record(engine)
        return AnswerStyle.for_model(engine.template, engine.tokenizer)

    def begin_drain(self) -> None:
        """Take no more; finish what was admitted."""
        self.is_draining = True
        self.summaries.stop()
        self.warmer.stop()

    @contextmanager
    def open(self) -> Iterator[None]:
        """One question is being answered. Raises `ServerDraining`."""
        if self.is_draining:
            raise ServerDraining(
                "this server is shutting down and takes no more requests; ask again in a moment",
                retry_after_s=self.settings.drain_timeout_s,
            )
        self.num_requests += 1
        try:
            yield
        finally:
            self.num_requests -= 1

    def keep(
        self,
        stream_id: str,
        tenant: str,
        pump: Pump,
        telling: Telling,
        *,
        served_by: str,
        age_s: float = 0.0,
    ) -> Kept[Telling]:
        """Keep a stream; until it is over, a server that drains waits for it. `age_s`: how long ago
        it ended, where that was before the server was restarted."""
        self.durable.watch(stream_id, pump)
        return self.streams.keep(stream_id, tenant, pump, telling, served_by=served_by, age_s=age_s)

    async def find_stream(self, stream_id: str, tenant: str) -> Kept[Telling]:
        """A stream that is kept, maybe since before a restart. Raises `StreamNotFound`,
        `StreamGone` and `ModelLoading`."""
        await self.durable.wait_for(stream_id, tenant)
        return self.streams.find(stream_id, tenant)

    async def admit(
        self,
        tenant: str,
        model: str,
        num_prompt_tokens: int,
        max_tokens: int | None,
        service_tier: str,
    ) -> Permit:
        """Reserve what a request may use. Raises `RateLimited` and `RequestTooLarge`."""
        try:
            return await self._limiter.admit(
                tenant, model, num_prompt_tokens, max_tokens, service_tier
            )
        except RateLimited as error:
            if error.limit is not None:
                self.observer.observe(LimitHit(tenant, model, error.limit))
            raise

    async def admit_ahead(self, tenant: str, model: str, num_prompt_tokens: int) -> Permit | None:
        """Reserve a prompt's tokens, of a request that will come: it counts itself, and its prompt
        less what is in the cache by then. None where the limits leave no room."""
        try:
            return await self._limiter.admit(tenant, model, num_prompt_tokens, 0, num_requests=0)
        except RateLimited:
            return None

    def readmit(
        self, tenant: str, model: str, num_prompt_tokens: int, max_tokens: int | None
    ) -> Permit:
        """Count what goes on that a server before this one has admitted."""
        return self._limiter.readmit(tenant, model, num_prompt_tokens, max_tokens)

    def limit_headers(self, tenant: str, model: str) -> list[tuple[bytes, bytes]]:
        """What is left of the limits, for whatever response comes."""
        return self._limiter.headers(tenant, model)


def _limited_as(
    names: ModelNames, embedder: EmbedderNames, table: LimitTable
) -> Callable[[str], str]:
    """Names that somebody wrote down have limits of their own. All others that the catch-all
    answers for share its model's, or whoever invents names would have no limits at all."""
    known = {*names.sources, *names.aliases, embedder.id, *embedder.aliases, *table.rows}
    return lambda asked: asked if asked in known else names.catch_all or asked
