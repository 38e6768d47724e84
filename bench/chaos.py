"""A crowd that misbehaves: what a server has left when it is gone.

    .venv/bin/python bench/chaos.py [--requests 3000] [--engine fake|native] [--seed 1]

`headrace serve`, asked by 32 clients at a time. A third of them leave at a random moment: in the
middle of the question, before the answer, in the middle of it; by closing or by dying. Some send
bodies that are none, or ask for what is not there. In the end every bank must be free or cached,
every reservation given back to the limits, no request open, no file; nothing but declared load
(503) may have been answered with 5xx, and memory may not have grown. Exit code 1 if not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from headrace.bench.serve.process import HOST, ServerProcess, free_port, headrace_command
from headrace.commands.telling import told_plainly
from headrace.errors import BenchError

DATABASE = "chaos.db"
MODEL = "llama-3.1-8b-instant"
CONCURRENCY = 32
DAILY = 1_000_000
"""Tokens a day that the limits allow; they leak back evenly."""
DAY_S = 86_400
SLACK = 10
"""Tokens that rounding makes."""
NUM_FIRST_WORDS = 800
"""Of the first question: a bucket that was empty once leaks less than the clock says."""
RSS_BAR = 0.05
WARM_SHARE = 0.3
"""Of the requests, before memory is measured."""
SETTLE_S = 20.0
ANSWER_S = 300.0

Body = dict[str, Any]


@dataclass
class Crowd:
    """What came of all requests."""

    statuses: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    """Answers that should not have been."""


@dataclass(frozen=True)
class Server:
    """What is seen of the server from outside."""

    port: int
    pid: int
    max_tokens: int
    """What each question reserves; the fake engine's answers are far shorter."""

    async def figures(self) -> dict[str, float]:
        """Its metrics, each label set for itself."""
        status, body, _ = await ask_once(self.port, "GET", "/metrics", b"")
        if status != 200:
            raise BenchError(f"/metrics answered {status}")
        lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    @property
    def rss_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * 4096

    @property
    def num_files(self) -> int:
        """Open ones, but for those of the database, whose connections are kept for the next."""
        num_files = 0
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                num_files += DATABASE not in str(link.readlink())
        return num_files


# --- one client -----------------------------------------------------------------------------------


