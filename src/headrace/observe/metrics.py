"""Numbers for Prometheus: counted from facts as they are told, and read from engines when asked.

In: facts from the server. Out: the text of `/metrics`. Thread: the event loop.

Everything lives in a registry of its own: two servers in one process, or a host program with
metrics of its own, never mix. Labels come from small sets, so a client cannot make new series.
"""

from __future__ import annotations

import logging
import platform
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from headrace.observe.observer import Fact, LimitHit, RequestEnded

_log = logging.getLogger(__name__)

Labels: TypeAlias = tuple[str, ...]

OTHER = "other"
"""The model label of names that no model here has."""
MAX_MODELS = 100
"""Models that get a label of their own; however many there are, the series stay few."""

TTFT_EDGES_S = (
    *(0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0),
    *(2.0, 5.0, 10.0, 30.0, 60.0),
)
ITL_EDGES_S = (
    *(0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 5.0),
)
E2E_EDGES_S = (
    *(0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0),
    *(30.0, 60.0, 120.0, 300.0),
)
LIMITS = ("RPM", "RPD", "TPM", "TPD")


class ParkingFigures(Protocol):
    """Banks on disk: what `headrace.engine.parking.parking.ParkingStats` says."""

    @property
    def num_parked(self) -> int: ...
    @property
    def num_loaded(self) -> int: ...
    @property
    def num_deleted(self) -> int: ...
    @property
    def num_on_disk(self) -> int: ...
    @property
    def num_disk_bytes(self) -> int: ...


class EngineFigures(Protocol):
    """How busy an engine is: what `headrace.engine.stats.EngineStats` says."""

    @property
    def num_pending_requests(self) -> int: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def num_free_banks(self) -> int: ...
    @property
    def num_cached_banks(self) -> int: ...
    @property
    def num_held_banks(self) -> int: ...
    @property
    def num_pinned_banks(self) -> int: ...
    @property
    def num_evicted_banks(self) -> int: ...
    @property
    def parking(self) -> ParkingFigures: ...


ReadEngines: TypeAlias = Callable[[], Mapping[str, EngineFigures]]
"""Each loaded model's engine now, by the model's name. Called once a scrape."""


class Counts:
    """Numbers that only grow, by labels."""

    def __init__(self, name: str, about: str, labels: Sequence[str] = ()) -> None:
        """`name` without `_total`."""
        self._head = name, about, labels
        self._values: dict[Labels, float] = {}

    def add(self, labels: Labels, amount: float = 1) -> None:
        self._values[labels] = self._values.get(labels, 0) + amount

    def family(self) -> Metric:
        name, about, labels = self._head
        family = CounterMetricFamily(name, about, labels=labels)
        for values, count in self._values.items():
            family.add_metric(values, count)
        return family


class Durations:
    """A histogram of seconds, by labels, that takes many values at once."""

    def __init__(
        self, name: str, about: str, edges_s: Sequence[float], labels: Sequence[str] = ()
    ) -> None:
        self._head = name, about, labels
        self._edges = tuple(edges_s)
        self._le = [_le(edge) for edge in (*edges_s, float("inf"))]
        self._counts: dict[Labels, list[int]] = {}
        """One a bucket, not cumulative; the last is for what is above all edges."""
        self._sums: dict[Labels, float] = {}

    def observe(self, labels: Labels, value_s: float) -> None:
        self._of(labels)[bisect_left(self._edges, value_s)] += 1
        self._sums[labels] += value_s

    def observe_all(self, labels: Labels, values_s: Sequence[float]) -> None:
        """As `observe` for each: sorted once, then one search an edge rather than one a value."""
        counts = self._of(labels)
        ordered = sorted(values_s)
        num_below = 0
        for bucket, edge in enumerate(self._edges):
            num_here = bisect_right(ordered, edge, num_below)
            counts[bucket] += num_here - num_below
            num_below = num_here
            if num_here == len(ordered):
                break
        counts[-1] += len(ordered) - num_below
        self._sums[labels] += sum(ordered)

    def family(self) -> Metric:
        name, about, labels = self._head
        family = HistogramMetricFamily(name, about, labels=labels)
        for values, counts in self._counts.items():
            total, buckets = 0, []
            for le, count in zip(self._le, counts, strict=True):
                total += count
                buckets.append((le, total))
            family.add_metric(values, buckets, self._sums[values])
        return family

    def _of(self, labels: Labels) -> list[int]:
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * len(self._le)
            self._sums[labels] = 0.0
        return counts


