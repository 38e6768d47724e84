"""A conversation as the tokens that the model has seen, so that each turn computes only new ones.

In: what the user says, what the model answered. Out: a prompt as token ids. Thread: the caller's.
Next: `request.py`.

An answer does not always tokenize to the tokens that were generated, so a prompt rendered anew
would miss the cache from there on. Here a turn's prompt is the earlier prompt, the answer's own
tokens, and what the chat template writes after that answer:

    earlier prompt | answer's tokens | <|im_end|> ... user ... <|im_start|>assistant
    exactly as it was computed       | rendered now
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.engine.language import Template, Tokenizer
from headrace.model.prompt import RenderedPrompt

_PLACE = "\ue000\ue001 answer \ue001\ue000"
"""Stands for an answer while a template is asked what it writes after it. Nobody types this."""


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
        return _join(self._ids, tail, self._tokenizer)

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
        shown = [dict(message) for message in messages]
        shown[-2]["content"] = _PLACE
        rendered = self._template.render(shown)
        if rendered.text.count(_PLACE) != 1:
            return None
        tokens = self._tokenizer.encode_prompt(_after(rendered, rendered.text.index(_PLACE)))
        if self._tokenizer.adds_bos and tokens[:1] == [self._tokenizer.bos_id]:
            del tokens[0]
        return tokens


def _after(rendered: RenderedPrompt, place: int) -> RenderedPrompt:
    begin = place + len(_PLACE)
    spans = tuple(
        (max(start, begin) - begin, end - begin)
        for start, end in rendered.template_spans
        if end > begin
    )
    return RenderedPrompt(rendered.text[begin:], spans)


def _join(ids: list[int], tail: list[int], tokenizer: Tokenizer) -> list[int]:
    """An answer that ended by itself has generated the marker that the template writes next."""
    if ids[-1] in tokenizer.eog_ids:
        if tail[:1] == ids[-1:]:
            return ids + tail[1:]
        if tail and tail[0] in tokenizer.eog_ids:
            return ids[:-1] + tail
    return ids + tail
