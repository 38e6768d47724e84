"""Reads one choice's answer: engine events in, final events out.

In: the choice's `Delta`s. Out: `Delta`s with speech and thoughts apart, and `ToolCall`s.
Thread: the event loop. Next: `streams/log.py`.

Text that may be the beginning of a marker is held back, with its tokens; every token is still in
exactly one delta. A call is one whole event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from headrace.errors import JSONValidateFailed, ToolUseFailed
from headrace.events import Delta, FinishReason, ToolCall, merge
from headrace.model.answer.calls import CallReader
from headrace.model.answer.parts import Broken, Call, Content, Part, Thought
from headrace.model.answer.thoughts import ThoughtReader
from headrace.model.answer.validation import (
    NO_CALL,
    REQUIRED,
    CallCheck,
    Validator,
    json_error,
)

Said: TypeAlias = Delta | ToolCall


@dataclass(frozen=True, slots=True)
class Checks:
    """What an answer is held against."""

    calls: CallCheck | None = None
    """None: calls are handed on as they are."""
    must_call: bool = False
    must_be_json: bool = False
    """Only where the answer is no call."""
    json: Validator | None = None
    json_begun: str = ""
    """The beginning of the JSON, where the question brought it."""


class AnswerParser:
    """One choice's. Push every delta, then finish; send on what they return."""

    def __init__(
        self,
        choice: int,
        *,
        thoughts: ThoughtReader | None,
        calls: CallReader | None,
        checks: Checks,
        make_id: Callable[[int], str],
        shows_thoughts: bool = True,
        opening: str = "",
    ) -> None:
        """`make_id` names the n-th call. `opening` is put before the answer: what the prompt
        already said of it."""
        self._choice = choice
        self._thoughts = thoughts
        self._calls = calls
        self._checks = checks
        self._make_id = make_id
        self._shows_thoughts = shows_thoughts
        self._opening = opening
        self._held: list[Delta] = []
        self._raw: list[str] = []
        self._said: list[str] = []
        self._num_tokens = 0
        self._num_calls = 0
        self._failure: str | None = None
        self.num_reasoning_tokens = 0
        """Tokens heard until the thoughts ended."""

    def push(self, delta: Delta) -> list[Said]:
        """What is sure now: deltas and whole calls, maybe none."""
        self._held.append(delta)
        self._num_tokens = delta.start + len(delta.token_ids)
        self._raw.append(delta.text)
        text = self._opening + delta.text
        self._opening = ""
        return self._events(self._parts(text))

    def finish(self, reason: FinishReason) -> tuple[list[Said], FinishReason]:
        """What was held back, and why the answer really ended. Raises `ToolUseFailed` and
        `JSONValidateFailed` where the answer is not what was asked for."""
        events = self._events(self._last_parts(is_cut=reason != "stop"))
        if self._held:
            events.append(replace(merge(self._held), text=""))
            self._held = []
        self._check(reason)
        is_call = self._num_calls > 0 and reason == "stop"
        return events, "tool_calls" if is_call else reason

    def _parts(self, text: str) -> list[Part]:
        if self._thoughts is None:
            return self._spoken(text)
        was_thinking = self._thoughts.is_thinking
        thought, spoken = self._thoughts.push(text)
        if was_thinking or self._thoughts.is_thinking:
            self.num_reasoning_tokens = self._num_tokens
        return [*_thought(thought), *self._spoken(spoken)]

    def _last_parts(self, *, is_cut: bool) -> list[Part]:
        parts: list[Part] = []
        if self._thoughts is not None:
            thought, spoken = self._thoughts.finish()
            parts = [*_thought(thought), *self._spoken(spoken)]
        if self._calls is not None:
            # An answer that was cut short is no failure, and neither is the call it was cut in.
            parts += self._calls.finish(is_cut=is_cut)
        return parts

    def _spoken(self, text: str) -> list[Part]:
        if self._calls is not None:
            return self._calls.push(text) if text else []
        return [Content(text)] if text else []

    def _events(self, parts: Sequence[Part]) -> list[Said]:
        events: list[Said] = []
        thought = said = ""
        for part in parts:
            match part:
                case Content(text):
                    said += text
                case Thought(text):
                    thought += text
                case Broken(text):
                    said += self._broken(text)
                case Call():
                    call = self._call(part)
                    if call is not None:
                        events += [*self._delta(said, thought), call]
                        thought = said = ""
        return [*events, *self._delta(said, thought)]

    def _delta(self, said: str, thought: str) -> list[Said]:
        """The held tokens with their text, where there is any to say."""
        if self._checks.must_be_json:
            self._said.append(said)
        if not self._shows_thoughts:
            thought = ""
        if not said and not thought:
            return []
        held, self._held = self._held, []
        whole = merge(held) if held else Delta(self._choice, self._num_tokens, (), "")
        return [replace(whole, text=said, reasoning=thought)]

    def _call(self, call: Call) -> ToolCall | None:
        checks = self._checks.calls
        error = None if checks is None else checks.error(call)
        if error is not None:
            self._fail(error)
        if self._failure is not None:
            return None
        index, self._num_calls = self._num_calls, self._num_calls + 1
        return ToolCall(self._choice, index, self._make_id(index), call.name, call.arguments)

    def _broken(self, text: str) -> str:
        """What a broken call says: its text, where nobody minds."""
        if self._checks.calls is None:
            return text
        self._fail(NO_CALL)
        return ""

    def _fail(self, message: str) -> None:
        self._failure = self._failure or message

    def _check(self, reason: FinishReason) -> None:
        raw = "".join(self._raw)
        if self._failure is not None:
            raise ToolUseFailed(self._failure, raw)
        if reason != "stop" or self._num_calls:
            return
        if self._checks.must_call:
            raise ToolUseFailed(REQUIRED, raw)
        if self._checks.must_be_json:
            text = self._checks.json_begun + "".join(self._said)
            message = json_error(text, self._checks.json)
            if message is not None:
                raise JSONValidateFailed(message, raw)


def _thought(text: str) -> list[Part]:
    return [Thought(text)] if text else []
