"""The engine's face: requests in, streams of events out.

In: a `Request`. Out: a `Stream`, or a `Generation`. Thread: any; each call's own.
Next: `intake.py`, then `mailbox.py`.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from headrace.engine.admission import Admission, Backlog
from headrace.engine.cost import CostModel, StepRates
from headrace.engine.intake import Intake
from headrace.engine.kv_cache import KVCache
from headrace.engine.language import Template, Tokenizer
from headrace.engine.loop import EngineLoop
from headrace.engine.mailbox import Inbox, LoopReader, Submission, ThreadReader
from headrace.engine.memory import free_memory, num_pool_banks
from headrace.engine.outbox import BeforePublish
from headrace.engine.parking.away import Run, Work
from headrace.engine.parking.parking import Parking, ParkingConfig, own_thread
from headrace.engine.past import Past
from headrace.engine.profile import StepProfile
from headrace.engine.progress import Progress
from headrace.engine.request import Request
from headrace.engine.scheduler import Scheduler, SchedulerConfig
from headrace.engine.stats import EngineStats
from headrace.engine.stream import AnyReader, Generation, Stream, Ticket
from headrace.errors import InvalidRequest
from headrace.model.interface import Model, ModelSpec, TokenIds

Join: TypeAlias = Callable[[], None]
"""Waits until the engine's loop has ended."""

