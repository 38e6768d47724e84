"""A server that is killed again and again, and clients that come back to whoever is there next."""

from __future__ import annotations

import http.client
import json
import random
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from headrace.bench.serve.process import HOST, free_port
from headrace.wire.sse import EventDecoder, ServerSentEvent
from support.servers import command, environment, stop

CHAT = "/v1/chat/completions"
_AGAIN_S = 0.02
_COUNTS = ("prompt_tokens", "completion_tokens")
_PATIENCE_S = 120.0
"""How long nothing new may be heard: a busy machine starts servers slowly."""


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


_PERSON: dict[str, Any] = {
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
}
STORY: dict[str, Any] = {
    "model": "llama-3.1-8b-instant",
    "messages": _user("Tell me a story about a mill at a river."),
    "max_tokens": 120,
    "temperature": 1.0,
    "seed": 7,
}
SCHEMA: dict[str, Any] = {
    **STORY,
    "messages": _user("Describe a person as JSON."),
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "person", "strict": True, "schema": _PERSON},
    },
}
TOOLS: dict[str, Any] = {
    **STORY,
    "messages": _user("Remember a person whom you make up."),
    "tools": [{"type": "function", "function": {"name": "remember", "parameters": _PERSON}}],
    "tool_choice": "required",
}
CUT: dict[str, Any] = {
    **STORY,
    "messages": [
        *_user("Tell me about rivers."),
        {"role": "assistant", "content": "A river is wat"},
    ],
}
SCORED: dict[str, Any] = {**STORY, "logprobs": True, "top_logprobs": 2}
QUESTIONS: Mapping[str, Mapping[str, Any]] = {
    "text": STORY,
    "JSON schema": SCHEMA,
    "tools": TOOLS,
    "a text gone on with": CUT,
    "log probabilities": SCORED,
}


class Mortal:
    """`headrace serve` at one address, however often it dies."""

    def __init__(self, home: Path, *flags: str) -> None:
        """`home` is its data folder; what it says goes to files in there."""
        self.port = free_port()
        self._home = home
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns at once, long before it is ready."""
        with (self._home / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                command("serve", "--port", str(self.port), *self._flags),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=self._home,
                env=environment(self._home, {}),
            )

    def kill(self) -> None:
        """As `kill -9` does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @contextmanager
    def alive(self) -> Iterator[None]:
        """From here to the end of the block, unless it is killed."""
        self.start()
        try:
            yield
        finally:
            self.end()

    def end(self) -> int | None:
        """Stop it, if it lives; returns its exit code."""
        process, self._process = self._process, None
        return None if process is None else stop(process)

    @property
    def log(self) -> str:
        return (self._home / "log.txt").read_text("utf-8", errors="replace")


class Reader:
    """One client, and what it has heard so far, from whichever server."""

    def __init__(
        self,
        port: int,
        question: Mapping[str, Any],
        key: str,
        *,
        path: str = CHAT,
        is_resumable: bool = True,
    ) -> None:
        """`key`: its `Idempotency-Key`, for when it has to ask again: before it knows the stream,
        or always where it is not `is_resumable`."""
        self._port = port
        self._path = path
        self._body = {**question, "stream": True, "stream_options": {"resumable": is_resumable}}
        self._is_resumable = is_resumable
        self._key = key
        self._name = ""
        self.heard: list[Any] = []
        self.heard_at: list[float] = []
        """On the clock of `time.perf_counter`."""
        self._refusal = ""
        """The latest."""
        self.back_at = 0.0
        """When the last server answered that has the stream."""

    @property
    def has_all(self) -> bool:
        return bool(self.heard) and self.heard[-1][1] == "[DONE]"

    def __str__(self) -> str:
        return f"{self._key}: {len(self.heard)} events, last {self.heard[-1:]}, {self._refusal}"

    @property
    def text(self) -> str:
        choices = [said[0] for _, said, *_ in self.heard if isinstance(said, list) and said]
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    @property
    def num_ends(self) -> int:
        """Finish reasons, errors and `[DONE]`s."""
        return sum(_is_end(said) for _, said, *_ in self.heard)

    def read_to_end(self) -> None:
        """Come back as often as it takes. Raises where that is for ever."""
        ends_at = time.monotonic() + _PATIENCE_S
        while not self.has_all:
            assert time.monotonic() < ends_at, str(self)
            num_heard = len(self.heard)
            self.read()
            if len(self.heard) > num_heard:
                ends_at = time.monotonic() + _PATIENCE_S
            time.sleep(_AGAIN_S)

    def read(self) -> None:
        """Until the end, or until the server is gone."""
        if self._name:
            last = {"last-event-id": str(len(self.heard))}
            events = self._events("GET", f"/v1/streams/{self._name}", headers=last)
        else:
            self.heard.clear()
            events = self._events("POST", self._path, self._body, {"idempotency-key": self._key})
        for event in events:
            self.heard.append(lasting(event))
            self.heard_at.append(time.perf_counter())

    def _events(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}
    ) -> Iterator[ServerSentEvent]:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=60)
        decoder = EventDecoder()
        with suppress(OSError, http.client.HTTPException):
            connection.request(method, path, body and json.dumps(body), headers)
            response = connection.getresponse()
            if response.status != 200:
                self._refusal = f"{response.status} {response.read(300)!r}"
                return
            if self._is_resumable:
                self._name = response.getheader("x-headrace-stream") or ""
            self.back_at = time.perf_counter()
            while part := response.read1(65536):
                yield from decoder.feed(part)
        connection.close()


