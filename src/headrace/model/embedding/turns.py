"""A lock whose waiters get it in the order in which they came.

Who takes it again at once stands behind those who wait, so a long row of slices never keeps a short
one waiting for more than one slice. `threading.Lock` promises no order.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """May be used from any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_taken = False
        self._waiting: deque[threading.Event] = deque()

    @contextmanager
    def turn(self) -> Iterator[None]:
        self._take()
        try:
            yield
        finally:
            self._hand_over()

    def _take(self) -> None:
        with self._lock:
            if not self._is_taken:
                self._is_taken = True
                return
            called = threading.Event()
            self._waiting.append(called)
        try:
            called.wait()
        except BaseException:  # Ctrl-C: whoever was called and does not come calls the next
            self._leave(called)
            raise

    def _leave(self, called: threading.Event) -> None:
        with self._lock:
            if called in self._waiting:
                self._waiting.remove(called)
                return
        self._hand_over()

    def _hand_over(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()  # it stays taken
            else:
                self._is_taken = False
