"""Metrics: counted right, labelled from small sets, in a registry of their own."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from headrace.engine.parking.parking import ParkingStats
from headrace.engine.stats import EngineStats
from headrace.observe.metrics import (
    E2E_EDGES_S,
    ITL_EDGES_S,
    MAX_MODELS,
    TTFT_EDGES_S,
    Durations,
    EngineFigures,
    Metrics,
)
from headrace.observe.observer import LimitHit, RequestEnded


def ended(**fields: Any) -> RequestEnded:
    about = {"request_id": "req_1", "endpoint": "/chat/completions", "status": 200, "total_s": 0.4}
    return RequestEnded(**{**about, **fields})


ANSWERED = ended(
    model="alias",
    served_by="small",
    finish_reasons=("stop", "length"),
    num_prompt_tokens=160,
    num_cached_tokens=128,
    num_completion_tokens=64,
    queued_s=0.01,
    ttft_s=0.05,
    gaps_s=array("d", [0.003, 0.003, 0.012]),
)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """One sample of what is rendered; None where there is none."""
    text = metrics.render()[0].decode()
    found = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    assert len(found) <= 1
    return found[0] if found else None


def test_an_answer_is_counted_once_everywhere() -> None:
    metrics = Metrics("1.0")
    metrics.observe(ANSWERED)
    small = {"model": "small"}
    requests = {"endpoint": "/chat/completions", "status": "200", "model": "small"}
    assert value(metrics, "headrace_requests_total", **requests) == 1
    assert value(metrics, "headrace_prompt_tokens_total", **small) == 160
    assert value(metrics, "headrace_cached_prompt_tokens_total", **small) == 128
    assert value(metrics, "headrace_completion_tokens_total", **small) == 64
    for reason in ("stop", "length"):
        assert value(metrics, "headrace_choices_total", finish_reason=reason, **small) == 1
    for name, total, count in (
        ("headrace_time_to_first_token_seconds", 0.05, 1),
        ("headrace_inter_token_latency_seconds", 0.018, 3),
        ("headrace_e2e_latency_seconds", 0.4, 1),
        ("headrace_queue_seconds", 0.01, 1),
    ):
        assert value(metrics, f"{name}_sum", **small) == pytest.approx(total)
        assert value(metrics, f"{name}_count", **small) == count


def test_a_client_that_left_is_no_latency_of_whole_answers() -> None:
    metrics = Metrics("1.0")
    metrics.observe(ended(status=499, served_by="small", ttft_s=0.05, num_prompt_tokens=1))
    assert value(metrics, "headrace_time_to_first_token_seconds_count", model="small") == 1
    assert value(metrics, "headrace_e2e_latency_seconds_count", model="small") is None


def test_errors_are_counted_by_code() -> None:
    metrics = Metrics("1.0", models=["small"])
    metrics.observe(ended(status=429, model="small", error_code="rate_limit_exceeded"))
    labels = {"endpoint": "/chat/completions", "status": "429", "model": "small"}
    assert value(metrics, "headrace_requests_total", **labels) == 1
    assert value(metrics, "headrace_request_errors_total", code="rate_limit_exceeded") == 1
    assert value(metrics, "headrace_prompt_tokens_total", model="small") is None


def test_names_of_clients_make_no_series() -> None:
    metrics = Metrics("1.0", models=["small"])
    for number in range(50):
        metrics.observe(ended(status=404, model=f"guess-{number}"))
        metrics.observe(LimitHit("t", f"guess-{number}", f"limit-{number}"))
    labels = {"endpoint": "/chat/completions", "status": "404"}
    assert value(metrics, "headrace_requests_total", model="other", **labels) == 50
    assert value(metrics, "headrace_limit_hits_total", limit="other") == 50
    assert b"guess" not in metrics.render()[0]


def test_models_that_answer_have_names_up_to_a_bound() -> None:
    metrics = Metrics("1.0")
    for number in range(MAX_MODELS + 20):
        metrics.observe(ended(served_by=f"model-{number}"))
    labels = {"endpoint": "/chat/completions", "status": "200"}
    assert value(metrics, "headrace_requests_total", model="model-0", **labels) == 1
    assert value(metrics, "headrace_requests_total", model="other", **labels) == 20


def test_requests_about_no_model() -> None:
    metrics = Metrics("1.0")
    metrics.observe(ended(endpoint="/models"))
    labels = {"endpoint": "/models", "status": "200", "model": ""}
    assert value(metrics, "headrace_requests_total", **labels) == 1


def test_limits_are_there_before_they_are_met() -> None:
    metrics = Metrics("1.0")
    assert value(metrics, "headrace_limit_hits_total", limit="TPM") == 0
    metrics.observe(LimitHit("t", "m", "TPM"))
    assert value(metrics, "headrace_limit_hits_total", limit="TPM") == 1


def test_engines_are_read_at_each_scrape() -> None:
    stats = EngineStats(5, 3, 2, 100, 60, 30, 10, 8, 4, ParkingStats(11, 12, 13, 14, 15))
    read: dict[str, EngineFigures] = {"small": stats}
    metrics = Metrics("1.0", engines=lambda: read, num_open=lambda: 7)
    assert value(metrics, "headrace_requests_open") == 7
    assert value(metrics, "headrace_engine_requests_pending", model="small") == 5
    assert value(metrics, "headrace_engine_sequences_running", model="small") == 3
    assert value(metrics, "headrace_engine_sequences_waiting", model="small") == 2
    for state, num_banks in (("free", 60), ("cached", 30), ("held", 10)):
        assert value(metrics, "headrace_engine_banks", model="small", state=state) == num_banks
    for name, number in (
        ("headrace_engine_banks_pinned", 8),
        ("headrace_engine_banks_evicted_total", 4),
        ("headrace_banks_parked_total", 11),
        ("headrace_banks_loaded_total", 12),
        ("headrace_parked_banks_deleted_total", 13),
        ("headrace_parked_banks", 14),
        ("headrace_parked_bytes", 15),
    ):
        assert value(metrics, name, model="small") == number
    read.clear()
    assert value(metrics, "headrace_engine_sequences_running", model="small") is None


def test_a_broken_engine_hides_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> dict[str, EngineFigures]:
        raise RuntimeError("gone")

    metrics = Metrics("1.0", engines=broken)
    metrics.observe(ANSWERED)
    assert value(metrics, "headrace_prompt_tokens_total", model="small") == 160
    assert "cannot be read" in caplog.text


def test_edges_that_people_ask_for() -> None:
    for edges in (TTFT_EDGES_S, ITL_EDGES_S, E2E_EDGES_S):
        assert {0.1, 0.2, 0.5, 1.0} <= set(edges)
        assert list(edges) == sorted(set(edges))


def test_both_formats_are_sound() -> None:
    metrics = Metrics("1.2.3", engines=dict, num_open=lambda: 0)
    metrics.observe(ANSWERED)
    text, content_type = metrics.render("text/html, */*")
    assert content_type.startswith("text/plain; version=0.0.4")
    names = {family.name for family in text_string_to_metric_families(text.decode())}
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    text, content_type = metrics.render(accept)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    # This parser is strict about types, units and the order of buckets.
    families = {family.name: family for family in openmetrics_families(text.decode())}
    assert families.keys() <= names | {"headrace_build"} | {
        name.removesuffix("_total") for name in names
    }
    assert families["headrace_build"].samples[0].labels["version"] == "1.2.3"
    assert all(name.startswith("headrace_") for name in families)


@pytest.mark.parametrize("version", ["", "abc", "1.0.0.0", "99"])
def test_odd_accept_headers(version: str) -> None:
    assert Metrics("1").render(f"application/openmetrics-text; version={version}")[0]


def test_nothing_is_global() -> None:
    one, two = Metrics("1"), Metrics("1")
    one.observe(ANSWERED)
    assert value(two, "headrace_prompt_tokens_total", model="small") is None
    assert b"headrace_requests" not in prometheus_client.generate_latest()


@dataclass
class Told:
    counts: dict[str, float]
    total: float


def told(durations: Durations) -> Told:
    samples = durations.family().samples
    counts = {s.labels["le"]: s.value for s in samples if s.name.endswith("_bucket")}
    [total] = [s.value for s in samples if s.name.endswith("_sum")]
    return Told(counts, total)


@settings(max_examples=50)
@given(st.lists(st.floats(0, 3) | st.sampled_from([0.1, 0.2, 1.0]), max_size=60))
def test_many_at_once_are_as_one_by_one(values: list[float]) -> None:
    edges = (0.1, 0.2, 0.5, 1.0)
    bulk, single = Durations("x", "x", edges), Durations("x", "x", edges)
    bulk.observe_all((), array("d", values))
    single.observe_all((), [])
    expected = [0] * 5
    for one in values:
        single.observe((), one)
        expected[bisect_left(edges, one)] += 1
    assert told(bulk).counts == told(single).counts
    assert list(told(bulk).counts.values()) == [sum(expected[: i + 1]) for i in range(5)]
    assert told(bulk).total == pytest.approx(told(single).total)
