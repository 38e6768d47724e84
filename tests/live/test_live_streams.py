"""Kept streams on a real server: in a browser that reconnects by itself, and over real sockets."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from groq import Groq
from openai import OpenAI

from headrace.server.keys import KeyStore
from headrace.wire.sse import EventDecoder
from support.browser import CuttingProxy, browser_page
from support.servers import Server, eventually, running_server

TEXT = " ".join(map(str, range(120)))
PAGE = """<script>
window.got = []; window.opened = 0; window.isClosed = false;
function follow(url) {
  const source = new EventSource(url);
  source.onopen = () => { window.opened += 1; };
  source.onmessage = (event) => { window.got.push([event.lastEventId, event.data]); };
  source.onerror = () => { window.isClosed = source.readyState === EventSource.CLOSED; };
}
</script>"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    """A server that wants a key and counts, 200 numbers a second; headers to send."""
    home: Path = tmp_path_factory.mktemp("home")
    _, secret = KeyStore(home / "keys.json").create("tester")
    flags = ("--engine", "fake", "--fake-text", TEXT, "--fake-rate", "200")
    with running_server(*flags, "--heartbeat", "0.2", home=home) as running:
        yield running, {"authorization": f"Bearer {secret}", "content-type": "application/json"}


def request(
    server: Server, method: str, path: str, headers: dict[str, str], body: Any = None
) -> http.client.HTTPResponse:
    address = urlsplit(server.base_url)
    assert address.hostname is not None
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    return connection.getresponse()


def begin(server: Server, headers: dict[str, str]) -> http.client.HTTPResponse:
    body = {
        "model": "fake",
        "messages": [{"role": "user", "content": "Count."}],
        "stream": True,
        "stream_options": {"resumable": True},
        "max_tokens": 1000,
    }
    response = request(server, "POST", "/v1/chat/completions", headers, body)
    assert response.status == 200
    return response


def text_of(datas: list[str]) -> str:
    assert datas[-1] == "[DONE]" and datas.count("[DONE]") == 1
    deltas = [json.loads(data)["choices"][0]["delta"] for data in datas[:-1]]
    return "".join(delta.get("content", "") for delta in deltas)


def test_a_browser_comes_back_by_itself(server: tuple[Server, dict[str, str]]) -> None:
    running, headers = server
    first = begin(running, headers)
    name, token = first.headers["x-headrace-stream"], first.headers["x-headrace-stream-token"]
    first.close()  # nobody but the browser reads
    proxy = CuttingProxy(running.base_url, PAGE, cuts=[3000, 7001])
    with proxy.running(), browser_page() as page:
        page.goto(proxy.url + "/")
        page.evaluate("url => follow(url)", f"/v1/streams/{name}?token={token}")
        page.wait_for_function("window.isClosed", timeout=30_000)
        got, opened = page.evaluate("[window.got, window.opened]")
    assert opened == 3
    assert [int(number) for number, _ in got] == list(range(1, len(got) + 1))
    assert text_of([data for _, data in got]) == TEXT
    # Two cuts, the rest, and 204 for who has it all.
    assert len(proxy.asked) == 4
    assert b"last-event-id: %d\r\n" % len(got) in proxy.asked[-1].lower()
    assert not any(b"authorization" in head.lower() for head in proxy.asked)


def test_leaving_and_coming_back_by_another_way(server: tuple[Server, dict[str, str]]) -> None:
    running, headers = server
    first = begin(running, headers)
    name = first.headers["x-headrace-stream"]
    decoder = EventDecoder()
    read = [event for _ in range(12) for event in decoder.feed(first.readline())]
    datas = [event.data for event in read]
    path = f"/openai/v1/streams/{name}/events?after={read[-1].id}&wait=5"
    first.close()
    is_done = False
    while not is_done:
        page = json.loads(request(running, "GET", path, headers).read())
        datas += [
            one["data"] if one["data"] == "[DONE]" else json.dumps(one["data"])
            for one in page["events"]
        ]
        path, is_done = page["next"], page["done"]
    assert text_of(datas) == TEXT


def test_stopping_ends_the_generation(server: tuple[Server, dict[str, str]]) -> None:
    running, headers = server
    first = begin(running, headers)
    name = first.headers["x-headrace-stream"]
    assert request(running, "DELETE", f"/v1/streams/{name}", headers).status == 200
    events = EventDecoder().feed(first.read())
    assert events[-1].data == "[DONE]" and len(events) < 150
    eventually(lambda: running.metrics()["headrace_requests_open"] == 0)


@pytest.mark.parametrize("library", ["groq", "openai"])
def test_the_official_clients_read_a_resumable_stream(tmp_path: Path, library: str) -> None:
    """Also what is sent while there is nothing to say: their decoders are not those of browsers."""
    flags = ("--engine", "fake", "--fake-text", "One two three.", "--fake-rate", "10")
    with running_server(*flags, "--heartbeat", "0.02", home=tmp_path) as running:
        client: Any = (
            Groq(base_url=running.base_url, api_key="any")
            if library == "groq"
            else OpenAI(base_url=f"{running.base_url}/v1", api_key="any")
        )
        stream = client.chat.completions.create(
            model="fake",
            messages=[{"role": "user", "content": "Count."}],
            stream=True,
            extra_body={"stream_options": {"resumable": True}},
        )
        said = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(said).startswith("One two three.")
