"""How long a generation may take, and who notices when it takes longer.

In: which choices have begun, and when tokens came. Out: one call when time runs out.
Thread: the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from headrace.errors import EngineOverloaded, GenerationTimeout, HeadraceError


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds; None: for ever."""

    queue_s: float | None = None
    """Until a step computes for any of the choices; the others may wait for those."""
    first_token_s: float | None = None
    """From a choice's first step to its first token."""
    stall_s: float | None = None
    """Between two tokens of a choice."""
    total_s: float | None = None
    """From the request to the end of all choices."""


_Deadline: TypeAlias = tuple[float, Callable[[], HeadraceError]]
"""When, and what it means to miss it."""


class Watchdog:
    """Watches the choices of one generation with a single timer: it is set where a deadline begins;
    tokens move that on without touching it, and it looks again when the nearest could have passed.
    """

    def __init__(
        self,
        patience: Patience,
        catch_up: Callable[[], None],
        run_out: Callable[[HeadraceError], None],
        *,
        age_s: float = 0.0,
    ) -> None:
        """`catch_up` brings what may have come unheard, before a deadline is said to be missed.
        `run_out` is called at most once, with what to tell the client. `age_s`: how long ago the
        request came, where another process took it; only the whole answer's deadline counts that,
        because the queue is a new one."""
        self._patience = patience
        self._catch_up = catch_up
        self._run_out = run_out
        self._begun_at = time.perf_counter()
        self._asked_at = self._begun_at - age_s
        self._is_queued = True
        self._computed_since: dict[int, float] = {}
        self._heard_at: dict[int, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = 0.0

    def start(self) -> None:
        self._look_in_time()

    def began(self, choice: int, now: float) -> None:
        self._is_queued = False
        self._computed_since[choice] = now
        self._look_in_time()

    def heard(self, choice: int, now: float) -> None:
        is_first = choice not in self._heard_at
        self._heard_at[choice] = now
        if is_first:
            self._computed_since.pop(choice, None)
            self._look_in_time()

    def ended(self, choice: int) -> None:
        self._computed_since.pop(choice, None)
        self._heard_at.pop(choice, None)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        self._catch_up()
        nearest = self._nearest()
        if nearest is not None and time.perf_counter() >= nearest[0]:
            self._run_out(nearest[1]())
        else:
            self._look_in_time()

    def _look_in_time(self) -> None:
        """Look when the nearest deadline could have passed; a timer that ends sooner will do."""
        nearest = self._nearest()
        if nearest is None or (self._timer is not None and self._looks_at <= nearest[0]):
            return
        self.stop()
        self._looks_at = nearest[0]
        wait_s = max(0.0, self._looks_at - time.perf_counter())
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._look)

    def _nearest(self) -> _Deadline | None:
        """The deadline that comes first."""
        return min(self._deadlines(), key=lambda deadline: deadline[0], default=None)

    def _deadlines(self) -> Iterator[_Deadline]:
        """Each kind's earliest."""
        patience = self._patience
        if patience.total_s is not None:
            yield self._asked_at + patience.total_s, self._not_whole
        if patience.queue_s is not None and self._is_queued:
            yield self._begun_at + patience.queue_s, self._not_begun
        if patience.first_token_s is not None and self._computed_since:
            yield min(self._computed_since.values()) + patience.first_token_s, self._not_said
        if patience.stall_s is not None and self._heard_at:
            yield min(self._heard_at.values()) + patience.stall_s, self._stalled

    def _not_whole(self) -> HeadraceError:
        return GenerationTimeout(f"the answer was not whole within {self._patience.total_s:g} s")

    def _not_begun(self) -> HeadraceError:
        queue_s = self._patience.queue_s
        text = f"no step computed for the request within {queue_s:g} s; come again"
        return EngineOverloaded(text, retry_after_s=queue_s)

    def _not_said(self) -> HeadraceError:
        return GenerationTimeout(f"no first token came within {self._patience.first_token_s:g} s")

    def _stalled(self) -> HeadraceError:
        return GenerationTimeout(f"no further token came within {self._patience.stall_s:g} s")