class Metrics:
    """Implements `Observer`; renders what it heard."""

    def __init__(
        self,
        version: str,
        *,
        models: Iterable[str] = (),
        engines: ReadEngines | None = None,
        num_open: Callable[[], int] | None = None,
    ) -> None:
        """`models`: names and aliases that get a label of their own, as every model that answers
        does; all others are `other`. `num_open`: HTTP requests that are being answered."""
        self._version = version
        self._models = set(models)
        self._engines = engines
        self._num_open = num_open
        self._counted = _Counted()
        self._registry = CollectorRegistry()
        self._registry.register(_Everything(self._families))
        ProcessCollector("headrace", registry=self._registry)

    def observe(self, fact: Fact) -> None:
        match fact:
            case RequestEnded():
                self._counted.request(fact, self._model(fact))
            case LimitHit():
                limit = fact.limit if fact.limit in LIMITS else OTHER
                self._counted.limit_hits.add((limit,))

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All figures now, and their content type: Prometheus text, or OpenMetrics where the
        `Accept` header asks for it."""
        # The library's own negotiation raises at versions that are none.
        if "application/openmetrics-text" in accept:
            text = openmetrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]
            return text, openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    def _model(self, fact: RequestEnded) -> str:
        """Empty where the request was about no model."""
        if fact.served_by is not None and len(self._models) < MAX_MODELS:
            self._models.add(fact.served_by)
        name = fact.served_by or fact.model
        if name is None:
            return ""
        return name if name in self._models else OTHER

    def _families(self) -> Iterator[Metric]:
        info = {"version": self._version, "python": platform.python_version()}
        yield InfoMetricFamily("headrace_build", "What is running.", value=info)
        if self._num_open is not None:
            yield GaugeMetricFamily(
                "headrace_requests_open", "HTTP requests being answered now.", self._num_open()
            )
        yield from self._engine_families()
        for one in self._counted.all():
            yield one.family()

    def _engine_families(self) -> Iterator[Metric]:
        try:
            engines = self._engines() if self._engines is not None else {}
        except Exception:
            # What was counted is worth telling even when an engine is not well.
            _log.exception("the engines' figures cannot be read")
            engines = {}
        for name, about, read in _GAUGES:
            yield _by_model(GaugeMetricFamily(name, about, labels=["model"]), engines, read)
        for name, about, read in _COUNTERS:
            yield _by_model(CounterMetricFamily(name, about, labels=["model"]), engines, read)
        banks = GaugeMetricFamily(
            "headrace_engine_banks", "KV banks by state.", labels=["model", "state"]
        )
        for model, figures in engines.items():
            for state in ("free", "cached", "held"):
                banks.add_metric((model, state), getattr(figures, f"num_{state}_banks"))
        yield banks


_GAUGES: tuple[tuple[str, str, Callable[[EngineFigures], int]], ...] = (
    (
        "headrace_engine_requests_pending",
        "Requests that an engine runs or keeps waiting.",
        lambda figures: figures.num_pending_requests,
    ),
    (
        "headrace_engine_sequences_running",
        "Sequences that hold banks and are in steps.",
        lambda figures: figures.num_running,
    ),
    (
        "headrace_engine_sequences_waiting",
        "Sequences that wait for their first step.",
        lambda figures: figures.num_waiting,
    ),
    (
        "headrace_engine_banks_pinned",
        "KV banks, cached or held, that are kept for conversations.",
        lambda figures: figures.num_pinned_banks,
    ),
    (
        "headrace_parked_banks",
        "KV banks on disk, of all models that share the folder.",
        lambda figures: figures.parking.num_on_disk,
    ),
    (
        "headrace_parked_bytes",
        "What they take on disk.",
        lambda figures: figures.parking.num_disk_bytes,
    ),
)

_COUNTERS: tuple[tuple[str, str, Callable[[EngineFigures], int]], ...] = (
    (
        "headrace_engine_banks_evicted",
        "KV banks that were cached and had to make room for others.",
        lambda figures: figures.num_evicted_banks,
    ),
    (
        "headrace_banks_parked",
        "KV banks written to disk.",
        lambda figures: figures.parking.num_parked,
    ),
    (
        "headrace_banks_loaded",
        "KV banks read from disk instead of being computed.",
        lambda figures: figures.parking.num_loaded,
    ),
    (
        "headrace_parked_banks_deleted",
        "KV banks deleted from disk to make room for others.",
        lambda figures: figures.parking.num_deleted,
    ),
)


def _by_model(
    family: GaugeMetricFamily | CounterMetricFamily,
    engines: Mapping[str, EngineFigures],
    read: Callable[[EngineFigures], int],
) -> Metric:
    for model, figures in engines.items():
        family.add_metric((model,), read(figures))
    return family


class _Counted:
    """Everything that is counted from facts."""

    def __init__(self) -> None:
        self.requests = Counts(
            "headrace_requests",
            "HTTP requests answered, refused or left (499).",
            ("endpoint", "status", "model"),
        )
        self.errors = Counts(
            "headrace_request_errors", "Requests that ended in an error, by its code.", ("code",)
        )
        self.prompt_tokens = Counts("headrace_prompt_tokens", "Prompt tokens taken.", ("model",))
        self.cached_tokens = Counts(
            "headrace_cached_prompt_tokens",
            "Prompt tokens that were not computed, because their banks were still there.",
            ("model",),
        )
        self.loaded_tokens = Counts(
            "headrace_loaded_prompt_tokens",
            "Cached prompt tokens whose banks came from disk.",
            ("model",),
        )
        self.completion_tokens = Counts(
            "headrace_completion_tokens", "Tokens generated.", ("model",)
        )
        self.finishes = Counts(
            "headrace_choices", "Answers by how they ended.", ("finish_reason", "model")
        )
        self.limit_hits = Counts(
            "headrace_limit_hits", "Requests that met a limit of their key.", ("limit",)
        )
        self.ttft = Durations(
            "headrace_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            TTFT_EDGES_S,
            ("model",),
        )
        self.itl = Durations(
            "headrace_inter_token_latency_seconds",
            "Between the tokens of an answer.",
            ITL_EDGES_S,
            ("model",),
        )
        self.e2e = Durations(
            "headrace_e2e_latency_seconds",
            "From a request's arrival to the last byte of its whole answer.",
            E2E_EDGES_S,
            ("model",),
        )
        self.queue = Durations(
            "headrace_queue_seconds",
            "From submission to the first step that computed for a request.",
            TTFT_EDGES_S,
            ("model",),
        )
        for limit in LIMITS:
            # Zero from the start: a rate over a series that just appeared misses its first hit.
            self.limit_hits.add((limit,), 0)

    def request(self, fact: RequestEnded, model: str) -> None:
        self.requests.add((fact.endpoint, str(fact.status), model))
        if fact.error_code is not None:
            self.errors.add((fact.error_code,))
        for reason in fact.finish_reasons:
            self.finishes.add((reason, model))
        if fact.num_prompt_tokens:
            self._tokens(fact, (model,))
        if fact.ttft_s is not None:
            self._times(fact, (model,), fact.ttft_s)

    def all(self) -> tuple[Counts | Durations, ...]:
        return tuple(vars(self).values())

    def _tokens(self, fact: RequestEnded, model: Labels) -> None:
        self.prompt_tokens.add(model, fact.num_prompt_tokens)
        self.cached_tokens.add(model, fact.num_cached_tokens)
        self.loaded_tokens.add(model, fact.num_loaded_tokens)
        self.completion_tokens.add(model, fact.num_completion_tokens)

    def _times(self, fact: RequestEnded, model: Labels, ttft_s: float) -> None:
        self.ttft.observe(model, ttft_s)
        self.queue.observe(model, fact.queued_s)
        self.itl.observe_all(model, fact.gaps_s)
        if fact.status < 400:
            self.e2e.observe(model, fact.total_s)


def _le(edge: float) -> str:
    """An edge as the label `le` wants it."""
    return "+Inf" if edge == float("inf") else repr(edge)


class _Everything(Collector):
    """What a registry asks."""

    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families()
