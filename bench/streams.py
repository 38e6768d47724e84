"""What kept streams cost: attaching to a running one, a crowd of readers, polling beside streaming.

    python bench/streams.py [--quick]

Serves the default model, with a stream long enough for each part, and prints each figure with its
bar. Readers run in a process of their own; what it takes of the processor is said apart, because
it is the machine's and not the server's.
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
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from headrace.bench.figures import percentile
from headrace.wire.sse import EventDecoder

NUM_READERS = 200
BARS = {"attach_ms": 10.0, "crowd_percent": 5.0, "poll_ms": 20.0}
_URL = re.compile(rb"serves at (http://[^/\s]+)/")


@contextmanager
def serving() -> Iterator[str]:
    """`headrace serve` on a free port."""
    with tempfile.TemporaryFile() as said:
        command = [str(Path(sys.executable).with_name("headrace")), "serve", "--port", "0"]
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.DEVNULL)
        try:
            yield _url(process, said)
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


def measure_speed(url: str, num_tokens: int, num_readers: int) -> tuple[float, float]:
    """Tokens a second by the engine's own clock, and the share of a core that readers took."""
    response, path = begin(url, num_tokens)
    response.close()
    done: SimpleQueue[float] = multiprocessing.SimpleQueue()
    crowd = multiprocessing.Process(target=read_all, args=(url, path, num_readers, done))
    crowd.start()
    following, is_done = f"{path}/events", False
    while not is_done:
        time.sleep(1.0)  # seldom: whoever asks takes processor time, too
        page = json.loads(ask(url, "GET", following).read())
        following, is_done = page["next"], page["done"]
    crowd.join()
    usage = page["events"][-2]["data"]["usage"]
    seconds = usage["completion_time"]
    return usage["completion_tokens"] / seconds, done.get() / seconds


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    is_quick = parser.parse_args().quick
    num_times, num_runs, num_tokens = (50, 2, 600) if is_quick else (300, 5, 1200)
    with serving() as url:
        begin(url, 50)[0].read()
        attach_ms = measure_attach(url, num_times)
        show("attach to a running stream, first event, p95", attach_ms, "ms", BARS["attach_ms"])
        speeds: dict[int, list[float]] = {0: [], 1: [], NUM_READERS: []}
        cpus = []
        for _ in range(num_runs):
            for num_readers, measured in speeds.items():
                speed, cpu = measure_speed(url, num_tokens, num_readers)
                measured.append(speed)
            cpus.append(cpu)
        nobody, one, many = (sorted(found)[len(found) // 2] for found in speeds.values())
        print(f"no reader {nobody:.0f} tok/s, one {one:.0f}, {NUM_READERS} {many:.0f}")
        # What the readers computed was taken from the cores that the engine uses.
        left = 1 - sum(cpus) / len(cpus) / (os.cpu_count() or 1)
        print(f"  loss with the readers' own CPU: {(1 - many / nobody) * 100:.1f} %")
        apart = (1 - many / nobody / left) * 100
        name = f"{NUM_READERS} readers on one stream, loss"
        show(name, apart, "%", BARS["crowd_percent"])
        poll_ms = measure_poll(url, num_tokens)
        show("a poll beside a stream, p95", poll_ms, "ms", BARS["poll_ms"])


if __name__ == "__main__":
    main()