_SEED_BITS = 53
"""Seeds that the engine chooses survive JSON in every language."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of an engine. Raises `ValueError` for one that is out of range."""

    max_pending: int = 1024
    """Requests that may run or wait at a time; more are refused with `EngineOverloaded`."""
    max_queue_s: float = 60.0
    """How long the prompts that wait may take to compute; beyond it, requests are refused with
    `EngineOverloaded`."""
    context_length: int | None = None
    """The most tokens of one choice, prompt included; None: as many as the model was made for."""
    pool_bytes: int | None = None
    """Size of the KV pool; None: enough for `max_running` whole contexts, but at most a quarter of
    the memory that is free for this process."""
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    parking: ParkingConfig | None = None
    """Where the banks of conversations are kept on disk, for after a restart; None: nowhere."""

    def __post_init__(self) -> None:
        if not self.max_queue_s > 0:
            raise ValueError(f"max_queue_s must be above 0, not {self.max_queue_s}")
        for name, least in (("max_pending", 1), ("context_length", 2), ("pool_bytes", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as tokens, ready to be submitted."""

    request: Request
    prompt: TokenIds
    max_num_tokens: int
    """The most tokens of one choice, prompt included."""
    received_at: float
    """Seconds on the engine's clock: waiting counts from here."""
    seed: int
    """The request's, or one that was chosen for it."""
    past: Past | None = None
    """What was said before, where this goes on with a generation whose process died; see
    `Engine.prepare_again`."""


def in_thread(loop: EngineLoop) -> Join:
    """Run the loop on a thread of its own, which never keeps the process alive."""
    thread = threading.Thread(target=loop.run, name="headrace-engine", daemon=True)
    thread.start()

    def join() -> None:
        # The last reference to an engine may be dropped on its own thread.
        if threading.current_thread() is not thread:
            thread.join()

    return join


class Engine:
    """One model, and everybody who asks it. Usable from any thread and any event loop.

    Make it with `Engine.load`. Close it, use it as a context manager, or just drop it.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        template: Template,
        config: EngineConfig | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
        start: Callable[[EngineLoop], Join] = in_thread,
        start_files: Callable[[], tuple[Run, Work]] = own_thread,
    ) -> None:
        """Takes over `model`, which nobody else may use from now on, and closes it in the end.

        `clock` tells seconds; `start` says how the loop runs, `start_files` how files are written
        and read. Raises `ModelError` where the KV pool
        does not fit into memory.
        """
        config = config or EngineConfig()
        spec = model.spec
        num_sequences = config.scheduler.max_running
        num_banks = num_pool_banks(spec, num_sequences, config.pool_bytes, free_memory())
        model.allocate(num_banks)
        kv = KVCache(num_banks, spec.bank_size, spec.identity)
        rates = StepRates.guess(num_parameters=spec.num_parameters, weight_bytes=spec.weight_bytes)
        self._spec = spec
        self._clock = clock
        self._tokenizer = tokenizer
        self._template = template
        self._context_length, why_context = _context(spec, kv, config)
        self._intake = Intake(
            tokenizer,
            template,
            vocab_size=spec.vocab_size,
            context_length=self._context_length,
            why_context=why_context,
        )
        self._max_running = num_sequences
        self._inbox = Inbox(Admission(config.max_pending, config.max_queue_s))
        cost = CostModel(rates)
        parking = Parking(
            config.parking, model, kv, cost, post=self._inbox.call, clock=clock, start=start_files
        )
        scheduler = Scheduler(config.scheduler, kv, cost, parking.find)
        self._loop = EngineLoop(model, scheduler, tokenizer, self._inbox, clock, parking)
        # Runs once: on close, when the engine is dropped, or when the process ends.
        self._shut = weakref.finalize(self, _shut, self._inbox, start(self._loop))

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        threads: int | None = None,
        isa: str | None = None,
        config: EngineConfig | None = None,
    ) -> Self:
        """Load a model by its name or its `.gguf` file; None is the default model. One that is
        known but not here yet is fetched first.

        `threads` (1 to 1,024) and `isa` (`amx`, `avx512`, `avx2`, `portable`) None: what suits this
        machine. Raises `ModelNotFound`, `ModelError`, `PullError`, and `InvalidRequest` for
        `threads` out of range and an `isa` that is unknown or cannot run here.
        """
        from headrace.engine.loading import open_model

        opened = open_model(model, threads=threads, isa=isa)
        return cls(opened.model, opened.tokenizer, opened.template, config)

    def generate(self, request: Request) -> Stream:
        """The events of an answer, for `async with`; the request is made when that is entered."""

        def submit(reader: LoopReader) -> Ticket[LoopReader]:
            return self.submit(self.prepare(request), reader)

        return Stream(submit)

    def generate_sync(self, request: Request) -> Generation:
        """The answer for a plain thread. Raises `InvalidRequest`, `EngineOverloaded` and
        `EngineClosed` at once."""
        return Generation(self.submit(self.prepare(request), ThreadReader()))

    def prepare(self, request: Request) -> Prepared:
        """A request as tokens, to be submitted once. Spends time in proportion to its length, and
        nothing of the engine's. Raises `InvalidRequest`, `ContextLengthExceeded`."""
        received_at = self._clock()
        begin = self._intake.begin(request)
        seed = _new_seed() if request.seed is None else request.seed
        return Prepared(begin.request, begin.prompt, begin.max_num_tokens, received_at, seed)

    def prepare_again(self, before: Request, past: Past, *, max_num_tokens: int) -> Prepared:
        """A request that was submitted in another process, and what it had said there: it says that
        again, and goes on as it would have, token for token.

        `before` gives its prompt as `token_ids`, and the seed that was used. Raises as `prepare`
        does.
        """
        if before.token_ids is None or before.seed is None:
            raise InvalidRequest(
                "what goes on needs the prompt's `token_ids` and the `seed` of its beginning",
                param="token_ids" if before.token_ids is None else "seed",
            )
        prepared = self.prepare(before)
        return replace(prepared, max_num_tokens=max_num_tokens, past=past)

    def submit(self, prepared: Prepared, reader: AnyReader) -> Ticket[AnyReader]:
        """Let `reader` hear the answer. Raises `EngineOverloaded` and `EngineClosed`, and then
        keeps nothing."""
        submission = Submission(
            request_id=os.urandom(12).hex(),
            request=prepared.request,
            prompt=prepared.prompt,
            max_num_tokens=prepared.max_num_tokens,
            seed=prepared.seed,
            reader=reader,
            submitted_at=prepared.received_at,
            past=prepared.past,
        )
        return Ticket(self._inbox, submission, reader)

    def forget(self, tenant: str, conversation: str) -> Future[None]:
        """Keep nothing for a conversation any more: done when its banks are gone, but for those
        that others have too. What still runs of it is not kept either when it ends. Unknown ones
        are fine; `EngineClosed` where the engine ends first."""
        return self._inbox.forget(tenant, conversation)

    def record_with(self, before_publish: BeforePublish) -> None:
        """Let `before_publish` keep every step's events before anybody hears them. Call it before
        the first request."""
        self._loop.record_with(before_publish)

    def warm_up(self) -> None:
        """Make what texts that are gone on from need, some tenths of a second, so that no request
        waits for it."""
        self._intake.warm_up()

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def context_length(self) -> int:
        """The most tokens of one choice, prompt included."""
        return self._context_length

    @property
    def max_running(self) -> int:
        """The most choices that are computed at a time; others wait."""
        return self._max_running

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    @property
    def template(self) -> Template:
        return self._template

    @property
    def backlog(self) -> Backlog:
        """What waits, and for how long about."""
        return self._inbox.backlog

    def stats(self) -> EngineStats:
        """How busy the engine is. Each figure is true by itself at some moment of the call."""
        return self._loop.stats()

    def progress(self, submission: Submission) -> Progress:
        """How far a submission is that has not ended: in the queue, or in its prompt."""
        return self._loop.progress(submission)

    def step_profile(self) -> StepProfile:
        """Where the time of all steps so far went."""
        return self._loop.profile()

    def close(self) -> None:
        """Stop within a step. Whoever still waits gets `EngineClosed`. Any number of times."""
        self._shut()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _shut(inbox: Inbox, join: Join) -> None:
    inbox.close("the engine is closed; make a new one with `Engine.load`")
    join()


def _new_seed() -> int:
    return int.from_bytes(os.urandom(8)) >> (64 - _SEED_BITS)


def _context(spec: ModelSpec, kv: KVCache, config: EngineConfig) -> tuple[int, str]:
    """The most tokens of one choice, and what sets that limit."""
    limits = [(spec.context_length, f"what {spec.name} was made for")]
    if config.context_length is not None:
        limits.append((config.context_length, "set by `context_length`"))
    limits.append((kv.capacity, "all that the KV pool holds; see `pool_bytes`"))
    return min(limits, key=lambda limit: limit[0])