class Client:
    """One connection, for some requests one after the other."""

    def __init__(self, server: Server, rng: random.Random, crowd: Crowd) -> None:
        self._port = server.port
        self._max_tokens = server.max_tokens
        self._rng = rng
        self._crowd = crowd

    async def visit(self, num_requests: int) -> None:
        """Ask so many times; come back on a new connection after leaving."""
        while num_requests > 0:
            reader, writer = await asyncio.open_connection(HOST, self._port)
            try:
                while num_requests > 0:
                    num_requests -= 1
                    if not await self._request(reader, writer):
                        break
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                self._crowd.surprises.append(f"the server left: {error!r}")
            finally:
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; False where the client left."""
        kind = self._rng.random()
        if kind < 1 / 3:
            await self._leave(reader, writer)
            return False
        if kind < 1 / 2:
            await self._misask(reader, writer)
            return True
        path, body = question(self._rng, self._max_tokens)
        writer.write(head("POST", path, raw := json.dumps(body).encode()) + raw)
        status, answer, _ = await asyncio.wait_for(read_answer(reader), ANSWER_S)
        self._crowd.statuses[str(status)] += 1
        if status not in (200, 503):
            self._crowd.surprises.append(f"{status} for {raw!r}: {answer[:300]!r}")
        elif status == 200 and not is_whole(answer, bool(body["stream"])):
            self._crowd.surprises.append(f"an answer that is cut: {answer[-300:]!r}")
        return True

    async def _misask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A request that must be refused, with the right status."""
        method, path, raw, expected = mistake(self._rng)
        writer.write(head(method, path, raw) + raw)
        status, answer, _ = await asyncio.wait_for(read_answer(reader), ANSWER_S)
        self._crowd.statuses[str(status)] += 1
        if status != expected or b'"error"' not in answer:
            self._crowd.surprises.append(f"{status} for {raw[:200]!r}, not {expected}")

    async def _leave(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Begin, and go away at some moment."""
        path, body = question(self._rng, self._max_tokens)
        raw = json.dumps(body).encode()
        whole = head("POST", path, raw) + raw
        match self._rng.randrange(4):
            case 0:  # in the middle of the question
                writer.write(whole[: self._rng.randrange(len(whole))])
                await asyncio.sleep(self._rng.choice((0, 0.002)))
            case 1:  # at once
                writer.write(whole)
                await writer.drain()
            case 2:  # a moment later, whatever has come
                writer.write(whole)
                await asyncio.sleep(self._rng.random() * 0.05)
            case _:  # in the middle of the answer, if there is one
                writer.write(whole)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(self._rng.randrange(1, 3000)), 1)
        if self._rng.random() < 0.5:
            reset(writer)
        self._crowd.statuses["left"] += 1


def reset(writer: asyncio.StreamWriter) -> None:
    """Let the connection end as that of a process that died."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def question(rng: random.Random, max_tokens: int) -> tuple[str, Body]:
    """One that is all right."""
    text = " ".join(
        rng.choice(("water", "wheel", "mill", "stone")) for _ in range(rng.randrange(40))
    )
    common: Body = {
        "model": MODEL,
        "stream": rng.random() < 0.6,
        "temperature": rng.random(),
    }
    match rng.randrange(4):
        case 0:
            prompt = [text + "x", "y"] if rng.random() < 0.2 else text + "x"
            return "/v1/completions", {**common, "prompt": prompt, "max_tokens": max_tokens}
        case 1:
            asked = {**common, "input": text + "x", "max_output_tokens": max_tokens}
            return "/openai/v1/responses", asked
        case _:
            messages = [{"role": "user", "content": text}]
            extra = rng.choice(
                (
                    {},
                    {"n": 3},
                    {"logprobs": True},
                    {"stop": ["wheel"]},
                    {"stream": True, "stream_options": {"resumable": True}},
                )
            )
            asked = {**common, "messages": messages, "max_tokens": max_tokens, **extra}
            return "/openai/v1/chat/completions", asked


def mistake(rng: random.Random) -> tuple[str, str, bytes, int]:
    """Method, path, body, and the status that it must get."""
    path = rng.choice(("/v1/chat/completions", "/v1/completions", "/v1/responses"))
    noise = rng.randbytes(rng.randrange(1, 200))
    return rng.choice(
        (
            ("POST", path, b"\xff" + noise, 400),
            ("POST", path, b'{"model":"' + b"a" * rng.randrange(500), 400),
            ("POST", path, b"[" * rng.randrange(1, 3000), 400),
            ("POST", path, b'{"model":7}', 400),
            ("POST", path, b"", 400),
            ("POST", "/v1/chat/completions", _chat(model="nobody"), 404),
            ("POST", "/v1/chat/completions", _chat(temperature=99), 400),
            ("POST", "/v1/chat/completions", _chat(max_tokens=10**8), 400),
            ("POST", "/v1/chat/completions", _chat(user="x" * 5_000_000), 413),
            ("GET", path, b"", 404),
            ("POST", "/v1/" + "z" * rng.randrange(2000), b"{}", 404),
            ("POST", "/v1/audio/speech", b"{}", 404),
        )
    )


def _chat(**fields: Any) -> bytes:
    messages = [{"role": "user", "content": "Hi"}]
    return json.dumps({"model": MODEL, "messages": messages, **fields}).encode()


# --- HTTP, as little as is needed -----------------------------------------------------------------


def head(method: str, path: str, body: bytes) -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    )


