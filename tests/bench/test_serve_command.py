"""`headrace bench serve`: what it asks for and what it prints."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from headrace.bench.serve.asking import OverHTTP
from headrace.bench.serve.client import Server
from headrace.bench.serve.load import Closed, Load, Plan
from headrace.bench.serve.workloads import WORKLOADS
from headrace.commands.bench_serve import progress_line, serve
from headrace.errors import BenchError
from support.chat_server import ChatServer, Reply, serving


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    """A server in a thread of its own; `url` is where it is."""
    chat, ready = ChatServer(), threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        async with serving(chat) as url:
            chat.url = url
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    assert ready.wait(10)
    yield chat
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


def bench(chat: ChatServer, *arguments: str) -> Result:
    done = CliRunner().invoke(serve, [chat.url, *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def test_json_is_all_that_stdout_gets(chat: ChatServer) -> None:
    found = json.loads(bench(chat, "--json", "-n", "4", "-c", "2", "--seed", "3").stdout)
    assert (found["num_requests"], found["error_rate"], found["seed"]) == (4, 0.0, 3)
    assert (found["model"], found["arrivals"]) == ("first", "2 at a time")
    assert found["tokens"] == {
        "prompt": 28,
        "cached": 12,
        "completion": 8,
        "per_chunk": 1.0,
        "counted_by": "usage",
    }
    assert found["generator"]["cpu_us_per_token"] > 0


def test_the_table_tells_what_clients_see(chat: ChatServer) -> None:
    text = bench(chat, "-n", "3", "--warmup", "0").stdout
    for part in (
        *("p50", "p90", "p95", "p99", "first token", "between tokens", "whole answer"),
        *("3 requests", "errors 0.0%", "tokens a second", "first token ≤ 100 ms", "µs of CPU"),
    ):
        assert part in text, part


def test_options_reach_the_requests(chat: ChatServer) -> None:
    bench(
        *(chat, "--model", "mine", "--api-key", "k", "--prompt-words", "5", "--output-tokens", "9"),
        *("--ignore-eos", "--extra", '{"top_p": 0.5}', "-n", "1", "--warmup", "0"),
    )
    [asked] = chat.asked
    assert "\r\nAuthorization: Bearer k\r\n" in asked.head
    assert asked.body["model"] == "mine" and asked.body["max_tokens"] == 9
    assert (asked.body["ignore_eos"], asked.body["top_p"]) == (True, 0.5)
    assert len(asked.body["messages"][0]["content"].split()) == 5


def test_open_loop(chat: ChatServer) -> None:
    found = json.loads(bench(chat, "--json", "--rate", "300", "-n", "6").stdout)
    assert found["num_requests"] == 6 and found["arrivals"] == "300 a second, at random"


def test_prompts_differ_from_run_to_run(chat: ChatServer) -> None:
    for _ in range(2):
        bench(chat, "-n", "1", "--warmup", "0", "--model", "m")
    one, two = (asked.body["messages"][0]["content"] for asked in chat.asked)
    assert one != two


def test_a_server_that_refuses_all_is_an_error(chat: ChatServer) -> None:
    chat.reply = lambda asked: Reply(b'{"error":{"code":"invalid_api_key"}}', status=401)
    with pytest.raises(BenchError, match="no request succeeded: 401 invalid_api_key"):
        bench(chat, "-n", "2")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "1", "-c", "2", "--model", "m"], "name one of them"),
        (["--extra", "[1]", "--model", "m"], "must be an object"),
        (["--extra", "{", "--model", "m"], "not JSON"),
        (["--workload", "nothing"], "'nothing' is not one of"),
    ],
)
def test_wrong_usage_is_told(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(serve, arguments)
    assert done.exit_code == 2 and said in done.stderr


def test_progress_says_how_far_it_is() -> None:
    plan = Plan(workload=WORKLOADS["fixed"], arrivals=Closed(1), num_requests=9)
    asker = OverHTTP(Server.parse("http://h"), "m")
    assert (
        progress_line(Load(plan, asker), 12.0)
        == "0 of 9 answered · 0 open · 0 errors · 12 tokens a second"
    )
