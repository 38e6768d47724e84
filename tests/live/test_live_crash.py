"""A server that is killed at any moment: whoever comes back to its next one hears all, once."""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from headrace.wire.sse import EventDecoder, ServerSentEvent
from support.clients import MODEL, user
from support.servers import STOP_S, Server, eventually, running_server

CHAT = "/v1/chat/completions"
STORY: dict[str, Any] = {
    "model": MODEL,
    "messages": user("Tell me a story about a mill at a river."),
    "max_tokens": 120,
    "temperature": 1.0,
    "seed": 7,
}
SCHEMA: dict[str, Any] = {
    **STORY,
    "messages": user("Describe a person as JSON."),
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "person",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 60},
                    "hobbies": {
                        "type": "array",
                        "items": {"type": "string", "maxLength": 40},
                        "minItems": 3,
                        "maxItems": 3,
                    },
                },
                "required": ["name", "hobbies"],
                "additionalProperties": False,
            },
        },
    },
}
CUT: dict[str, Any] = {
    **STORY,
    "messages": [
        *user("Tell me about rivers."),
        {"role": "assistant", "content": "A river is wat"},
    ],
}
QUESTIONS = (STORY, SCHEMA, CUT)
RANDOM = random.Random(3)


@pytest.fixture
def home(default_model_path: Path, tmp_path: Path) -> Path:
    """A data folder of its own, with the default model."""
    folder = tmp_path / "home"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / default_model_path.name).symlink_to(default_model_path)
    return folder


def events(
    running: Server, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}
) -> Iterator[tuple[str, ServerSentEvent]]:
    """The stream's id and each event, until the end or until nobody is there any more."""
    address = urlsplit(running.base_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    decoder = EventDecoder()
    with suppress(OSError, http.client.HTTPException):
        connection.request(method, path, body and json.dumps(body), headers)
        response = connection.getresponse()
        if response.status == 204:
            return
        assert response.status == 200, response.read()
        name = response.getheader("x-headrace-stream") or ""
        while part := response.read1(65536):
            for event in decoder.feed(part):
                yield name, event
    connection.close()


def lasting(event: ServerSentEvent) -> Any:
    """An event without what costs and times are in."""
    if event.data == "[DONE]":
        return event.id, event.data
    said = json.loads(event.data)
    assert "error" not in said, said
    return event.id, said["choices"]


class Reader:
    """One client, and what it has heard so far, from whichever server."""

    def __init__(self, question: Mapping[str, Any]) -> None:
        self._body = {**question, "stream": True, "stream_options": {"resumable": True}}
        self._name = ""
        self.heard: list[Any] = []

    def read(self, running: Server) -> None:
        """Until the end, or until the server is gone."""
        for name, event in self._events(running):
            self._name = name
            self.heard.append(lasting(event))

    def _events(self, running: Server) -> Iterator[tuple[str, ServerSentEvent]]:
        if not self._name:
            return events(running, "POST", CHAT, self._body)
        last = {"last-event-id": str(len(self.heard))}
        return events(running, "GET", f"/v1/streams/{self._name}", headers=last)


def read_all(running: Server, readers: list[Reader], kill_after_s: float | None = None) -> None:
    """All at once; where it is said, until the server is killed so long after a first event."""
    num_heard = sum(len(reader.heard) for reader in readers)
    with ThreadPoolExecutor(len(readers)) as threads:
        reading = [threads.submit(reader.read, running) for reader in readers]
        if kill_after_s is not None:
            eventually(lambda: sum(len(reader.heard) for reader in readers) > num_heard)
            time.sleep(kill_after_s)
            running.process.kill()
        for each in reading:
            each.result()


def test_killed_at_random_moments(home: Path) -> None:
    undisturbed = [Reader(question) for question in QUESTIONS]
    with running_server(home=home) as running:
        read_all(running, undisturbed)
    assert all(reader.heard[-1][1] == "[DONE]" for reader in undisturbed)
    disturbed = [Reader(question) for question in QUESTIONS]
    lengths = []
    for _ in range(3):
        with running_server(home=home) as running:
            read_all(running, disturbed, kill_after_s=RANDOM.uniform(0, 0.12))
        lengths.append([len(reader.heard) for reader in disturbed])
    assert lengths[-1] != [len(reader.heard) for reader in undisturbed], "nothing was disturbed"
    with running_server(home=home) as running:
        read_all(running, disturbed)
    for question, left, right in zip(QUESTIONS, disturbed, undisturbed, strict=True):
        assert left.heard == right.heard, (question, lengths)


def text_of(said: Iterable[tuple[str, ServerSentEvent]]) -> str:
    choices = [lasting(event)[1][0] for _, event in said if event.data != "[DONE]"]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def test_a_key_is_answered_by_the_next_server(home: Path) -> None:
    asked = {**STORY, "max_tokens": 40, "stream": True}
    key = {"idempotency-key": "once"}
    with running_server(home=home) as running:
        undisturbed = text_of(events(running, "POST", CHAT, asked))
        for num_read, _ in enumerate(events(running, "POST", CHAT, asked, key)):
            if num_read == 10:
                break
        running.process.kill()
        running.process.wait()
    with running_server(home=home) as running:
        assert text_of(events(running, "POST", CHAT, asked, key)) == undisturbed


def test_a_server_that_is_stopped_in_the_middle(home: Path) -> None:
    """Its streams are no answers that were cut: they go on in the next one."""
    undisturbed, disturbed = Reader(STORY), Reader(STORY)
    with running_server("--drain-timeout", "0.2", home=home) as running:
        read_all(running, [undisturbed])
        with ThreadPoolExecutor(1) as thread:
            reading = thread.submit(disturbed.read, running)
            eventually(lambda: len(disturbed.heard) > 3)
            running.process.terminate()
            reading.result()
        assert running.process.wait(STOP_S) == 0
    assert len(disturbed.heard) < len(undisturbed.heard)
    with running_server(home=home) as running:
        read_all(running, [disturbed])
    assert disturbed.heard == undisturbed.heard
