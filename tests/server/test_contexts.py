"""Strategies through the whole server: what the engine gets, what the answer tells, refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.testing import END_ID, FakeModel, ManualEngine, saying
from headrace.testing.asgi import Call
from support.asgi import CHAT, RESPONSES, Door, frames, run, settle

PARTS = ("kept", "summarised", "retrieved", "turn", "template")


def chat(num_turns: int, *, system: bool = True, size: int = 10) -> list[dict[str, str]]:
    """Turns whose messages have `size` characters, and a new question."""
    messages = [{"role": "system", "content": "Be kind."}] if system else []
    for index in range(num_turns):
        for role in ("user", "assistant"):
            messages.append({"role": role, "content": f"{index:0>{size}}"})
    return [*messages, {"role": "user", "content": "and now?"}]


def body(messages: Sequence[Any], **context: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": messages, "context": context, "max_tokens": 8}


def told(call: Call) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report and the usage of a whole answer."""
    assert call.status == 200, call.body
    answer = json.loads(call.body)
    return answer["x_headrace"]["context"], answer["usage"]


def error(call: Call) -> dict[str, Any]:
    assert call.status == 400, call.body
    found: dict[str, Any] = json.loads(call.body)["error"]
    return found


def num_told(report: dict[str, Any]) -> int:
    return sum(report[part]["tokens"] for part in PARTS)


def roomy(text: str = "Hello.") -> ManualEngine:
    """An engine whose context holds thousands of tokens."""
    return ManualEngine(FakeModel(rule=saying(list(text.encode()), END_ID), context_length=4096))


def test_without_a_word_nothing_changes() -> None:
    async def play() -> None:
        door = Door()
        call = await door.answer(door.post(CHAT, {"model": "fake", "messages": chat(2)}))
        assert "x_headrace" not in json.loads(call.body)

    run(play)


def test_a_full_context_is_reported() -> None:
    async def play() -> None:
        door = Door()
        report, usage = told(await door.answer(door.post(CHAT, body(chat(2), report=True))))
        assert report["strategy"] == "full"
        assert report["kept"]["messages"] == 5
        assert report["turn"]["messages"] == 1
        assert report["dropped"] == {"messages": 0, "tokens": 0}
        assert num_told(report) == usage["prompt_tokens"]
        assert report["prefix_stable"] is True
        assert report["over_budget"] is False
        # The fake template's answer begins with these.
        assert report["template"]["tokens"] == len("assistant:") + 1
        door.assert_nothing_is_held()

    run(play)


