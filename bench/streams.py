"""What kept streams cost: attaching, a crowd of readers, polling beside streaming, the disk.

    python bench/streams.py [--quick] [--only attach|crowd|poll|disk]...

Serves the default model, with a stream long enough for each part, and prints each figure with its
bar. Readers run in a process of their own. What that takes of the processor is the machine's and
not the server's: so a crowd is held against a control, the same stream without readers beside a
process that is as busy as the readers' was. What the crowd costs the server's event loop is said
beside it, in processor time, which does not depend on what else the machine does.

Disk: two servers, one with `--durability write` and one with `off`, take turns with the same
resumable streams.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import re
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from headrace.bench.figures import percentile
from headrace.events import Delta, Started
from headrace.streams.journal import Journal
from headrace.wire.sse import EventDecoder

NUM_READERS = 200
BARS = {"attach_ms": 10.0, "crowd_percent": 5.0, "poll_ms": 20.0}
DISK_BARS = {1: 3.0, 16: 8.0}
"""Percent of decode speed, by the number of streams."""
PARTS = ("attach", "crowd", "poll", "disk")
_BURN_S = 0.01
_URL = re.compile(rb"serves at (http://[^/\s]+)/")


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    url: str
    pid: int

    def loop_s(self) -> float:
        """Processor seconds of its event loop, which is its first thread."""
        schedstat = Path(f"/proc/{self.pid}/task/{self.pid}/schedstat")
        return int(schedstat.read_text().split()[0]) / 1e9


@contextmanager
def serving(*flags: str) -> Iterator[Served]:
    """`headrace serve` on a free port."""
    with tempfile.TemporaryFile() as said:
        command = [str(Path(sys.executable).with_name("headrace")), "serve", "--port", "0", *flags]
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.DEVNULL)
        try:
            yield Served(_url(process, said), process.pid)
        finally:
            process.terminate()
            process.wait()


def _url(process: subprocess.Popen[bytes], said: Any) -> str:
    while process.poll() is None:
        found = _URL.search(os.pread(said.fileno(), 65_536, 0))
        if found and ask(found[1].decode(), "GET", "/ready").status == 200:
            return found[1].decode()
        time.sleep(0.05)
    raise SystemExit("the server did not start")


def ask(url: str, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)
    headers = {"content-type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    assert connection.sock is not None
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection.getresponse()


def begin(url: str, num_tokens: int) -> tuple[http.client.HTTPResponse, str]:
    """A resumable stream, and where to come back to it."""
    body = {
        "model": "smollm2-135m-instruct",
        "messages": [{"role": "user", "content": "Tell a long story of a river."}],
        "stream": True,
        "stream_options": {"resumable": True},
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "temperature": 0,
    }
    body["model"] = json.loads(ask(url, "GET", "/v1/models").read())["data"][0]["id"]
    response = ask(url, "POST", "/v1/chat/completions", body)
    if response.status != 200:
        raise SystemExit(response.read().decode())
    return response, f"/v1/streams/{response.headers['x-headrace-stream']}"


def arrivals(response: http.client.HTTPResponse) -> dict[str, float]:
    """When each event came, by its number."""
    decoder, came = EventDecoder(), {}
    while data := response.read1(65_536):
        now = time.perf_counter()
        came.update({event.id: now for event in decoder.feed(data)})
    return came


def measure_attach(url: str, num_times: int) -> float:
    """p95 of the milliseconds from connecting to the first replayed event, on a running stream."""
    _, path = begin(url, 1500)
    time.sleep(0.3)
    waits = []
    for _ in range(num_times):
        began_at = time.perf_counter()
        response = ask(url, "GET", path)
        decoder = EventDecoder()
        while not decoder.feed(response.read1(65_536)):
            pass
        waits.append((time.perf_counter() - began_at) * 1000)
        response.close()
        time.sleep(0.01)
    ask(url, "DELETE", path).read()
    print(f"attach: p50 {percentile(waits, 50):.2f} ms")
    return percentile(waits, 95)


@dataclass(frozen=True)
class Crowd:
    """One stream, and those who read it."""

    speed: float
    """Tokens a second, by the engine's own clock."""
    share: float
    """Of a core, that the other process took."""
    loop_us: float
    """Processor time of the server's event loop for each token."""


