"""An engine that moves only when it is told to: no thread, no clock, one step at a time."""

from __future__ import annotations

from headrace.engine.engine import Engine, EngineConfig
from headrace.model.interface import Model
from headrace.testing.fake_model import FakeModel
from headrace.testing.fake_tokenizer import FakeTemplate, FakeTokenizer

MAX_STEPS = 100_000


class ManualClock:
    """Seconds that pass when they are told to."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class ManualEngine(Engine):
    """The real engine, mailbox, scheduler and KV cache, on a fake model, stepped by hand.

        engine = ManualEngine()
        generation = engine.generate_sync(Request(prompt="a", max_tokens=3))
        engine.step()
        generation.ready()

    All happens on one thread, so whoever waits for an event that no step has made waits for ever:
    take what is `ready()`, or call `run_until_idle` first.
    """

    def __init__(self, model: Model | None = None, config: EngineConfig | None = None) -> None:
        self.clock = ManualClock()
        super().__init__(
            model or FakeModel(),
            FakeTokenizer(),
            FakeTemplate(),
            config,
            clock=self.clock,
            start=lambda loop: loop.bury,
            start_files=lambda: (lambda work: work(), lambda: None),
        )

    def step(self) -> None:
        """What the engine thread does when it is awake, once."""
        self._loop.step()

    def run_until_idle(self) -> int:
        """Step until there is nothing to do; returns how many steps that took. Raises
        `RuntimeError` where there is still work after `MAX_STEPS` steps."""
        for num_steps in range(MAX_STEPS):
            if not self._loop.has_work:
                return num_steps
            self._loop.step()
        raise RuntimeError(f"the engine is still busy after {MAX_STEPS} steps")
