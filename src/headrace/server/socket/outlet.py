"""All that one socket sends: its answers in turns, as fast as the client reads.

In: logs of many answers. Out: messages, those of one turn in one write. Thread: the event loop.
Next: `protocol.py`, which frames them.

A client that reads slowly makes `send` wait, and nothing is encoded meanwhile: what comes is kept
by the logs, and merged by their views.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from starlette.types import Scope, Send

MESSAGES = "headrace.messages"
"""An extension of ASGI: `{"type": MESSAGES, "messages": [bytes, …]}` sends several at once, and
`scope["extensions"][MESSAGES]["write"]` does that without waiting, or says False. Where it has an
`"early"`, that is an `Early`."""

_TURN_BYTES = 16_384
"""One answer's, before the next one has its turn."""
_WRITE_BYTES = 65_536
"""All answers', before the loop has its turn."""
_MAX_WORDS = 64
"""Messages that belong to no log and may wait, before the client is not listened to."""


class Early(Protocol):
    """A way past the event loop, on the engine thread."""

    def open_early(self) -> None:
        """On the loop: there may be something to write from now on. Any number of times."""

    def close_early(self) -> None:
        """On the loop, when nobody on the engine thread is writing or will."""

    def write_early(self, make: Callable[[], Sequence[bytes]]) -> bool:
        """Engine thread: send the messages that `make` makes, without waiting. What the client does
        not take is sent by the loop, before anything else. False, and nothing is made, where this
        is not open or what was written before waits to be sent. Raises what `make` raises."""


class Source(Protocol):
    """Where an answer's messages come from."""

    @property
    def is_ended(self) -> bool:
        """The last message has been taken."""

    def take(self, num_bytes: int) -> list[bytes]:
        """What has come and was not taken, about so much of it; maybe nothing."""

    def ride(self, rail: Outlet, when_over: Callable[[], None]) -> bool:
        """Pass on what comes as it comes, while `rail` is free and it is nothing but tokens; then
        call `when_over`. False where that cannot be."""

    def arrival(self) -> asyncio.Future[None] | None:
        """Done when there is more to take; None where there is already."""


class Speech:
    """One answer on its way out."""

    def __init__(self, opening: bytes, source: Source, on_end: Callable[[], None]) -> None:
        """`opening` is its first message; `on_end` is called when the last one is about to be
        sent."""
        self._opening = [opening]
        self.has_begun = False
        """Something of it was sent: the client may know of it."""
        self._source = source
        self._on_end = on_end
        self.arrival = source.arrival
        self.ride = source.ride
        self.sent: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """True when the last message has been sent, False when it was abandoned. Raises what is
        wrong with the source."""

    @property
    def is_ended(self) -> bool:
        return self._source.is_ended

    def take(self) -> list[bytes]:
        """One turn's messages; maybe none."""
        taken = self._opening + self._source.take(_TURN_BYTES)
        self._opening = []
        if self.is_ended:
            self._on_end()
        return taken

    def was_written(self) -> None:
        """What was taken has been sent."""
        self.has_begun = True
        if self.is_ended and not self.sent.done():
            self.sent.set_result(True)

    def abandon(self) -> None:
        """Nobody listens any more."""
        if not self.sent.done():
            self.sent.set_result(False)


class _Turn(NamedTuple):
    """Messages of one write, and whose they are."""

    messages: list[bytes]
    speakers: list[Speech]

    def was_written(self) -> None:
        for speech in self.speakers:
            speech.was_written()


