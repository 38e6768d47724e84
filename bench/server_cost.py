"""What the server itself costs: processor time a streamed token, idle time, time to ready.

    .venv/bin/python bench/server_cost.py [--seconds 6] [--rounds 3]

Five sides take turns, with 1 and 16 clients: `headrace serve` on the fake engine, which says a
script at the real engine's pace; the fake engine alone, whose events nobody reads; and a bare
uvicorn stream that another thread feeds; and the first over WebSockets, one for each client and one
for all. Counted is the time of all threads of each process. The
server's cost is the first less the second: hand-over, JSON, SSE, HTTP, and its share of every
request. Then: what an idle server takes, and how soon one with the default model is ready.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from headrace.bench import machine
from headrace.bench.serve.asking import FULL_LENGTH, OverHTTP
from headrace.bench.serve.client import Server
from headrace.bench.serve.load import Asker, Closed, Load, Plan, run
from headrace.bench.serve.process import HOST, ServerProcess, free_port, headrace_command
from headrace.bench.serve.workloads import WORKLOADS
from headrace.commands.telling import told_plainly
from headrace.engine.engine import Engine
from headrace.engine.request import Request
from headrace.errors import BenchError
from headrace.events import Event, Failed, Finished
from headrace.settings import ServerSettings
from headrace.testing import scripted_engine
from over_socket import OverSocket

BARS_US = {1: 120.0, 16: 60.0}
IDLE_BAR = 0.01
READY_BAR_S = 2.5
IDLE_S = 5.0
WARMUP_S = 0.5
WORKLOAD = WORKLOADS["fixed"]
PACE = ServerSettings()
"""The fake engine's defaults are the real one's pace."""


@dataclass(frozen=True)
class Cost:
    """Processor time of one side in one round."""

    cpu_s: float
    num_tokens: int
    tokens_per_s: float = 0.0

    @property
    def us_per_token(self) -> float:
        return self.cpu_s / self.num_tokens * 1e6


def served(server: ServerProcess, concurrency: int, seconds: float) -> Cost:
    """Of a server under load, connections and caches being warm."""

    async def load() -> Cost:
        with OverHTTP(Server.parse(server.url), "fake", fields=FULL_LENGTH) as asker:
            return await _cost(server, asker, concurrency, seconds)

    return run(load())


def over_sockets(server: ServerProcess, concurrency: int, seconds: float, num_sockets: int) -> Cost:
    """The same over WebSockets."""

    async def load() -> Cost:
        url = Server.parse(server.url).url
        async with OverSocket(url, "fake", fields=FULL_LENGTH, num_sockets=num_sockets) as asker:
            return await _cost(server, asker, concurrency, seconds)

    return run(load())


async def _cost(server: ServerProcess, asker: Asker, concurrency: int, seconds: float) -> Cost:
    await Load(_plan(concurrency, WARMUP_S), asker).run()
    begun = server.cpu_s()
    outcome = await Load(_plan(concurrency, seconds), asker).run()
    cpu_s = server.cpu_s() - begun
    if errors := [sample.error for sample in outcome.samples if sample.error is not None]:
        raise BenchError(f"{server.name} failed: {errors[0]}")
    num_tokens = sum(sample.num_completion_tokens for sample in outcome.samples)
    return Cost(cpu_s, num_tokens, num_tokens / seconds)


_seeds = itertools.count(1)
"""Nobody's prompts are asked twice: who came second would find them computed."""


def _plan(concurrency: int, seconds: float) -> Plan:
    arrivals = Closed(concurrency)
    return Plan(workload=WORKLOAD, arrivals=arrivals, duration_s=seconds, seed=next(_seeds))


def alone(concurrency: int, seconds: float) -> Cost:
    """Of the fake engine in a process without a server."""
    command = [sys.executable, __file__, "--part", "alone"]
    load = json.dumps({"concurrency": concurrency, "seconds": seconds})
    done = subprocess.run([*command, load], capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"the engine alone failed: {done.stderr.strip().splitlines()[-1:]}")
    return Cost(**json.loads(done.stdout))


class Deaf:
    """A reader that notices only the end."""

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended

    @property
    def loop(self) -> None:
        return None

    def receive(self, events: Sequence[Event]) -> None:
        if isinstance(events[-1], (Finished, Failed)):
            self._ended()

    def receive_early(self, events: Sequence[Event]) -> bool:
        """There is no loop to wake."""
        return False

    def catch_up(self) -> None:
        """Nothing is taken early."""


