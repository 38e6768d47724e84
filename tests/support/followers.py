"""Readers of a stream that is kept, by each transport: they come, dawdle, leave, come back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

from headrace.testing.asgi import Call
from headrace.wire.sse import EventDecoder
from support.asgi import Door, settle
from support.sockets import SocketCall, is_last

TRANSPORTS = ("sse", "socket", "poll")
Frames: TypeAlias = list[tuple[int, str]]
"""Numbers and data."""
_MAX_TURNS = 2000


def sse_frames(body: bytes) -> Frames:
    """Of the whole events in `body`."""
    events = EventDecoder().feed(body)
    return [(int(event.id), event.data) for event in events]


def poll_frames(page: dict[str, Any]) -> Frames:
    return [(event["id"], _text(event["data"])) for event in page["events"]]


def socket_frames(messages: Sequence[dict[str, Any]]) -> Frames:
    """Of the messages under one id, beside the first."""
    return [
        (message["event"], _text(message.get("data", {"error": message.get("error")})))
        for message in messages
        if "event" in message
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def same(frames: Frames) -> list[tuple[int, Any]]:
    """Without regard to how JSON is spaced."""
    return [(n, data if data == "[DONE]" else json.loads(data)) for n, data in frames]


class Follower:
    """One reader, and what it has read over all its visits."""

    def __init__(self, transport: str, after: int = 0, *, is_slow: bool = False) -> None:
        self.transport = transport
        self.after = after
        self.read: Frames = []
        self.is_slow = is_slow
        self.visit: Call | SocketCall | None = None
        self._num_taken = 0

    @property
    def last(self) -> int:
        return self.read[-1][0] if self.read else self.after

    def come(self, door: Door, name: str) -> None:
        path = f"/v1/streams/{name}"
        self._num_taken = 0
        match self.transport:
            case "sse":
                self.visit = door.call("GET", path, headers={"last-event-id": str(self.last)})
            case "poll":
                self.visit = door.call("GET", f"{path}/events?after={self.last}&wait=30")
            case _:
                self.visit = SocketCall.at(door)
                wish = {"id": "r", "type": "resume", "stream": name, "after": self.last}
                self.visit.say(wish)
        if self.is_slow:
            self.visit.stop_reading()

    def read_slowly(self, is_slow: bool) -> None:
        self.is_slow = is_slow
        if self.visit is not None:
            (self.visit.stop_reading if is_slow else self.visit.read_on)()

    async def stop(self, door: Door, name: str) -> None:
        """End the stream for everybody, in the transport's own way."""
        match self.transport:
            case "socket":
                assert isinstance(self.visit, SocketCall)
                self.visit.say({"id": "r", "type": "cancel"})
                await settle()
            case "sse":
                stopping = door.call("POST", f"/v1/streams/{name}/cancel")
                assert (await door.answer(stopping)).status == 200
            case _:
                stopping = door.call("DELETE", f"/v1/streams/{name}")
                assert (await door.answer(stopping)).status == 200

    def take(self) -> None:
        """What has arrived, as far as it is whole, and was not read before."""
        frames: Frames = []
        match self.visit:
            case SocketCall():
                frames = socket_frames(self.visit.of("r"))
            case Call() if self.visit.status not in (None, 204, 410):
                if self.transport == "sse":
                    frames = sse_frames(self.visit.body)
                elif self.visit.is_whole:
                    frames = poll_frames(json.loads(self.visit.body))
        new, self._num_taken = frames[self._num_taken :], len(frames)
        # Who comes back over a socket and has all is told the end again: each answer has one.
        self.read += [frame for frame in new if frame[0] > self.last]

    async def go(self) -> None:
        """Leave, with what has arrived."""
        if self.visit is not None:
            self.take()
            self.visit.leave()
            await self.visit.ended()
            self.visit = None

    async def until_told(self, door: Door) -> None:
        """Until this visit's answer is whole; then it leaves."""
        self.read_slowly(False)
        visit = self.visit
        if isinstance(visit, Call):
            await door.answer(visit)
        elif visit is not None:
            for _ in range(_MAX_TURNS):
                if any(map(is_last, visit.of("r"))):
                    break
                await door.turn()
        self.take()
        if isinstance(visit, SocketCall):
            visit.leave()
            await visit.ended()
        self.visit = None

    @property
    def refusal(self) -> int | None:
        """The status with which this visit was refused."""
        if isinstance(self.visit, Call):
            return self.visit.status if (self.visit.status or 0) >= 400 else None
        first = self.visit.of("r")[:1] if self.visit is not None else []
        return first[0]["error"]["status_code"] if first and "error" in first[0] else None
