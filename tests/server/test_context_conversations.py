"""Strategies in kept conversations: whose word holds, what a turn computes, summaries that stay."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from headrace.testing import END_ID, FakeModel, ManualEngine, saying
from headrace.testing.asgi import Call
from support.asgi import CHAT, Door, run

CONVERSATIONS = "/v1/conversations"
API = "/api/chat"
SUMMARY = {"strategy": "summary", "max_tokens": 200, "trigger_at_ratio": 0.6}


class Scripted:
    """A summarizer that says how often it was asked."""

    num_asked = 0

    async def summarise(
        self, tenant: str, block: Sequence[Any], before: str | None, max_tokens: int
    ) -> str:
        self.num_asked += 1
        return f"summary {self.num_asked}"


def opened(folder: Path) -> Door:
    rule = saying(list(b"Hello there."), END_ID)
    engine = ManualEngine(FakeModel(rule=rule, context_length=8192))
    door = Door(engine, database_url=f"sqlite:///{folder}/c.db")
    door.serving.summaries.summarizer = Scripted()
    return door


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    door = opened(tmp_path)
    yield door
    door.serving.conversations.close()


async def answered(door: Door, call: Call) -> Call:
    """Stepped until it is over, and all that hangs on it."""
    serving = door.serving
    while (
        not call.has_ended
        or serving.conversations.num_open
        or serving.summaries.num_running
        or serving.warmer.num_running
    ):
        await asyncio.sleep(0.002)
        if door.engine.stats().num_pending_requests:
            door._step()
    return await call.ended()


async def turn(door: Door, text: str, named: str = "c-1", **fields: Any) -> dict[str, Any]:
    """The report of one turn, and its usage under `usage`."""
    context = {"report": True, **fields.pop("context", {})}
    body = {
        "model": "fake",
        "messages": [{"role": "user", "content": text}],
        "conversation": named,
        "context": context,
        **fields,
    }
    call = await answered(door, door.post(CHAT, body))
    assert call.status == 200, call.body
    answer = json.loads(call.body)
    found: dict[str, Any] = answer["x_headrace"]["context"]
    return found | {"usage": answer["usage"]}


async def made(door: Door, named: str = "c-1", **fields: Any) -> None:
    call = await answered(door, door.post(CONVERSATIONS, {"id": named, **fields}))
    assert call.status == 200, call.body


def test_a_turn_computes_only_what_is_new(door: Door) -> None:
    async def play() -> None:
        await made(door)
        before = 0
        for number in range(3):
            found = await turn(door, f"question {number}")
            assert found["cached_tokens"] >= before - 1 - 16
            usage = found["usage"]
            before = usage["prompt_tokens"] + usage["completion_tokens"]
            assert found["kept"]["messages"] == 2 * number

    run(play)


def test_after_passages_the_next_turn_finds_the_history_computed(door: Door) -> None:
    wheel = "The water wheel in the yard turns nine times a minute. " * 4

    async def play() -> None:
        await made(door)
        documents = [{"id": "wheel", "source": {"type": "text", "text": wheel}}]
        retrieval = {"strategy": "retrieval", "k": 1}
        first = await turn(
            door, "How fast does the water wheel turn?", documents=documents, context=retrieval
        )
        assert first["retrieved"]["tokens"] > 50
        second = await turn(door, "Why is that?", context=retrieval)
        assert second["kept"]["messages"] == 2
        assert second["cached_tokens"] >= second["kept"]["tokens"]
        await (await door.serving.memories.kept()).close()

    run(play)


def test_a_conversations_own_context_holds_where_a_turn_says_nothing(door: Door) -> None:
    async def play() -> None:
        await made(door, context={"strategy": "sliding_window", "keep_turns": 0})
        await turn(door, "one")
        found = await turn(door, "two")
        assert (found["strategy"], found["dropped"]["messages"]) == ("sliding_window", 2)
        found = await turn(door, "three", context={"strategy": "full"})
        assert (found["strategy"], found["kept"]["messages"]) == ("full", 4)

    run(play)


def test_a_context_that_makes_no_sense_is_not_kept(door: Door) -> None:
    async def play() -> None:
        call = door.post(CONVERSATIONS, {"id": "c-2", "context": {"strategy": "best"}})
        await answered(door, call)
        assert call.status == 400
        assert json.loads(call.body)["error"]["param"] == "context.strategy"

    run(play)


def test_banks_may_follow_when_turns_are_dropped(door: Door) -> None:
    async def play() -> None:
        await made(door)
        shift = {"strategy": "sliding_window", "max_tokens": 400, "mode": "shift"}
        reports = [await turn(door, f"question {n} " + "x" * 40, context=shift) for n in range(9)]
        assert any(report["dropped"]["messages"] for report in reports)
        assert max(report["shifted_tokens"] for report in reports) > 0
        exact = [report for report in reports if not report["dropped"]["messages"]]
        assert all(report["shifted_tokens"] == 0 for report in exact)

    run(play)


def test_the_guides_endpoint_slides(door: Door) -> None:
    async def play() -> None:
        for number in range(12):
            asked = {"prompt": f"{number} " + "x" * 600, "conversation_id": "c-3", "max_tokens": 4}
            call = await answered(door, door.post(API, asked))
            assert call.status == 200
            assert call.body.endswith(b"data: [DONE]\n\n")
        told = max(fact.num_prompt_tokens for fact in door.ended)
        assert 2000 < told <= 4096

    run(play)


async def talked(door: Door, num_turns: int) -> list[dict[str, Any]]:
    return [await turn(door, f"turn {number}", context=SUMMARY) for number in range(num_turns)]


def test_a_summary_is_kept_with_its_conversation(tmp_path: Path) -> None:
    async def play() -> None:
        door = opened(tmp_path)
        await made(door)
        reports = await talked(door, 5)
        assert reports[-1]["summarised"]["messages"] > 0
        door.serving.conversations.close()

        again = opened(tmp_path)
        found = await turn(again, "turn 5", context=SUMMARY)
        assert found["summarised"]["messages"] >= reports[-1]["summarised"]["messages"]
        again.serving.conversations.close()

    run(play)


def test_a_summary_goes_with_its_conversation(door: Door) -> None:
    async def play() -> None:
        await made(door)
        await talked(door, 5)
        assert len(door.serving.contexts.shelf) > 0
        call = door.call("DELETE", f"{CONVERSATIONS}/c-1")
        await answered(door, call)
        assert call.status == 200
        assert len(door.serving.contexts.shelf) == 0

    run(play)
