"""Readers that are slow, or do not read at all: they get bigger deltas, and harm nobody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from headrace.testing import scripted_engine
from support.asgi import CHAT, frames, streamed_text
from support.bodies import chat_body
from support.live_door import Client, LiveDoor, open_door

TEXT = " ".join(f"{number} words and more" for number in range(400))
ASK = chat_body(model="fake", stream=True, max_tokens=4000)

LONG = {**ASK, "logprobs": True, "top_logprobs": 5}
"""Its answer is more than connection and server hold for a client."""


@pytest.fixture
def door() -> Iterator[LiveDoor]:
    with open_door(scripted_engine(TEXT), buffer_size=4096) as door:
        yield door


def num_deltas(body: bytes) -> int:
    return sum('"content":' in frame.data for frame in frames(body))


def num_tokens(body: bytes) -> int:
    last = json.loads(frames(body)[-2].data)
    tokens: int = last["usage"]["completion_tokens"]
    return tokens


def test_a_reader_that_comes_late_gets_all_of_it_in_fewer_parts(door: LiveDoor) -> None:
    client = door.ask(CHAT, ASK, buffer_size=4096)
    door.until(lambda: door.num_pending == 1)
    door.until(lambda: door.num_pending == 0)
    # All was said; what the server got rid of meanwhile are some 80 KB.
    status, body = client.read_answer()
    assert (status, streamed_text(body)) == (200, TEXT)
    assert num_tokens(body) > 1000 > 400 > num_deltas(body)
    door.until(lambda: door.serving.num_open == 0)
    client.ask(CHAT, ASK)
    assert streamed_text(client.read_answer()[1]) == TEXT
    door.assert_nothing_is_held()


def test_a_reader_that_dawdles_gets_all_of_it() -> None:
    """A little, now and then: parts are merged and single in turns, early and late."""
    with open_door(scripted_engine(TEXT, tokens_per_s=20_000), buffer_size=4096) as slow_door:
        for size in (1, 700):
            client = slow_door.ask(CHAT, ASK, buffer_size=4096)
            head = client.read_until(b"\r\n\r\n")
            assert b"text/event-stream" in head
            for _ in range(100):
                part = client.socket.recv(size)
                assert part
                client._received += part
            body = b"".join(client._chunks())
            assert streamed_text(body) == TEXT
        slow_door.until(lambda: slow_door.serving.num_open == 0)
        slow_door.assert_nothing_is_held()


def test_neighbours_go_on(door: LiveDoor) -> None:
    deaf = [door.ask(CHAT, ASK, buffer_size=4096) for _ in range(4)]
    for _ in range(3):
        neighbour = door.ask(CHAT, ASK)
        assert streamed_text(neighbour.read_answer()[1]) == TEXT
        neighbour.leave()
    door.until(lambda: door.num_pending == 0)
    for each in deaf[1:]:
        each.leave(at_once=True)
    assert streamed_text(deaf[0].read_answer()[1]) == TEXT
    door.until(lambda: door.serving.num_open == 0)
    assert len(door.ended) == 7
    door.assert_nothing_is_held()


def test_whole_answers_wait_for_their_reader_too(door: LiveDoor) -> None:
    asked: dict[str, Any] = {**ASK, "stream": False, "logprobs": True, "top_logprobs": 5}
    client = door.ask(CHAT, asked, buffer_size=4096)
    door.until(lambda: door.num_pending == 1)
    door.until(lambda: door.num_pending == 0)
    status, body = client.read_answer()
    assert status == 200 and len(body) > 200_000
    assert json.loads(body)["choices"][0]["message"]["content"] == TEXT
    door.until(lambda: door.serving.num_open == 0)


def test_who_never_reads_is_let_go() -> None:
    engine = scripted_engine(TEXT, tokens_per_s=20_000)
    with open_door(engine, buffer_size=4096, write_timeout_s=0.1) as strict_door:
        deaf = strict_door.ask(CHAT, LONG, buffer_size=4096)
        strict_door.until(lambda: len(strict_door.ended) == 1)
        assert strict_door.serving.num_open == 0
        with pytest.raises((ConnectionError, AssertionError, ValueError)):
            deaf.read_answer()  # it was cut
        deaf.leave()
        strict_door.assert_nothing_is_held()


def test_a_kept_stream_goes_on_without_who_never_reads() -> None:
    asked = {**LONG, "stream_options": {"resumable": True}}
    engine = scripted_engine(TEXT, tokens_per_s=20_000)
    with open_door(engine, buffer_size=4096, write_timeout_s=0.05) as strict_door:
        deaf = strict_door.ask(CHAT, asked, buffer_size=4096)
        head = deaf.read_until(b"\r\n\r\n").decode()
        name = head.partition("x-headrace-stream: ")[2].split()[0]
        strict_door.until(lambda: strict_door.serving.num_requests == 0)
        again = Client(strict_door.port)
        again.socket.sendall(f"GET /v1/streams/{name} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        status, body = again.read_answer()
        assert (status, streamed_text(body)) == (200, TEXT)
        again.leave()
        deaf.leave()
