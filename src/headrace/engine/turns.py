"""A conversation as the tokens that the model has seen, so that each turn computes only new ones.

In: what the user says, what the model answered. Out: a prompt as token ids. Thread: the caller's.
Next: `request.py`.

As in `replay.py`, an answer is the tokens that were generated. Here nothing before it is rendered
again, whatever the template would write today: a turn's prompt is the earlier prompt, the answer's
own tokens, and what the chat template writes after that answer:

    earlier prompt | answer's tokens | <|im_end|> ... user ... <|im_start|>assistant
    exactly as it was computed       | rendered now
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.engine.language import Template, Tokenizer
from headrace.engine.replay import encoded, joined, place, with_places


class Turns:
    """One conversation. `prompt_for` a user's words, `answered` when the answer is there."""

    def __init__(self, tokenizer: Tokenizer, template: Template, system: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._messages: list[dict[str, Any]] = []
        if system:
            self._messages.append({"role": "system", "content": system})
        self._ids: list[int] = []
        """Prompt and answer of the last turn."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation in text."""
        return list(self._messages)

    @property
    def num_tokens(self) -> int:
        return len(self._ids)

    def prompt_for(self, text: str) -> list[int]:
        """The prompt that asks for an answer to `text`. Changes nothing. Raises `InvalidRequest`
        and `TemplateError`."""
        messages = [*self._messages, {"role": "user", "content": text}]
        tail = self._tail(messages) if self._ids else None
        if tail is None:
            return self._tokenizer.encode_prompt(self._template.render(messages))
        return joined(self._ids, tail, self._tokenizer)

    def answered(
        self, text: str, prompt_ids: Sequence[int], answer: str, answer_ids: Sequence[int]
    ) -> None:
        """Remember a turn: what was asked, and what came of it."""
        self._messages.append({"role": "user", "content": text})
        self._messages.append({"role": "assistant", "content": answer})
        self._ids = [*prompt_ids, *answer_ids]

    def _tail(self, messages: list[dict[str, Any]]) -> list[int] | None:
        """What the template writes after the last answer; None where it does not show answers as
        they are."""
        last = len(messages) - 2
        rendered = self._template.render(with_places(messages, {last: None}))
        if rendered.text.count(place(last)) != 1:
            return None
        start = rendered.text.index(place(last)) + len(place(last))
        return encoded(self._tokenizer, rendered, start, len(rendered.text))
