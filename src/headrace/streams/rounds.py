"""Wakes the readers of one stream: a few with every event, a crowd in rounds.

In: arrivals in a log. Out: futures that are done. Thread: the event loop.
Next: `server/streams.py`.

Each reader that is woken costs a turn of the loop and a write. Done for every token, two hundred
of them would take the processor from the generation itself; so the more there are, the longer
they wait for each other, and get more at a time.
"""

from __future__ import annotations

import asyncio

from headrace.streams.log import StreamLog

FEW = 4
"""So many readers are woken with every event."""
PAUSE_S = 0.001
"""From one round to the next, for each reader, at least."""
SHARE = 1 / 40
"""Of the loop's time, what rounds may take: one that took long is followed by a longer pause. A
reader costs 30 to 150 µs, by what else the processor has to do."""


class Rounds:
    """Those who wait for more of a log."""

    def __init__(self, log: StreamLog) -> None:
        self._log = log
        self._waiting: set[asyncio.Future[None]] = set()
        self._is_listening = False
        self._timer: asyncio.TimerHandle | None = None
        self._next_at = 0.0

    def wait(self) -> asyncio.Future[None]:
        """Done when more has come, a little later where many wait. Whoever waits no more may
        cancel it. Only for a log that is not over."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        waiter.add_done_callback(self._waiting.discard)
        if not self._is_listening and self._timer is None:
            self._is_listening = True
            self._log.arrival().add_done_callback(lambda arrival: self._arrived())
        return waiter

    def wake(self) -> None:
        """Let all go on now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, set()
        loop = asyncio.get_running_loop()
        begun_at = loop.time()
        self._next_at = begun_at + len(waiting) * PAUSE_S
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
        # Behind all who were woken: they read and write in the loop's next turn.
        loop.call_soon(self._measure, begun_at)

    def _measure(self, begun_at: float) -> None:
        took_s = asyncio.get_running_loop().time() - begun_at
        self._next_at = max(self._next_at, begun_at + took_s / SHARE)

    def _arrived(self) -> None:
        self._is_listening = False
        loop = asyncio.get_running_loop()
        wait_s = self._next_at - loop.time()
        if len(self._waiting) <= FEW or wait_s <= 0 or self._log.is_over:
            self.wake()
        elif self._timer is None:
            self._timer = loop.call_later(wait_s, self.wake)