def measure_crowd(served: Served, num_tokens: int, num_readers: int, burn: float = 0.0) -> Crowd:
    """With so many readers in another process, or beside one that burns so much of a core."""
    response, path = begin(served.url, num_tokens)
    response.close()
    before_s = served.loop_s()
    done: SimpleQueue[float] = multiprocessing.SimpleQueue()
    stop = multiprocessing.Event()
    if burn:
        crowd = multiprocessing.Process(target=burn_all, args=(burn, stop, done))
    else:
        crowd = multiprocessing.Process(target=read_all, args=(served.url, path, num_readers, done))
    crowd.start()
    url = served.url
    following, is_done = f"{path}/events", False
    while not is_done:
        time.sleep(1.0)  # seldom: whoever asks takes processor time, too
        page = json.loads(ask(url, "GET", following).read())
        following, is_done = page["next"], page["done"]
    loop_s = served.loop_s() - before_s
    stop.set()
    crowd.join()
    usage = page["events"][-2]["data"]["usage"]
    seconds, num_said = usage["completion_time"], usage["completion_tokens"]
    return Crowd(num_said / seconds, done.get() / seconds, loop_s / num_said * 1e6)


def burn_all(share: float, stop: Any, done: Any) -> None:
    """Be as busy as readers are who take that share of a core."""
    os.nice(5)
    while not stop.is_set():
        until = time.process_time() + share * _BURN_S
        while time.process_time() < until:
            pass
        time.sleep(max(0.0, (1 - share) * _BURN_S))
    done.put(time.process_time())


def read_all(url: str, path: str, num_readers: int, done: Any) -> None:
    """`num_readers` connections, read to the end with as little work as can be."""
    os.nice(5)
    address = urlsplit(url)
    selector = selectors.DefaultSelector()
    head = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode()
    for _ in range(num_readers):
        reader = socket.create_connection((address.hostname, address.port))
        reader.sendall(head)
        selector.register(reader, selectors.EVENT_READ)
    num_open = num_readers
    while num_open:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            if not key.fileobj.recv(65_536):
                selector.unregister(key.fileobj)
                num_open -= 1
    used = resource.getrusage(resource.RUSAGE_SELF)
    done.put(used.ru_utime + used.ru_stime)


def measure_poll(url: str, num_tokens: int) -> float:
    """p95 of the milliseconds that a poll brings an event later than a stream does."""
    _, path = begin(url, num_tokens)
    streamed: SimpleQueue[dict[str, float]] = multiprocessing.SimpleQueue()
    other = multiprocessing.Process(target=_stream, args=(url, path, streamed))
    other.start()
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)
    polled: dict[str, float] = {}
    following, is_done = f"{path}/events?after=0&wait=10", False
    while not is_done:
        connection.request("GET", following)
        page = json.loads(connection.getresponse().read())
        now = time.perf_counter()
        polled.update({str(event["id"]): now for event in page["events"]})
        following, is_done = page["next"], page["done"]
    came = streamed.get()
    other.join()
    shared = [number for number in polled if number in came][20:]
    return percentile([(polled[number] - came[number]) * 1000 for number in shared], 95)


def _stream(url: str, path: str, streamed: Any) -> None:
    streamed.put(arrivals(ask(url, "GET", path)))


def show(name: str, value: float, unit: str, bar: float) -> None:
    verdict = "holds" if value <= bar else "BROKEN"
    print(f"{name:<58} {value:8.2f} {unit:<3} bar {bar:g}  {verdict}")


def measure_decode(url: str, num_tokens: int, num_streams: int) -> float:
    """Tokens a second of so many resumable streams at once, by the engine's own clock."""

    def speed(_: int) -> float:
        response, _path = begin(url, num_tokens)
        frames = response.read().decode().split("data: ")
        usage = json.loads(frames[-2].partition("\n")[0])["usage"]
        return float(usage["completion_tokens"] / usage["completion_time"])

    with ThreadPoolExecutor(num_streams) as threads:
        return sum(threads.map(speed, range(num_streams)))