def lasting(event: ServerSentEvent) -> Any:
    """An event without what times and request ids are in: its number, and what it says."""
    if event.data == "[DONE]":
        return event.id, event.data
    said = json.loads(event.data)
    if "error" in said:
        return event.id, {"error": said["error"]}
    for choice in said["choices"]:
        for call in choice.get("delta", {}).get("tool_calls") or ():
            call.pop("id", None)  # made of the request's id
    usage = said.get("usage") or (said.get("x_groq") or {}).get("usage") or {}
    return event.id, said["choices"], [usage.get(name) for name in _COUNTS]


def _is_end(said: Any) -> bool:
    if isinstance(said, list):
        return any(choice["finish_reason"] for choice in said)
    return True


def undisturbed(mortal: Mortal, questions: Sequence[Mapping[str, Any]]) -> list[Reader]:
    """What a server says that nobody kills."""
    readers = [Reader(mortal.port, each, f"first-{at}") for at, each in enumerate(questions)]
    with mortal.alive(), ThreadPoolExecutor(4) as threads:
        list(threads.map(Reader.read_to_end, readers))
    return readers


def disturbed(
    mortal: Mortal,
    questions: Sequence[Mapping[str, Any]],
    kills: Sequence[Kill],
    name: str = "again",
) -> list[Reader]:
    """What those hear, all at once, whose server is killed in these ways, one after the other."""
    readers = [Reader(mortal.port, each, f"{name}-{at}") for at, each in enumerate(questions)]
    with ThreadPoolExecutor(len(readers)) as threads:
        reading = [threads.submit(reader.read_to_end) for reader in readers]
        try:
            for kill in kills:
                mortal.start()
                kill(readers)
                mortal.kill()
            with mortal.alive():
                for each in reading:
                    each.result()
        finally:
            mortal.end()
    return readers


class Kill:
    """The moment of a death: a while after the server's start, or after each stream went on."""

    def __init__(self, wait_s: float, *, is_early: bool) -> None:
        self._wait_s = wait_s
        self._is_early = is_early

    def __call__(self, readers: Sequence[Reader]) -> None:
        """Returns when it has come."""
        if not self._is_early:
            wait_for_news(readers)
        time.sleep(self._wait_s)


def wait_for_news(readers: Sequence[Reader], num_events: int = 2) -> None:
    """Returns when each has heard so much more, or all: of what is only said again, one event at
    most is news to a client."""
    due = [(reader, len(reader.heard) + num_events) for reader in readers]
    ends_at = time.monotonic() + _PATIENCE_S
    while not all(reader.has_all or len(reader.heard) >= num for reader, num in due):
        assert time.monotonic() < ends_at, list(map(str, readers))
        time.sleep(0.001)


def random_kills(chance: random.Random, num: int, spread_s: float = 0.15) -> list[Kill]:
    """One in four while the server starts or has just begun to go on, the others while it speaks;
    never two early ones in a row, because a stream that three servers in a row do not get any
    further is given up."""
    kills: list[Kill] = []
    was_early = False
    for _ in range(num):
        was_early = not was_early and chance.random() < 1 / 3
        wait_s = chance.uniform(0, 1.5 if was_early else spread_s)
        kills.append(Kill(wait_s, is_early=was_early))
    return kills


def home_with(model: Path, folder: Path) -> Path:
    """A data folder of its own, with that model."""
    (folder / "models").mkdir(parents=True)
    (folder / "models" / model.name).symlink_to(model)
    return folder
