"""The load generator on a small server: both loops, quotas, errors, and what is told of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from headrace.bench.serve import report
from headrace.bench.serve.answer import Sample
from headrace.bench.serve.asking import FULL_LENGTH, InProcess, OverHTTP, first_model
from headrace.bench.serve.client import Server
from headrace.bench.serve.load import Closed, Load, Open, Outcome, Plan
from headrace.bench.serve.report import Targets
from headrace.bench.serve.workloads import WORKLOADS, Length
from headrace.errors import BenchError
from headrace.testing import scripted_engine
from support.chat_server import USAGE, Asked, ChatServer, Reply, answer, serving

SMALL = replace(WORKLOADS["fixed"], prompt_words=Length(3), output_tokens=Length(2))


def put_load(chat: ChatServer, timeout_s: float = 20.0, **how: Any) -> Outcome:
    usual = {"workload": SMALL, "arrivals": Closed(1), "seed": 1}
    plan = Plan(**{**usual, **how})

    async def loading() -> Outcome:
        async with asyncio.timeout(20), serving(chat) as url:
            server = Server.parse(url)
            with OverHTTP(server, "m", fields=FULL_LENGTH, timeout_s=timeout_s) as asker:
                return await Load(plan, asker).run()

    return asyncio.run(loading())


def replying(make: Callable[[int], Reply]) -> ChatServer:
    """Answers by the number of the request, from 0."""
    chat = ChatServer()
    chat.reply = lambda asked: make(len(chat.asked) - 1)
    return chat


def test_a_request_is_what_the_api_expects() -> None:
    chat = ChatServer()
    outcome = put_load(chat, num_requests=1)
    [asked] = chat.asked
    assert asked.head.startswith("POST /v1/chat/completions ")
    assert asked.body["model"] == "m" and asked.body["max_tokens"] == 2
    assert asked.body["stream"] is True and asked.body["ignore_eos"] is True
    assert asked.body["stream_options"] == {"include_usage": True}
    [message] = asked.body["messages"]
    assert message["role"] == "user" and len(message["content"].split()) == 3
    [sample] = outcome.samples
    assert sample.error is None and sample.num_completion_tokens == 2


@pytest.mark.parametrize("concurrency", [1, 4])
def test_closed_loop_keeps_as_many_open(concurrency: int) -> None:
    chat = ChatServer()
    chat.reply = gated(chat, concurrency)
    outcome = put_load(chat, arrivals=Closed(concurrency), num_requests=20)
    assert chat.max_open == concurrency
    assert len(outcome.samples) == len(chat.asked) == 20
    assert len({asked.connection for asked in chat.asked}) == concurrency
    assert outcome.wall_s > 0 and outcome.cpu_s > 0 and outcome.max_late_s == 0


def test_warming_up_does_not_count() -> None:
    chat = ChatServer()
    outcome = put_load(chat, num_requests=5, num_warmup=3)
    assert (len(chat.asked), len(outcome.samples)) == (8, 5)
    contents = [asked.body["messages"][0]["content"] for asked in chat.asked]
    assert len(set(contents)) == 8, "a prompt of the warm-up is never asked again"


def test_a_duration_ends_it() -> None:
    outcome = put_load(ChatServer(), duration_s=0.1)
    assert outcome.samples and all(sample.error is None for sample in outcome.samples)


def test_a_plan_ends() -> None:
    with pytest.raises(ValueError, match="never ends"):
        put_load(ChatServer())


def gated(chat: ChatServer, num_requests: int) -> Callable[[Asked], Reply]:
    """Answers nobody before so many have asked."""
    gate = asyncio.Event()

    def reply(asked: Asked) -> Reply:
        if len(chat.asked) == num_requests:
            gate.set()
        return Reply(gate=gate)

    return reply


def test_open_loop_waits_for_nobody() -> None:
    chat = ChatServer()
    chat.reply = gated(chat, 10)
    outcome = put_load(chat, arrivals=Open(500.0), num_requests=10)
    assert [sample.error for sample in outcome.samples] == [None] * 10
    assert chat.max_open == 10


def test_open_loop_counts_from_when_it_was_due() -> None:
    outcome = put_load(ChatServer(), arrivals=Open(1000.0), num_requests=30)
    assert len(outcome.samples) == 30
    assert all(sample.ttft_s >= 0 for sample in outcome.samples)
    assert outcome.max_late_s > 0


def test_turns_repeat_what_was_said() -> None:
    workload = replace(SMALL, num_turns=3, num_own_words=4)
    chat = ChatServer()
    put_load(chat, workload=workload, num_requests=3)
    first, second, third = (asked.body["messages"] for asked in chat.asked)
    assert [message["role"] for message in third] == [
        *("system", "user", "assistant", "user", "assistant", "user")
    ]
    assert third[2] == {"role": "assistant", "content": "Hello you"}
    assert third[:4] == second and second[:2] == first


def test_a_failed_turn_ends_its_conversation() -> None:
    chat = replying(lambda number: Reply(b"{}", status=500) if number == 1 else Reply())
    put_load(chat, workload=replace(SMALL, num_turns=3), num_requests=4)
    lengths = [len(asked.body["messages"]) for asked in chat.asked]
    assert lengths == [1, 3, 1, 3]


def refused(number: int) -> Reply:
    body = b'{"error":{"code":"engine_overloaded"}}\n'
    return Reply(body, status=503, framing="length") if number % 2 else Reply()


def test_errors_are_counted_and_harm_nobody() -> None:
    outcome = put_load(replying(refused), num_requests=10)
    found = report.summary(outcome, Targets())
    assert found["errors"] == {"503 engine_overloaded": 5}
    assert found["error_rate"] == 0.5
    assert found["tokens"]["completion"] == 10


def test_silence_is_a_timeout() -> None:
    chat = replying(lambda number: Reply() if number else Reply(gate=asyncio.Event()))
    outcome = put_load(chat, num_requests=2, timeout_s=0.3)
    assert [sample.error for sample in outcome.samples] == ["timeout", None]


def test_a_cut_stream_is_no_answer() -> None:
    outcome = put_load(ChatServer(lambda asked: Reply(cut_after=180)), num_requests=2)
    assert [sample.error for sample in outcome.samples] == [
        "connection: the connection was cut"
    ] * 2


def test_nobody_there() -> None:
    with pytest.raises(BenchError, match="nothing answers"):
        asyncio.run(first_model(Server.parse("http://127.0.0.1:9")))


def test_the_first_model_is_the_one_to_ask() -> None:
    async def asking() -> str:
        async with serving(ChatServer()) as url:
            return await first_model(Server.parse(url))

    assert asyncio.run(asking()) == "first"


def test_an_engine_can_be_asked_without_a_server() -> None:
    with scripted_engine("one two three four") as engine:
        plan = Plan(workload=SMALL, arrivals=Closed(2), num_requests=5)
        outcome = asyncio.run(Load(plan, InProcess(engine)).run())
    assert [sample.error for sample in outcome.samples] == [None] * 5
    assert {sample.num_completion_tokens for sample in outcome.samples} == {2}
    assert all(sample.num_prompt_tokens > 3 for sample in outcome.samples)


def test_an_engine_that_refuses_is_an_error() -> None:
    with scripted_engine("one two") as engine:
        engine.close()
        plan = Plan(workload=SMALL, arrivals=Closed(1), num_requests=1)
        [sample] = asyncio.run(Load(plan, InProcess(engine)).run()).samples
    assert sample.error is not None and "closed" in sample.error


def sample(begun_at: float, token_at: tuple[float, ...], ended_at: float, **fields: Any) -> Sample:
    usual = {
        "num_prompt_tokens": 10,
        "num_cached_tokens": 4,
        "num_completion_tokens": len(token_at),
        "has_usage": True,
    }
    return Sample(begun_at, ended_at, token_at, **{**usual, **fields})


@pytest.fixture
def outcome() -> Outcome:
    plan = Plan(
        workload=SMALL,
        arrivals=Open(2.0),
        num_requests=3,
        seed=5,
    )
    samples = (
        sample(0.0, (0.05, 0.06, 0.08), 0.09),
        sample(1.0, (1.2, 1.21, 1.22), 1.23),
        sample(2.0, (2.1,), 2.2, error="timeout"),
    )
    return Outcome(plan, samples, wall_s=2.0, cpu_s=0.001, max_late_s=0.002)


def test_the_arithmetic(outcome: Outcome) -> None:
    found = report.summary(outcome, Targets(ttft_s=0.1))
    assert found["ttft_ms"] == {"p50": 50, "p90": 200, "p95": 200, "p99": 200}
    assert found["itl_ms"] == {"p50": 10, "p90": 20, "p95": 20, "p99": 20}
    assert found["e2e_ms"]["p99"] == 230
    assert found["tok_s"] == {"total": 3.5, "per_stream": pytest.approx(83.3, abs=0.1)}
    assert found["tokens"] == {
        "prompt": 30,
        "cached": 12,
        "completion": 7,
        "per_chunk": 1.0,
        "counted_by": "usage",
    }
    assert (found["errors"], found["error_rate"]) == ({"timeout": 1}, 0.3333)
    assert (found["goodput"]["share"], found["goodput"]["requests_s"]) == (0.3333, 0.5)
    assert found["generator"] == {"cpu_us_per_token": 142.9, "cpu_cores": 0.001, "max_late_ms": 2.0}
    json.dumps(found)


def test_goodput_needs_every_target(outcome: Outcome) -> None:
    def share(targets: Targets) -> float:
        return float(report.summary(outcome, targets)["goodput"]["share"])

    assert share(Targets(ttft_s=None)) == 0.6667
    assert share(Targets(ttft_s=0.3, e2e_s=0.1)) == 0.3333
    assert share(Targets(ttft_s=0.01)) == 0.0


def test_nothing_at_all_can_be_told(outcome: Outcome) -> None:
    found = report.summary(replace(outcome, samples=(), wall_s=0.0), Targets())
    assert found["ttft_ms"] is None and found["tok_s"] == {"total": 0.0, "per_stream": None}
    report.latency_table(found)
    assert report.lines(found)


def test_merged_chunks_show() -> None:
    usage = {**USAGE, "completion_tokens": 6}
    chat = ChatServer(lambda asked: Reply(answer("a b c", "d e f", usage=usage)))
    found = report.summary(put_load(chat, num_requests=2), Targets())
    assert found["tokens"]["per_chunk"] == 3.0
