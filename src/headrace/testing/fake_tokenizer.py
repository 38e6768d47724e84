"""Text to tokens without a vocabulary: one token a byte, and two markers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.model.prompt import RenderedPrompt

START_ID = 256
END_ID = 257
"""The end-of-generation token."""

_MARKERS = {"<|start|>": START_ID, "<|end|>": END_ID}
_SPELLINGS = {token: spelling for spelling, token in _MARKERS.items()}
_PATTERN = re.compile("|".join(map(re.escape, _MARKERS)))


class FakeTokenizer:
    """Implements `headrace.engine.language.Tokenizer` for the vocabulary of `FakeModel`."""

    adds_bos = False
    bos_id: int | None = None
    eog_ids = frozenset({END_ID})
    control_tokens: Mapping[str, int] = _MARKERS
    vocab_size = END_ID + 1

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return self._encode(text, ((0, len(text)),) if special else ())

    def encode_prompt(self, prompt: RenderedPrompt) -> list[int]:
        return self._encode(prompt.text, prompt.template_spans)

    def token_bytes(self, token: int) -> bytes:
        return bytes((token,)) if token < 256 else b""

    def token_text(self, token: int) -> str:
        return _SPELLINGS.get(token) or self.token_bytes(token).decode(errors="replace")

    def _encode(self, text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
        tokens: list[int] = []
        position = 0
        for start, end in spans:
            for match in _PATTERN.finditer(text, start, end):
                tokens += text[position : match.start()].encode()
                tokens.append(_MARKERS[match.group()])
                position = match.end()
        return tokens + list(text[position:].encode())


class FakeTemplate:
    """Writes `<|start|>role:content<|end|>` for each message, and begins the answer."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> RenderedPrompt:
        """Tools and variables are left out: a fake model reads neither."""
        text = ""
        spans: list[tuple[int, int]] = []
        for index, message in enumerate(messages):
            head = f"<|start|>{message['role']}:"
            spans.append((len(text), len(text) + len(head)))
            text += head + str(message.get("content") or "")
            if continue_final_message and index == len(messages) - 1:
                return RenderedPrompt(text, tuple(spans))
            spans.append((len(text), len(text) + len("<|end|>")))
            text += "<|end|>"
        tail = "<|start|>assistant:"
        spans.append((len(text), len(text) + len(tail)))
        return RenderedPrompt(text + tail, tuple(spans))