def be_alone(concurrency: int, seconds: float) -> None:
    """In the process of its own: keep so many answers running, and tell what that took."""
    with _fake_engine() as engine:
        _keep_busy(engine, concurrency, WARMUP_S)
        begun = time.process_time()
        num_requests = _keep_busy(engine, concurrency, seconds)
        cpu_s = time.process_time() - begun
    num_tokens = num_requests * WORKLOAD.output_tokens.median
    click.echo(json.dumps({"cpu_s": cpu_s, "num_tokens": num_tokens}))


def _keep_busy(engine: Engine, concurrency: int, seconds: float) -> int:
    """How many requests were answered whole."""
    conversations = WORKLOAD.conversations(next(_seeds))
    free = threading.Semaphore(concurrency)
    until, num_requests = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        free.acquire()
        [turn] = next(conversations).turns
        message = {"role": "user", "content": turn.question}
        request = Request(messages=[message], max_tokens=turn.max_tokens, ignore_eos=True)
        engine.submit(engine.prepare(request), Deaf(free.release))
        num_requests += 1
    for _ in range(concurrency):
        free.acquire()
    return num_requests


def _fake_engine() -> Engine:
    return scripted_engine(
        PACE.fake_text,
        tokens_per_s=PACE.fake_tokens_per_s,
        prefill_tokens_per_s=PACE.fake_prefill_tokens_per_s,
        batch_cost=PACE.fake_batch_cost,
    )


class Feeder:
    """Hands a token to every open stream at the engine's pace, from a thread of its own."""

    def __init__(self) -> None:
        self._streams: dict[asyncio.Queue[bytes], asyncio.AbstractEventLoop] = {}
        threading.Thread(target=self._feed, daemon=True).start()

    async def tokens(self, number: int) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._streams[queue] = asyncio.get_running_loop()
        try:
            for _ in range(number):
                yield await queue.get()
        finally:
            del self._streams[queue]

    def _feed(self) -> None:
        step_s = 1 / PACE.fake_tokens_per_s
        while True:
            num_streams = max(1, len(self._streams))
            time.sleep(step_s * (1 + PACE.fake_batch_cost * (num_streams - 1)))
            for queue, loop in list(self._streams.items()):
                loop.call_soon_threadsafe(queue.put_nowait, _CHUNK)


_CHUNK = (
    b'data: {"id":"chatcmpl-7eb08824-5c9f-4a3e-9a3e-0f6d7c1f2b3a","object":"chat.completion.chunk",'
    b'"created":1770770839,"model":"fake","system_fingerprint":"fp_f8b414701e","choices":[{"index":'
    b'0,"delta":{"content":" water"},"logprobs":null,"finish_reason":null}]}\n\n'
)
_END = b'data: {"choices":[{"delta":{},"finish_reason":"length"}],"usage":{"completion_tokens":%d}}'


def be_bare(port: int) -> None:
    """In the process of its own: the least that streams tokens through uvicorn."""
    import uvicorn

    feeder = Feeder()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        head = {"type": "http.response.start", "status": 200, "headers": _HEADERS}
        if scope["method"] == "GET":
            await send(head)
            await send({"type": "http.response.body", "body": b"ready"})
            return
        while (await receive()).get("more_body"):
            pass
        await send(head)
        num_tokens = WORKLOAD.output_tokens.median
        async for chunk in feeder.tokens(num_tokens):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": _END % num_tokens + b"\n\n"})

    uvicorn.run(app, host=HOST, port=port, lifespan="off", log_level="error", access_log=False)


_HEADERS = [(b"content-type", b"text/event-stream")]


def our_server(*arguments: str) -> ServerProcess:
    port = free_port()
    command = headrace_command("serve", "--port", str(port), "--log-level", "warning", *arguments)
    return ServerProcess("headrace serve", command, port)


def bare_server() -> ServerProcess:
    port = free_port()
    command = [sys.executable, __file__, "--part", "bare", json.dumps({"port": port})]
    return ServerProcess("bare uvicorn", command, port)


