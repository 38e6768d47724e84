"""Events of one choice, read: every token in one delta, calls whole, and what was wrong."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError, JSONValidateFailed, ToolUseFailed
from headrace.events import Delta, FinishReason, TokenLogprob, ToolCall
from headrace.model.answer.calls import CallReader
from headrace.model.answer.formats import HERMES, THINK_MARKERS
from headrace.model.answer.parser import AnswerParser, Checks, Said
from headrace.model.answer.thoughts import ThoughtReader
from headrace.model.answer.validation import CallCheck, Validator, json_error

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "n": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
CHECKED = Checks(CallCheck({"weather": Validator(CITY, "x"), "now": Validator({}, "x")}))
WEATHER = '<tool_call>{"name":"weather","arguments":{"city":"Oslo"}}</tool_call>'


def parser(
    checks: Checks = CHECKED, *, thinks: bool = False, calls: bool = True, **more: Any
) -> AnswerParser:
    return AnswerParser(
        0,
        thoughts=ThoughtReader(THINK_MARKERS[0], is_open=False) if thinks else None,
        calls=CallReader(HERMES) if calls else None,
        checks=checks,
        make_id=lambda index: f"id{index}",
        **more,
    )


def deltas(pieces: list[str]) -> list[Delta]:
    return [
        Delta(0, i, (i,), piece, (TokenLogprob(i, -1.0, ()),)) for i, piece in enumerate(pieces)
    ]


def run(
    reader: AnswerParser, pieces: list[str], reason: FinishReason = "stop"
) -> tuple[list[Said], FinishReason]:
    events = [event for delta in deltas(pieces) for event in reader.push(delta)]
    rest, end = reader.finish(reason)
    return [*events, *rest], end


def text(events: list[Said]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def reasoning(events: list[Said]) -> str:
    return "".join(event.reasoning for event in events if isinstance(event, Delta))


def calls(events: list[Said]) -> list[ToolCall]:
    return [event for event in events if isinstance(event, ToolCall)]


def failure(reader: AnswerParser, said: str, reason: FinishReason = "stop") -> HeadraceError:
    with pytest.raises(HeadraceError) as caught:
        run(reader, [said], reason)
    assert caught.value.failed_generation == said
    return caught.value


ANSWER = f"<think>\nWhere? \n</think>\n\nOne moment. {WEATHER}\n{WEATHER}"


def test_everything_at_once() -> None:
    events, reason = run(parser(thinks=True), [ANSWER])
    assert reason == "tool_calls"
    assert (reasoning(events), text(events)) == ("Where?", "One moment.")
    assert calls(events) == [
        ToolCall(0, 0, "id0", "weather", '{"city":"Oslo"}'),
        ToolCall(0, 1, "id1", "weather", '{"city":"Oslo"}'),
    ]
    assert [type(event) for event in events] == [Delta, ToolCall, ToolCall]


def assert_covered(events: list[Said], num_tokens: int) -> None:
    """Every token in one delta, in order, with its log probability."""
    covered = 0
    for event in events:
        if isinstance(event, Delta):
            assert event.start == covered
            assert [at.token for at in event.logprobs] == list(event.token_ids)
            covered += len(event.token_ids)
    assert covered == num_tokens


@pytest.mark.parametrize("num_cuts", [1, 2])
def test_nothing_depends_on_how_the_text_is_cut(num_cuts: int) -> None:
    whole, _ = run(parser(thinks=True), [ANSWER])
    expected = (text(whole), reasoning(whole), calls(whole))
    places = range(1, len(ANSWER), 1 if num_cuts == 1 else 5)
    for cut in combinations(places, num_cuts):
        pieces = [ANSWER[a:b] for a, b in zip((0, *cut), (*cut, None), strict=True)]
        events, reason = run(parser(thinks=True), pieces)
        assert (text(events), reasoning(events), calls(events)) == expected, pieces
        assert reason == "tool_calls"
        assert_covered(events, len(pieces))


WORDS = ["<think>", "</think>", "<tool_call>", "</tool_call>", WEATHER, " ", "\n", "a", "{", '"']


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=10), st.integers(1, 5))
def test_any_text_is_read_alike_and_covered(words: list[str], step: int) -> None:
    answer = "".join(words)
    pieces = [answer[i : i + step] for i in range(0, len(answer), step)]
    whole, end = run(parser(Checks(), thinks=True), [answer])
    events, same_end = run(parser(Checks(), thinks=True), pieces)
    assert (text(events), reasoning(events)) == (text(whole), reasoning(whole))
    assert (calls(events), same_end) == (calls(whole), end)
    assert_covered(events, len(pieces))


def test_speech_goes_out_as_it_comes() -> None:
    reader = parser()
    assert [text(reader.push(delta)) for delta in deltas(["The", " sky", " is", " <b"])] == [
        "The", " sky", " is", " <b",
    ]  # fmt: skip


def test_held_text_comes_with_its_tokens() -> None:
    reader = parser()
    first, second, third = deltas(["a <tool", "_c", "at>"])
    assert text(reader.push(first)) == "a"
    assert reader.push(second) == []
    (said,) = reader.push(third)
    assert isinstance(said, Delta)
    assert (said.text, said.start, said.token_ids) == (" <tool_cat>", 1, (1, 2))


def test_hidden_thoughts_are_counted_and_not_shown() -> None:
    reader = parser(thinks=True, shows_thoughts=False)
    events, _ = run(reader, ["<think>", "a", "b", "</think>", "yes", "!"])
    assert (reasoning(events), text(events)) == ("", "yes!")
    assert reader.num_reasoning_tokens == 4
    assert_covered(events, 6)


def test_an_answer_without_thoughts_counts_none() -> None:
    reader = parser(thinks=True)
    run(reader, ["so", " it", " is"])
    assert reader.num_reasoning_tokens == 0


def test_the_prompts_part_of_the_answer_comes_first() -> None:
    events, _ = run(parser(calls=False, opening="<think>\n"), ["hm</think>", "x"])
    assert text(events) == "<think>\nhm</think>x"


class TestFailures:
    def test_unknown_tool(self) -> None:
        error = failure(parser(), '<tool_call>{"name":"rain"}</tool_call>')
        assert isinstance(error, ToolUseFailed)
        assert error.code == "tool_use_failed"
        assert error.message.startswith(
            "Tool call validation failed: tool call validation failed: "
        )
        assert "attempted to call tool 'rain' which was not in request.tools" in error.message

    def test_wrong_arguments_in_groqs_words(self) -> None:
        error = failure(
            parser(), '<tool_call>{"name":"weather","arguments":{"foo":1,"n":"x"}}</tool_call>'
        )
        assert "parameters for tool weather did not match schema: errors: [" in error.message
        assert "missing properties: 'city'" in error.message
        assert "additionalProperties 'foo' not allowed" in error.message
        assert '`/n`: "x" is not of type "integer"' in error.message

    def test_no_json(self) -> None:
        error = failure(parser(), "<tool_call>weather(Oslo)</tool_call>")
        assert error.message.startswith("Failed to call a function. Please adjust your prompt.")

    def test_a_call_that_the_model_did_not_end(self) -> None:
        assert isinstance(failure(parser(), '<tool_call>{"name":"wea'), ToolUseFailed)

    def test_required_but_not_called(self) -> None:
        error = failure(parser(Checks(CHECKED.calls, must_call=True)), "Hello")
        assert error.message == "Tool choice is required, but model did not call a tool"

    def test_nothing_is_called_after_a_failure(self) -> None:
        reader = parser()
        events = reader.push(Delta(0, 0, (1,), f'<tool_call>{{"name":"x"}}</tool_call>{WEATHER}'))
        assert calls(events) == []

    def test_an_answer_that_was_cut_is_no_failure(self) -> None:
        for reason in ("length", "cancelled"):
            reader = parser(Checks(CHECKED.calls, must_call=True, must_be_json=True))
            events, end = run(reader, ["Hm <tool_call>", '{"name":"wea'], reason)
            assert end == reason
            assert text(events) == "Hm"
            assert calls(events) == []
            said = [event for event in events if isinstance(event, Delta)]
            assert [len(one.token_ids) for one in said] == [1, 1]

    def test_no_cut_in_a_call_leaves_its_markup(self) -> None:
        said = f"Hm. {WEATHER}"
        for end in range(len("Hm. <tool_ca"), said.index("</tool_call>")):
            events, _ = run(parser(), list(said[:end]), "length")
            assert text(events).rstrip() == "Hm."

    def test_whole_calls_of_a_cut_answer_are_told(self) -> None:
        events, end = run(parser(), [WEATHER, "\n<tool_call>"], "length")
        assert len(calls(events)) == 1
        assert end == "length"

    def test_without_validation_all_goes_out(self) -> None:
        events, end = run(parser(Checks()), ['<tool_call>{"name":"rain"}</tool_call>'])
        assert [call.name for call in calls(events)] == ["rain"]
        assert end == "tool_calls"
        events, end = run(parser(Checks()), ["<tool_call>rain</tool_call>"])
        assert (text(events), end) == ("<tool_call>rain</tool_call>", "stop")


class TestJSON:
    CHECKS = Checks(must_be_json=True, json=Validator(CITY, "x"))

    def test_what_satisfies_the_schema(self) -> None:
        said = '{"city": "Oslo"}'
        assert text(run(parser(self.CHECKS, calls=False), list(said))[0]) == said

    def test_what_was_said_before_belongs_to_it(self) -> None:
        checks = Checks(must_be_json=True, json=Validator(CITY, "x"), json_begun='{"city":')
        assert run(parser(checks, calls=False), ['"Oslo"}'])[1] == "stop"

    def test_what_is_none(self) -> None:
        error = failure(parser(self.CHECKS, calls=False), '{"city": ')
        assert isinstance(error, JSONValidateFailed)
        assert error.message.startswith("Failed to generate JSON.")

    def test_what_is_another_one(self) -> None:
        error = failure(parser(self.CHECKS, calls=False), '{"town": 1}')
        assert error.message.startswith("Generated JSON does not match the expected schema.")

    def test_a_call_instead(self) -> None:
        checks = Checks(CHECKED.calls, must_be_json=True)
        assert run(parser(checks), [WEATHER])[1] == "tool_calls"

    def test_nesting_without_end(self) -> None:
        assert json_error("[" * 100_000, None) is not None
