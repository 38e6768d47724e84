"""A request becomes tokens, or is refused by name before anything is spent on it.

In: a `Request`. Out: prompt token ids and a limit. Thread: the caller's. Next: `mailbox.py`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from headrace.engine.language import Template, Tokenizer
from headrace.engine.request import Request
from headrace.errors import ContextLengthExceeded, InvalidRequest
from headrace.model.interface import TokenIds


class Intake:
    """What a model allows: its vocabulary, its context, its ways to write a prompt."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        *,
        vocab_size: int,
        context_length: int,
        why_context: str,
    ) -> None:
        """`context_length` is the most tokens of one choice, prompt and answer together;
        `why_context` says what sets it, for whoever meets it."""
        self._tokenizer = tokenizer
        self._template = template
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._why_context = why_context

    def prompt(self, request: Request) -> TokenIds:
        """Raises `InvalidRequest`, `ContextLengthExceeded` and `TemplateError`."""
        self._check_bias(request)
        if request.token_ids is not None:
            param, tokens = "token_ids", self._checked(request.token_ids)
        elif request.prompt is not None:
            param, tokens = "prompt", self._bare(request.prompt)
        else:
            assert request.messages is not None  # a request has exactly one of the three
            rendered = self._template.render(
                request.messages,
                request.tools or None,
                continue_final_message=request.continue_final_message,
                **request.template_variables,
            )
            param, tokens = "messages", array("i", self._tokenizer.encode_prompt(rendered))
        if not tokens:
            raise InvalidRequest(f"`{param}` has no tokens; it needs at least one", param=param)
        self._check_length(len(tokens), param)
        return tokens

    def max_num_tokens(self, request: Request, num_prompt_tokens: int) -> int:
        """The most tokens of one choice, prompt included."""
        if request.max_tokens is None:
            return self._context_length
        return min(num_prompt_tokens + request.max_tokens, self._context_length)

    def _bare(self, prompt: str) -> TokenIds:
        """A prompt that its author wrote whole: markers are markers, and BOS comes first."""
        tokens = self._tokenizer.encode(prompt, special=True)
        bos_id = self._tokenizer.bos_id
        if self._tokenizer.adds_bos and bos_id is not None and tokens[:1] != [bos_id]:
            tokens.insert(0, bos_id)
        return array("i", tokens)

    def _checked(self, token_ids: Sequence[int]) -> TokenIds:
        try:
            tokens = array("i", token_ids)
        except (TypeError, OverflowError):
            tokens = array("i", (-1,))
        if min(tokens) < 0 or max(tokens) >= self._vocab_size:
            raise InvalidRequest(
                f"`token_ids` must be whole numbers from 0 to {self._vocab_size - 1}, the ids of "
                "this model's tokens",
                param="token_ids",
            )
        return tokens

    def _check_bias(self, request: Request) -> None:
        for token in request.logit_bias:
            if token >= self._vocab_size:
                raise InvalidRequest(
                    f"`logit_bias` names token {token}; this model's last one is "
                    f"{self._vocab_size - 1}",
                    param="logit_bias",
                )

    def _check_length(self, num_tokens: int, param: str) -> None:
        if num_tokens >= self._context_length:
            raise ContextLengthExceeded(
                f"`{param}` has {num_tokens} tokens, and the context of {self._context_length} "
                f"({self._why_context}) must hold them and at least one of the answer; leave out "
                f"{num_tokens - self._context_length + 1} or more",
                param=param,
            )