def idle_share(server: ServerProcess) -> float:
    """Of one core, while nobody asks anything."""
    time.sleep(0.5)
    begun, begun_at = server.cpu_s(), time.perf_counter()
    time.sleep(IDLE_S)
    return (server.cpu_s() - begun) / (time.perf_counter() - begun_at)


def measure_tokens(rounds: int, seconds: float) -> float:
    """Show the cost a token of each side; returns what our server takes while idle."""
    with our_server("--engine", "fake") as ours, bare_server() as bare:
        sides: dict[str, Callable[[int], Cost]] = {
            "server": lambda concurrency: served(ours, concurrency, seconds),
            "alone": lambda concurrency: alone(concurrency, seconds),
            "bare": lambda concurrency: served(bare, concurrency, seconds),
            "sockets": lambda concurrency: over_sockets(ours, concurrency, seconds, concurrency),
            "one socket": lambda concurrency: over_sockets(ours, concurrency, seconds, 1),
        }
        for concurrency, bar_us in BARS_US.items():
            costs: dict[str, list[float]] = {name: [] for name in sides}
            speeds: dict[str, list[float]] = {name: [] for name in sides}
            for turn in range(rounds):
                start = turn % len(sides)
                for name in [*list(sides)[start:], *list(sides)[:start]]:
                    cost = sides[name](concurrency)
                    costs[name].append(cost.us_per_token)
                    speeds[name].append(cost.tokens_per_s)
            show_costs(concurrency, costs, bar_us)
            for name in ("sockets", "one socket"):
                show_sockets(concurrency, name, costs, speeds)
        return idle_share(ours)


def show_costs(concurrency: int, costs: dict[str, list[float]], bar_us: float) -> None:
    own = [ours - alone for ours, alone in zip(costs["server"], costs["alone"], strict=True)]
    median = {name: statistics.median(values) for name, values in costs.items()}
    verdict(
        f"c={concurrency}: the server's own {statistics.median(own):.0f} µs a token "
        f"(process {median['server']:.0f}, of it the fake engine {median['alone']:.0f}; "
        f"bare uvicorn {median['bare']:.0f}; rounds {', '.join(f'{one:.0f}' for one in own)}; "
        f"bar {bar_us:.0f})",
        statistics.median(own) <= bar_us,
    )


def show_sockets(
    concurrency: int, name: str, costs: dict[str, list[float]], speeds: dict[str, list[float]]
) -> None:
    """Beside the same over HTTP: no slower, and no dearer."""
    cost, speed = statistics.median(costs[name]), statistics.median(speeds[name])
    http_cost, http_speed = statistics.median(costs["server"]), statistics.median(speeds["server"])
    what = "a WebSocket each" if name == "sockets" else "one WebSocket for all"
    verdict(
        f"c={concurrency}, {what}: process {cost:.0f} µs a token, {speed:.0f} tokens a second "
        f"(over HTTP {http_cost:.0f} and {http_speed:.0f})",
        cost <= http_cost and speed >= 0.98 * http_speed,
    )


def verdict(what: str, is_met: bool) -> None:
    click.echo(f"{'met' if is_met else 'MISSED':7}{what}")


@click.command(help=__doc__)
@click.option("--rounds", default=3, show_default=True)
@click.option("--seconds", default=6.0, show_default=True, help="Of load, a side and round.")
@click.option("--part", nargs=2, type=str, default=None, hidden=True)
def main(rounds: int, seconds: float, part: tuple[str, str] | None) -> None:
    if part is not None:
        name, arguments = part
        be: Callable[..., None] = be_alone if name == "alone" else be_bare
        be(**json.loads(arguments))
        return
    foreign = machine.ForeignLoad()
    with told_plainly():
        click.echo(
            f"{machine.cpu_name()}; fake engine at {PACE.fake_tokens_per_s:g} tokens a second"
        )
        idle = measure_tokens(rounds, seconds)
        verdict(f"idle: {idle:.2%} of a core (bar {IDLE_BAR:.0%})", idle <= IDLE_BAR)
        ready_s = []
        for _ in range(rounds):
            with our_server() as server:
                ready_s.append(server.ready_s)
        median_s = statistics.median(ready_s)
        verdict(f"ready after {median_s:.2f} s (bar {READY_BAR_S})", median_s <= READY_BAR_S)
    click.echo(f"other programs kept {foreign.cores():.2f} cores busy meanwhile")


if __name__ == "__main__":
    main()