def test_the_report_tells_the_cached_tokens() -> None:
    async def play() -> None:
        door = Door()
        await door.answer(door.post(CHAT, body(chat(2), report=True)))
        report, usage = told(await door.answer(door.post(CHAT, body(chat(2), report=True))))
        assert report["cached_tokens"] > 0
        assert report["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]

    run(play)


def test_a_stream_tells_it_on_its_finish_chunk() -> None:
    async def play() -> None:
        door = Door()
        asked = body(chat(2), report=True) | {"stream": True}
        call = await door.answer(door.post(CHAT, asked))
        *_, last, done = frames(call.body)
        chunk = json.loads(last.data)
        assert done.data == "[DONE]"
        assert chunk["choices"][0]["finish_reason"] == "stop"
        assert num_told(chunk["x_headrace"]["context"]) == chunk["usage"]["prompt_tokens"]
        assert call.body.count(b"x_headrace") == 1

    run(play)


def test_responses_tell_it_too() -> None:
    async def play() -> None:
        door = Door()
        asked = {"model": "fake", "input": "Hi", "context": {"report": True}}
        answer = json.loads((await door.answer(door.post(RESPONSES, asked))).body)
        assert num_told(answer["x_headrace"]["context"]) == answer["usage"]["input_tokens"]
        call = await door.answer(door.post(RESPONSES, asked | {"stream": True}))
        last = json.loads(frames(call.body)[-1].data)["response"]
        assert num_told(last["x_headrace"]["context"]) == last["usage"]["input_tokens"]
        assert call.body.count(b"x_headrace") == 1

    run(play)


def test_a_window_drops_the_oldest_turns() -> None:
    async def play() -> None:
        door = Door()
        asked = body(chat(6), strategy="sliding_window", max_tokens=150, report=True)
        report, usage = told(await door.answer(door.post(CHAT, asked)))
        assert usage["prompt_tokens"] <= 150
        assert report["dropped"]["messages"] > 0
        assert report["kept"]["messages"] + report["dropped"]["messages"] == 1 + 12
        assert num_told(report) == usage["prompt_tokens"]

    run(play)


def test_keep_turns_alone_makes_a_window() -> None:
    async def play() -> None:
        door = Door()
        asked = body(chat(4, size=3), strategy="sliding_window", keep_turns=1, report=True)
        report, usage = told(await door.answer(door.post(CHAT, asked)))
        assert report["kept"]["messages"] in (3, 5)
        assert num_told(report) == usage["prompt_tokens"]

    run(play)


def test_full_refuses_what_does_not_fit_and_names_the_numbers() -> None:
    async def play() -> None:
        door = Door()
        refused = error(await door.answer(door.post(CHAT, body(chat(12), report=True))))
        assert (refused["code"], refused["param"]) == ("context_length_exceeded", "messages")
        assert "256" in refused["message"]
        assert "12 earlier turns" in refused["message"]
        door.assert_nothing_is_held()

    run(play)


def test_a_limit_of_the_clients_own_is_named() -> None:
    async def play() -> None:
        door = Door()
        refused = error(await door.answer(door.post(CHAT, body(chat(3), max_tokens=40))))
        assert refused["code"] == "context_length_exceeded"
        assert refused["param"] == "context.max_tokens"
        assert "40" in refused["message"]

    run(play)


def test_a_fallback_takes_the_place_of_the_refusal() -> None:
    async def play() -> None:
        door = Door()
        asked = body(chat(12), strategy="full", fallback="sliding_window", report=True)
        report, usage = told(await door.answer(door.post(CHAT, asked)))
        assert (report["strategy"], report["fallback_from"]) == ("sliding_window", "full")
        assert usage["prompt_tokens"] <= 256 - 8
        assert num_told(report) == usage["prompt_tokens"]

    run(play)


def test_the_servers_defaults_hold_where_nobody_says_otherwise() -> None:
    async def play() -> None:
        door = Door(context="sliding_window", context_tokens=150)
        report, usage = told(await door.answer(door.post(CHAT, body(chat(9), report=True))))
        assert report["strategy"] == "sliding_window"
        assert usage["prompt_tokens"] <= 150
        plain = {"model": "fake", "messages": chat(9), "max_tokens": 8}
        answer = json.loads((await door.answer(door.post(CHAT, plain))).body)
        assert answer["usage"]["prompt_tokens"] == usage["prompt_tokens"]
        falling = Door(context_fallback="sliding_window")
        call = await falling.answer(falling.post(CHAT, plain | {"messages": chat(15)}))
        assert call.status == 200

    run(play)


def test_a_turn_that_is_longer_than_its_budget_says_so() -> None:
    async def play() -> None:
        door = Door()
        messages = [*chat(2), {"role": "user", "content": "x" * 100}]
        asked = body(messages, strategy="sliding_window", max_tokens=50, report=True)
        report, usage = told(await door.answer(door.post(CHAT, asked)))
        assert report["over_budget"] is True
        assert usage["prompt_tokens"] > 50
        too_long = [*chat(2), {"role": "user", "content": "x" * 300}]
        refused = error(
            await door.answer(door.post(CHAT, body(too_long, strategy="sliding_window")))
        )
        assert refused["code"] == "context_length_exceeded"

    run(play)


def test_what_is_not_offered_is_refused_by_name() -> None:
    async def play() -> None:
        door = Door()
        shift = body(chat(2), strategy="sliding_window", mode="shift")
        assert error(await door.answer(door.post(CHAT, shift)))["param"] == "context.mode"

    run(play)


def test_tools_count_as_the_templates() -> None:
    async def play() -> None:
        door = Door(roomy())
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        plain = body(chat(2), report=True)
        before, _ = told(await door.answer(door.post(CHAT, plain)))
        report, usage = told(await door.answer(door.post(CHAT, plain | {"tools": [tool]})))
        assert num_told(report) == usage["prompt_tokens"]
        assert report["kept"] == before["kept"]
        assert report["template"]["tokens"] > before["template"]["tokens"] + 100

    run(play)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(["user", "assistant", "tool"]), max_size=10),
    st.sampled_from(["full", "sliding_window", "summary"]),
    st.integers(40, 200),
    st.booleans(),
)
def test_the_parts_and_the_turn_and_the_template_are_the_prompt(
    roles: list[str], strategy: str, max_tokens: int, system: bool
) -> None:
    messages: list[dict[str, Any]] = [{"role": "system", "content": "s"}] if system else []
    for index, role in enumerate([*roles, "user"]):
        message: dict[str, Any] = {"role": role, "content": "ab" * (index % 4)}
        messages.append(message | ({"tool_call_id": "1"} if role == "tool" else {}))

    async def play() -> None:
        door = Door()
        fallback = {"fallback": "sliding_window"} if strategy == "full" else {}
        asked = body(messages, strategy=strategy, max_tokens=max_tokens, report=True, **fallback)
        report, usage = told(await door.answer(door.post(CHAT, asked)))
        assert num_told(report) == usage["prompt_tokens"]
        assert report["template"]["tokens"] == len("assistant:") + 1
        everybody = ("kept", "dropped", "summarised", "turn")
        assert sum(report[part]["messages"] for part in everybody) == len(messages)
        door.serving.summaries.stop()
        await settle()

    run(play)