async def ask_once(
    port: int, method: str, path: str, body: bytes
) -> tuple[int, bytes, Mapping[str, str]]:
    """Status, body and headers, on a connection of its own."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(head(method, path, body) + body)
        return await asyncio.wait_for(read_answer(reader), ANSWER_S)
    finally:
        writer.close()
        await writer.wait_closed()


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, Mapping[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = await _chunked(reader)
    return int(first.split()[1]), body, headers


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return body


def is_whole(answer: bytes, is_streamed: bool) -> bool:
    """An answer of any of the endpoints, from its beginning to its end."""
    if not is_streamed:
        return bool(json.loads(answer)["model"])
    last = answer[answer.rfind(b"\n\n", 0, -2) :]
    ends = (b"data: [DONE]", b"event: response.completed", b"event: response.incomplete")
    return answer.endswith(b"\n\n") and any(end in last for end in ends)


# --- the whole ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What is left when the crowd is gone."""

    statuses: Mapping[str, int]
    surprises: tuple[str, ...]
    num_open: int
    num_pending: int
    num_held_banks: int
    num_lost_banks: int
    """Neither free, nor cached, nor held."""
    num_unreturned: int
    """Tokens that the limits still count and nobody used, or the other way round."""
    num_more_files: int
    rss_growth: float
    seconds: float

    @property
    def verdicts(self) -> dict[str, bool]:
        """Each bar, and whether it is met."""
        bad = [status for status in self.statuses if status.startswith("5") and status != "503"]
        return {
            "no answer that should not have been": not self.surprises,
            "no 5xx but declared load": not bad,
            "no request is open": self.num_open == self.num_pending == 0,
            "every bank is free or cached": self.num_held_banks == self.num_lost_banks == 0,
            "every reservation is back": abs(self.num_unreturned) < SLACK,
            "every file is closed": self.num_more_files <= 0,
            f"memory grew less than {RSS_BAR:.0%}": self.rss_growth < RSS_BAR,
        }


async def storm(server: Server, num_requests: int, seed: int) -> Outcome:
    """Let the crowd in, and look round when it is gone."""
    crowd = Crowd()
    begun_at = time.perf_counter()
    filling_s = await _fill(server)
    num_banks = _total(await _calm(server), "headrace_engine_banks")
    num_files = server.num_files
    num_warm = round(num_requests * WARM_SHARE)
    await _let_in(server, num_warm, random.Random(seed), crowd)
    await _calm(server)
    rss_bytes = server.rss_bytes
    await _let_in(server, num_requests - num_warm, random.Random(seed + 1), crowd)
    figures = await _calm(server)
    rss_growth = server.rss_bytes / rss_bytes - 1
    num_unreturned = await _unreturned(server, figures, begun_at, filling_s)
    await _until(lambda: _is(server.num_files <= num_files))
    return Outcome(
        statuses=dict(sorted(crowd.statuses.items())),
        surprises=tuple(crowd.surprises),
        num_open=_total(figures, "headrace_requests_open"),
        num_pending=_total(figures, "headrace_engine_requests_pending"),
        num_held_banks=_total(figures, "headrace_engine_banks", "held"),
        num_lost_banks=num_banks - _total(figures, "headrace_engine_banks"),
        num_unreturned=num_unreturned,
        num_more_files=server.num_files - num_files,
        rss_growth=rss_growth,
        seconds=time.perf_counter() - begun_at,
    )


