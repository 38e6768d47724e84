"""Turns of a conversation: what the engine keeps of them, and for whom."""

import pytest

from headrace.engine.engine import EngineConfig
from headrace.engine.pins import LEASE_S
from headrace.engine.request import Request
from headrace.engine.stream import Generation
from headrace.errors import EngineClosed
from headrace.testing import ManualEngine

POOL = EngineConfig(pool_bytes=16 * 64)
"""16 banks of 16 positions."""
PROMPT = "x" * 50


def begin(engine: ManualEngine, prompt: str = PROMPT, **settings: object) -> Generation:
    settings = {"max_tokens": 1, **settings}
    return engine.generate_sync(Request(prompt=prompt, **settings))  # type: ignore[arg-type]


def ask(engine: ManualEngine, prompt: str = PROMPT, **settings: object) -> int:
    """Ask and answer; how many tokens of the prompt were there already."""
    generation = begin(engine, prompt, **settings)
    engine.run_until_idle()
    return generation.choice.usage.num_cached_tokens


def crowd(engine: ManualEngine) -> None:
    """Others come, and take all banks that they can get."""
    for letter in "abcdef":
        ask(engine, letter * 120, tenant="others")


def test_a_conversation_keeps_its_banks_whoever_comes() -> None:
    engine = ManualEngine(config=POOL)
    ask(engine, conversation="talk")
    crowd(engine)
    assert ask(engine) == 48


def test_other_requests_do_not() -> None:
    engine = ManualEngine(config=POOL)
    ask(engine)
    crowd(engine)
    assert ask(engine) == 0


def test_banks_are_kept_for_the_tenant_alone() -> None:
    engine = ManualEngine(config=POOL)
    ask(engine, conversation="talk", tenant="alice")
    assert ask(engine, conversation="talk", tenant="bob") == 0


def test_after_a_cancelled_turn_the_last_good_one_is_still_warm() -> None:
    engine = ManualEngine(config=POOL)
    ask(engine, conversation="talk")
    broken = begin(engine, "y" * 50, conversation="talk", max_tokens=9)
    engine.step()
    broken.cancel()
    engine.run_until_idle()
    crowd(engine)
    assert ask(engine, PROMPT) == 48


def test_a_conversation_that_is_idle_for_long_gives_way() -> None:
    engine = ManualEngine(config=POOL)
    ask(engine, conversation="talk")
    engine.clock.advance(LEASE_S)
    crowd(engine)
    assert ask(engine) == 0


def test_of_several_answers_one_is_kept() -> None:
    engine = ManualEngine(config=POOL)
    generation = engine.generate_sync(
        Request(
            prompt=PROMPT,
            max_tokens=20,
            n=3,
            temperature=1.0,
            ignore_eos=True,
            conversation="talk",
        )
    )
    engine.run_until_idle()
    assert engine._loop._scheduler.kv.pins.num_banks == 69 // 16
    assert len(list(generation.events())) > 3


def test_a_forgotten_conversation_leaves_no_banks() -> None:
    engine = ManualEngine(config=POOL)
    ask(engine, conversation="talk")
    assert engine.stats().num_cached_banks == 3
    is_done = engine.forget("", "talk")
    engine.run_until_idle()
    assert is_done.done()
    assert engine.stats().num_cached_banks == 0
    assert ask(engine) == 0


def test_what_runs_while_it_is_forgotten_is_not_kept() -> None:
    engine = ManualEngine(config=POOL)
    generation = begin(engine, conversation="talk")
    engine.forget("", "talk")
    engine.run_until_idle()
    assert generation.choice.reason == "length"
    assert engine.stats().num_cached_banks == 0
    assert ask(engine) == 0


def test_forgetting_what_is_unknown_or_too_late() -> None:
    engine = ManualEngine(config=POOL)
    unknown = engine.forget("", "nobody")
    engine.run_until_idle()
    unknown.result(0)
    late = engine.forget("", "talk")
    engine.close()
    for future in (late, engine.forget("", "talk")):
        with pytest.raises(EngineClosed):
            future.result(0)