class Scripted:
    """A summarizer that writes what it is told to, and remembers what it was asked."""

    def __init__(self, text: str = "they met") -> None:
        self.text = text
        self.asked: list[tuple[str, int, str | None, int]] = []

    async def summarise(
        self, tenant: str, block: Sequence[Any], before: str | None, max_tokens: int
    ) -> str:
        self.asked.append((tenant, len(block), before, max_tokens))
        return f"{self.text} {len(self.asked)}"


async def finished(door: Door) -> None:
    """Until no summary is being made."""
    for _ in range(2000):
        if not door.serving.summaries.num_running:
            return
        await door.turn()
    raise AssertionError("a summary is never done")


SUMMARY = {"strategy": "summary", "max_tokens": 200, "trigger_at_ratio": 0.7, "report": True}


def test_a_summary_is_made_after_the_answer_and_told_in_the_next_turn() -> None:
    async def play() -> None:
        door = Door()
        scripted = door.serving.summaries.summarizer = Scripted()
        asked = body(chat(4, size=6), **SUMMARY)
        report, usage = told(await door.answer(door.post(CHAT, asked)))
        assert report["summarised"] == {"messages": 0, "tokens": 0}
        assert report["pending"]["messages"] > 0
        await finished(door)
        assert len(scripted.asked) == 1
        report, usage = told(await door.answer(door.post(CHAT, asked)))
        assert report["summarised"]["messages"] > 0
        assert report["summarised"]["tokens"] > 0
        assert report["pending"] == report["dropped"] == {"messages": 0, "tokens": 0}
        assert num_told(report) == usage["prompt_tokens"]
        # Its banks were computed before it was asked for.
        assert report["cached_tokens"] >= usage["prompt_tokens"] - 2 * 16
        await finished(door)
        assert len(scripted.asked) == 1
        door.assert_nothing_is_held()

    run(play)


def test_a_summary_that_is_late_is_gone_on_without() -> None:
    async def play() -> None:
        door = Door()
        door.serving.summaries.summarizer = Scripted()
        door.serving.summaries.stop()
        report, usage = told(await door.answer(door.post(CHAT, body(chat(8, size=6), **SUMMARY))))
        assert report["dropped"]["messages"] == report["pending"]["messages"] > 0
        assert usage["prompt_tokens"] <= 200
        assert door.serving.summaries.num_running == 0

    run(play)


def test_one_summary_goes_on_from_another() -> None:
    async def play() -> None:
        door = Door()
        scripted = door.serving.summaries.summarizer = Scripted()
        for num_turns in (4, 5, 6, 7, 8, 9):
            asked = body(chat(num_turns, size=6), **SUMMARY)
            report, _ = told(await door.answer(door.post(CHAT, asked)))
            assert not report["dropped"]["messages"]
            await finished(door)
        assert [before for _, _, before, _ in scripted.asked[:2]] == [None, "they met 1"]
        assert len(scripted.asked) < 6

    run(play)


def test_tenants_do_not_share_summaries() -> None:
    from headrace.conversations.condensing import digest_of
    from headrace.conversations.strategies import Condense, Item

    wanted = Condense((), (Item({"role": "user", "content": "x"}, 1),), 32)
    assert digest_of(wanted, b"a/m") != digest_of(wanted, b"b/m")
    assert digest_of(wanted, b"a/m") == digest_of(wanted, b"a/m")


def test_the_model_itself_writes_summaries() -> None:
    async def play() -> None:
        door = Door(roomy("They met."))
        asked = body(chat(4, size=6), **SUMMARY)
        await door.answer(door.post(CHAT, asked))
        await finished(door)
        report, usage = told(await door.answer(door.post(CHAT, asked)))
        opening = "\n\nSummary of the earlier conversation:\n"
        assert report["summarised"]["tokens"] == len(opening + "They met.")
        assert report["cached_tokens"] >= usage["prompt_tokens"] - 2 * 16
        await finished(door)
        door.assert_nothing_is_held()

    run(play)


def test_a_summary_that_does_not_fit_the_model_is_given_up() -> None:
    async def play() -> None:
        door = Door()  # whose context is shorter than the words of the task
        asked = body(chat(4, size=6), **SUMMARY)
        for _ in range(2):
            report, _ = told(await door.answer(door.post(CHAT, asked)))
            await finished(door)
            assert report["summarised"]["messages"] == 0
        door.assert_nothing_is_held()

    run(play)


def test_a_summary_that_fails_is_wanted_again() -> None:
    async def play() -> None:
        door = Door()

        class Broken:
            num_asked = 0

            async def summarise(self, *given: Any) -> str:
                self.num_asked += 1
                raise RuntimeError("no")

        broken = door.serving.summaries.summarizer = Broken()
        for _ in range(2):
            await door.answer(door.post(CHAT, body(chat(4, size=6), **SUMMARY)))
            await finished(door)
        assert broken.num_asked == 2

    run(play)
