"""How far a request is that says nothing yet, as events beside the answer: only for who asks.

In: a pump. Out: frames named `headrace.progress`. Thread: the event loop. Next: `sse.py`,
`streams.py`.

They are about the moment and not part of the answer: never numbered, never told again.
"""

from __future__ import annotations

from headrace.engine.progress import Progress
from headrace.streams.pump import Pump
from headrace.wire.ask import JSON
from headrace.wire.sse import json_frame

EVENT = "headrace.progress"
LOOK_S = 0.25
"""How often there may be news."""


class ProgressTeller:
    """Tells one reader what has changed."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        self._last: JSON = None

    @property
    def is_over(self) -> bool:
        """Tokens have come, or the end: there is nothing more to tell."""
        return self._pump.progress() is None

    def frame(self) -> bytes:
        """What has changed since the last time; nothing where nothing has."""
        progress = self._pump.progress()
        told = None if progress is None else _told(progress)
        if told is None or told == self._last:
            return b""
        self._last = told
        return json_frame(told, EVENT)


def _told(progress: Progress) -> dict[str, JSON]:
    if progress.is_queued:
        return {
            "state": "queued",
            "queue_position": progress.num_ahead + 1,
            "estimated_wait_s": round(progress.wait_s, 1),
            "prompt_tokens": progress.num_prompt_tokens,
        }
    return {
        "state": "prefill",
        "prompt_tokens": progress.num_prompt_tokens,
        "computed_tokens": progress.num_computed_tokens,
    }