class Outlet:
    """What a socket has to send. A turn's messages are written where the turn ends; only what has
    to wait for the client is left to a task."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send = send
        extension = scope.get("extensions", {}).get(MESSAGES)
        self._write_now = _cannot if extension is None else extension["write"]
        self._takes_many = extension is not None
        self._early: Early | None = None if extension is None else extension.get("early")
        self._loop = asyncio.get_running_loop()
        self._words: list[bytes] = []
        self._passed: list[bytes] = []
        """Messages of answers that ride, of this turn."""
        self._num_riding = 0
        self.is_free = True
        """Nothing that was taken has to wait for the client. A plain field: it is asked for every
        token."""
        self._is_idle = True
        """No turn is due, nor going on, nor waiting for the client."""
        self._ready: deque[Speech] = deque()
        self._is_due = False
        self._waiting: _Turn | None = None
        """What could not be written at once; nothing else is taken until it was."""
        self._has_waiting = asyncio.Event()
        self._is_closed = False
        self._room = asyncio.Event()
        self._room.set()

    def say(self, message: bytes) -> None:
        """Send `message` before anything else."""
        self._words.append(message)
        if len(self._words) >= _MAX_WORDS:
            self._room.clear()
        self._soon()

    def add(self, speech: Speech) -> None:
        """Send what it says until its end, or until it is abandoned."""
        self._ready.append(speech)
        self._soon()

    def pass_on(self, messages: list[bytes]) -> None:
        """Send messages of an answer that rides: with those of the others in this turn, or at once
        where there are none. Only while `is_free`."""
        if self._num_riding > 1 or self._is_due:
            self._passed += messages
            if not self._is_due:
                self._soon()
        elif not self._write_now(messages):
            self._wait_with(_Turn(messages, []))

    def pass_early(self, make: Callable[[], list[bytes]]) -> bool:
        """Engine thread: make and send messages of an answer that rides; False where something may
        wait to be sent before them. Who rides has nothing else under way, so while no turn is due,
        that is nothing of its own."""
        return self._is_idle and self._early is not None and self._early.write_early(make)

    def _wait_with(self, turn: _Turn) -> None:
        self._waiting = turn
        self.is_free = self._is_idle = False
        self._has_waiting.set()

    async def room(self) -> None:
        """Returns when few messages of `say` wait."""
        await self._room.wait()

    async def run(self) -> None:
        """Send what has to wait, for ever. Raises what `send` raises: `OSError` where the client
        has gone. Nothing is sent any more when this has ended."""
        try:
            while True:
                await self._has_waiting.wait()
                self._has_waiting.clear()
                if self._waiting is not None:
                    await self._write(self._waiting.messages)
                    self._waiting.was_written()
                self._waiting = None
                self.is_free = True
                self._soon()
        finally:
            self._is_closed = True
            self.is_free = self._is_idle = False

    def _soon(self) -> None:
        """A turn when everybody who is ready now has said so."""
        if not self._is_due:
            self._is_due = True
            self._is_idle = False
            self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._is_due = False
        if self._is_closed or self._waiting is not None:
            return
        turn = self._gather()
        if turn.messages and not self._write_now(turn.messages):
            self._wait_with(turn)
            return
        turn.was_written()
        if self._ready:
            self._soon()
        # Only now: who began to ride in this turn has something before it.
        self._is_idle = not self._is_due

    def _gather(self) -> _Turn:
        """What everybody has to say, in turn."""
        messages, self._words = self._words, []
        self._room.set()
        messages += self._passed
        self._passed = []
        speakers: list[Speech] = []
        num_bytes = 0
        for _ in range(len(self._ready)):
            if num_bytes >= _WRITE_BYTES:
                break
            speech = self._ready.popleft()
            if speech.sent.done():
                continue
            try:
                taken = self._taken(speech)
            except Exception as error:  # harms this answer alone
                speech.sent.set_exception(error)
                continue
            num_bytes += sum(map(len, taken))
            messages += taken
            speakers.append(speech)
        return _Turn(messages, speakers)

    def _taken(self, speech: Speech) -> Sequence[bytes]:
        """One turn's messages. Until its end, `speech` is ready again when it has more."""
        taken = speech.take()
        if speech.is_ended or self._rides(speech):
            return taken
        arrival = speech.arrival()
        if arrival is None:
            self._ready.append(speech)
        else:
            arrival.add_done_callback(lambda _: self.add(speech))
        return taken

    def _rides(self, speech: Speech) -> bool:
        """Whether its messages come by themselves from now on, until it is ready again."""

        def is_over() -> None:
            self._num_riding -= 1
            if self._early is not None and not self._num_riding:
                self._early.close_early()
            self.add(speech)

        does = speech.ride(self, is_over)
        self._num_riding += does
        if does and self._early is not None:
            self._early.open_early()
        return does

    async def _write(self, messages: list[bytes]) -> None:
        if self._takes_many:
            await self._send({"type": MESSAGES, "messages": messages})
            return
        for message in messages:
            await self._send({"type": "websocket.send", "text": message.decode()})


def _cannot(messages: list[bytes]) -> bool:
    return False
