"""What the engine asks of a tokenizer and a chat template: a model's own, or a fake.

In: messages or text. Out: token ids, and bytes for token ids. Thread: any; neither ever changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Protocol

from headrace.model.prompt import RenderedPrompt


class Tokenizer(Protocol):
    """See `headrace.model.tokenizer.Tokenizer`."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def adds_bos(self) -> bool: ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eog_ids(self) -> Set[int]: ...

    @property
    def control_tokens(self) -> Mapping[str, int]: ...

    def encode(self, text: str, *, special: bool = False) -> list[int]: ...

    def encode_prompt(self, prompt: RenderedPrompt) -> list[int]: ...

    def token_bytes(self, token: int) -> bytes: ...

    def token_text(self, token: int) -> str: ...


class Template(Protocol):
    """See `headrace.model.template`."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> RenderedPrompt: ...
