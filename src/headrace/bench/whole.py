"""The whole engine, as a caller sees it: requests in, events out, everything in between timed.

In: prompts. Out: seconds. Thread: the caller's, with an event loop of its own.
Next: `engine/engine.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from headrace.bench.figures import Prompts
from headrace.engine.engine import Engine
from headrace.engine.profile import StepProfile
from headrace.engine.request import Request
from headrace.errors import BenchError
from headrace.events import Delta, Failed

_T = TypeVar("_T")


@dataclass(slots=True)
class Arrivals:
    """When one stream's tokens came: (moment, how many) of each delta, in order."""

    deltas: list[tuple[float, int]] = field(default_factory=list)

    @property
    def first_at(self) -> float:
        return self.deltas[0][0]

    @property
    def last_at(self) -> float:
        return self.deltas[-1][0]

    def num_between(self, begin: float, end: float) -> int:
        """Tokens that came after `begin`, up to `end`."""
        return sum(count for at, count in self.deltas if begin < at <= end)


class EngineRunner:
    """A `Runner` on a running engine that nobody else uses."""

    def __init__(self, engine: Engine) -> None:
        """Closes `engine` in the end."""
        self._engine = engine
        self._loop = asyncio.new_event_loop()
        self.profile: StepProfile | None = None
        """Of the steps of the last `decode`, while all its sequences were running."""

    @property
    def vocab_size(self) -> int:
        return self._engine.spec.vocab_size

    def prefill(self, prompts: Prompts) -> float:
        """Time to the first token, as the caller waits for it."""
        return self.run(self._prefill(prompts[0]))

    def decode(self, prompts: Prompts, num_generated: int) -> float:
        """Seconds that `num_generated` tokens of every sequence took, at the pace of the time in
        which all of them were running: from the last one's first token to the first one's last."""
        return self.run(self._decode(prompts, num_generated))

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        self._engine.close()
        self._loop.close()

    async def stream(self, token_ids: Sequence[int], max_tokens: int, into: Arrivals) -> None:
        """Generate greedily past every end, and note when each token came."""
        request = Request(token_ids=token_ids, max_tokens=max_tokens, ignore_eos=True)
        async with self._engine.generate(request) as events:
            async for event in events:
                if isinstance(event, Delta):
                    into.deltas.append((time.perf_counter(), len(event.token_ids)))
                elif isinstance(event, Failed):
                    raise event.error

    async def _prefill(self, prompt: list[int]) -> float:
        begun, arrivals = time.perf_counter(), Arrivals()
        await self.stream(prompt, 1, arrivals)
        return arrivals.first_at - begun

    async def _decode(self, prompts: Prompts, num_generated: int) -> float:
        # The first ones run on while the last prompts are computed, so all ask for some more.
        max_tokens = num_generated + 4 * len(prompts)
        streams = [Arrivals() for _ in prompts]
        tasks = [
            asyncio.create_task(self.stream(prompt, max_tokens, arrivals))
            for prompt, arrivals in zip(prompts, streams, strict=True)
        ]
        while not all(arrivals.deltas for arrivals in streams) and not tasks[0].done():
            await asyncio.sleep(0.001)
        before = self._engine.step_profile()
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        self.profile = self._engine.step_profile().since(before)
        await asyncio.gather(*tasks)
        begin = max(arrivals.first_at for arrivals in streams)
        end = min(arrivals.last_at for arrivals in streams)
        num_tokens = sum(arrivals.num_between(begin, end) for arrivals in streams)
        if num_tokens < len(prompts) * num_generated / 4:
            raise BenchError("the sequences did not run side by side for long enough to be timed")
        return (end - begin) * len(prompts) * num_generated / num_tokens