async def _let_in(server: Server, num_requests: int, rng: random.Random, crowd: Crowd) -> None:
    """So many requests, of `CONCURRENCY` clients."""
    shares = [num_requests // CONCURRENCY] * CONCURRENCY
    shares[0] += num_requests % CONCURRENCY
    clients = [Client(server, random.Random(rng.random()), crowd) for _ in shares]
    pairs = zip(clients, shares, strict=True)
    await asyncio.gather(*(client.visit(share) for client, share in pairs))


async def _fill(server: Server) -> float:
    """Ask something long, and return how long that took: in this time the bucket began to leak."""
    begun_at = time.perf_counter()
    text = " ".join(f"word{number}" for number in range(NUM_FIRST_WORDS))
    raw = json.dumps({"model": MODEL, "prompt": text, "max_tokens": 1}).encode()
    await ask_once(server.port, "POST", "/v1/completions", raw)
    return time.perf_counter() - begun_at


async def _calm(server: Server) -> dict[str, float]:
    """The figures once nothing is open any more, or after `SETTLE_S`. Twice in a row: what the
    engine has ended may still be on its way to those who count it."""
    figures: dict[str, float] = {}
    num_calm = 0

    async def is_calm() -> bool:
        nonlocal figures, num_calm
        figures = await server.figures()
        names = ("headrace_requests_open", "headrace_engine_requests_pending")
        num_calm = 0 if any(_total(figures, name) for name in names) else num_calm + 1
        return num_calm == 2

    await _until(is_calm)
    return figures


async def _unreturned(
    server: Server, figures: Mapping[str, float], begun_at: float, filling_s: float
) -> int:
    """What the limits count as used, beyond what was used and has not leaked yet. The bucket began
    to leak within `filling_s` of `begun_at`, and was looked at while this asked: what may have
    leaked in between is no error."""
    used = (
        _total(figures, "headrace_prompt_tokens_total")
        - _total(figures, "headrace_cached_prompt_tokens_total")
        + _total(figures, "headrace_completion_tokens_total")
    )
    raw = json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 1}).encode()
    least_s = time.perf_counter() - begun_at - filling_s
    _, _, headers = await ask_once(server.port, "POST", "/v1/completions", raw)
    most_s = time.perf_counter() - begun_at
    excess = DAILY - int(headers["x-ratelimit-remaining-tokens"]) - used
    least, most = (excess + seconds * DAILY / DAY_S for seconds in (least_s, most_s))
    return round(least if least > 0 else min(most, 0))


async def _until(is_so: Callable[[], Any]) -> None:
    ends_at = time.perf_counter() + SETTLE_S
    while not await is_so() and time.perf_counter() < ends_at:
        await asyncio.sleep(0.05)


async def _is(value: bool) -> bool:
    return value


def _total(figures: Mapping[str, float], name: str, label: str = "") -> int:
    """Of all label sets in which `label` stands."""
    found = [v for key, v in figures.items() if key.partition("{")[0] == name and label in key]
    return round(sum(found))


def serve_and_storm(engine: str, num_requests: int, seed: int) -> Outcome:
    """The whole, with a server of its own."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        limits = Path(folder) / "limits.toml"
        limits.write_text(f"[default]\ntpd = {DAILY}\nrpd = 1000000\n")
        options = {
            "--port": port,
            "--engine": engine,
            "--limits": limits,
            "--max-running": 8,
            "--max-pending": 24,
            "--fake-rate": 2000,
            "--fake-prefill-rate": 200_000,
            "--stream-ttl": 1,
            "--durability": "off",
            "--database": f"sqlite:///{folder}/{DATABASE}",
            # So small that all of it is in use before memory is measured.
            "--pool-size": "600" if engine == "fake" else "150MB",
            "--log-level": "error",
        }
        pairs = [str(part) for option in options.items() for part in option]
        command = headrace_command("serve", *pairs)
        with ServerProcess("headrace", command, port) as process:
            max_tokens = 2000 if engine == "fake" else 48
            server = Server(port, process._process.pid, max_tokens)
            return asyncio.run(storm(server, num_requests, seed))


def tell(outcome: Outcome) -> None:
    told = ", ".join(f"{count}x {status}" for status, count in outcome.statuses.items())
    click.echo(
        f"{told}, in {outcome.seconds:.0f} s; memory {outcome.rss_growth:+.1%}, files "
        f"{outcome.num_more_files:+d}, reserved tokens {outcome.num_unreturned:+d}"
    )
    for surprise in outcome.surprises[:20]:
        click.echo(f"  {surprise}")
    for bar, is_met in outcome.verdicts.items():
        click.echo(f"{'✓' if is_met else '✗'} {bar}")


@click.command()
@click.option("--requests", "num_requests", default=3000, show_default=True)
@click.option("--engine", type=click.Choice(("fake", "native")), default="fake", show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(num_requests: int, engine: str, seed: int) -> None:
    with told_plainly():
        outcome = serve_and_storm(engine, num_requests, seed)
    tell(outcome)
    sys.exit(not all(outcome.verdicts.values()))


if __name__ == "__main__":
    main()