def journal_us(num_streams: int, num_steps: int = 2000) -> float:
    """Processor time that the journal takes in each step of so many streams."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal.open(Path(folder) / "streams")
        readers: list[Any] = [object() for _ in range(num_streams)]
        for number, reader in enumerate(readers):
            journal.opened(str(number), {})
            journal.attach(str(number), reader)
        journal.before_publish({reader: [Started("r", 0, 1, 1, 0)] for reader in readers})
        said = [[Delta(0, number, (number,), "x")] for number in range(num_steps)]
        begun_at = time.thread_time()
        for events in said:
            journal.before_publish(dict.fromkeys(readers, events))
        used_s = time.thread_time() - begun_at
        journal.close()
    return used_s / num_steps * 1e6


def show_attach(served: Served, is_quick: bool) -> None:
    attach_ms = measure_attach(served.url, 50 if is_quick else 300)
    show("attach to a running stream, first event, p95", attach_ms, "ms", BARS["attach_ms"])


def show_crowd(served: Served, is_quick: bool) -> None:
    num_runs, num_tokens = (2, 600) if is_quick else (5, 1200)
    nobody, crowds, controls = [], [], []
    for _ in range(num_runs):
        nobody.append(measure_crowd(served, num_tokens, 0))
        crowds.append(measure_crowd(served, num_tokens, NUM_READERS))
        burn = min(0.99, crowds[-1].share)
        controls.append(measure_crowd(served, num_tokens, 0, burn))
    alone, many, control = (
        median(one.speed for one in found) for found in (nobody, crowds, controls)
    )
    print(f"no reader {alone:.0f} tok/s, {NUM_READERS} readers {many:.0f}, control {control:.0f}")
    share = median(one.share for one in crowds)
    print(f"  the readers' process takes {share * 100:.0f} % of a core")
    loop_us = median(one.loop_us for one in crowds) - median(one.loop_us for one in nobody)
    print(f"  the server's event loop: {loop_us:.0f} us a token more than without readers")
    lost = median(
        1 - crowd.speed / control.speed for crowd, control in zip(crowds, controls, strict=True)
    )
    name = f"{NUM_READERS} readers on one stream, loss beside the control"
    show(name, lost * 100, "%", BARS["crowd_percent"])


def show_poll(served: Served, is_quick: bool) -> None:
    poll_ms = measure_poll(served.url, 600 if is_quick else 1200)
    show("a poll beside a stream, p95", poll_ms, "ms", BARS["poll_ms"])


def show_disk(served: Served, is_quick: bool) -> None:
    """Beside a server that keeps streams in memory alone; of each pair of runs, their ratio."""
    num_runs, num_tokens = (3, 300) if is_quick else (9, 600)
    with serving("--durability", "off") as other:
        begin(other.url, 50)[0].read()
        for num_streams, bar in DISK_BARS.items():
            losses = []
            for number in range(num_runs):
                turns = [served.url, other.url] if number % 2 else [other.url, served.url]
                found = {url: measure_decode(url, num_tokens, num_streams) for url in turns}
                losses.append(1 - found[served.url] / found[other.url])
            print(
                f"  {num_streams} streams: {found[other.url]:.0f} tok/s without a journal, which "
                f"takes {journal_us(num_streams):.0f} us of each step"
            )
            name = f"the journal's cost at {num_streams} streams"
            show(name, median(losses) * 100, "%", bar)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("--only", action="append", choices=PARTS, help="any number of times")
    options = parser.parse_args()
    shown = {"attach": show_attach, "crowd": show_crowd, "poll": show_poll, "disk": show_disk}
    with serving() as served:
        begin(served.url, 50)[0].read()
        for part in options.only or PARTS:
            shown[part](served, options.quick)


if __name__ == "__main__":
    main()
