"""A request becomes tokens, or is refused by name before anything is spent on it.

In: a `Request`. Out: prompt token ids and a limit. Thread: the caller's. Next: `mailbox.py`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from headrace.engine.healing import Healer, Healing, before
from headrace.engine.language import Template, Tokenizer
from headrace.engine.replay import replayed, spelled
from headrace.engine.request import Message, Request
from headrace.errors import ContextLengthExceeded, InvalidRequest
from headrace.model.interface import TokenIds
from headrace.model.prompt import RenderedPrompt


@dataclass(frozen=True, slots=True)
class Beginning:
    """From where an answer is computed."""

    request: Request
    """As asked, with what must be said first where the prompt's end was taken back."""
    prompt: TokenIds
    max_num_tokens: int
    """The most tokens of one choice, prompt included."""


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
        self._healer = Healer(tokenizer, vocab_size)

    def warm_up(self) -> None:
        """Make what healing needs, so that no request waits for it."""
        self._healer.warm_up()

    def begin(self, request: Request) -> Beginning:
        """Raises `InvalidRequest`, `ContextLengthExceeded` and `TemplateError`."""
        prompt, floor = self._prompt(request)
        if not request.begun:
            request, prompt = _healed(self._healer, request, prompt, floor)
        elif not isinstance(request.grammar, Healing):
            request = _bound(self._healer, request)
        if request.prefill_only:
            return Beginning(replace(request, grammar=None), prompt, len(prompt))
        # What is said again does not count, and takes a token for each byte at most.
        max_num_tokens = self._max_num_tokens(request, len(prompt) + len(request.begun))
        return Beginning(request, prompt, max_num_tokens)

    def _prompt(self, request: Request) -> tuple[TokenIds, int]:
        """The prompt's tokens, and how many of them must stay as they are."""
        self._check_bias(request)
        if request.token_ids is not None:
            param, tokens = "token_ids", self._checked(request.token_ids)
            floor = len(tokens)
        elif request.prompt is not None:
            param, tokens = "prompt", self._bare(request.prompt)
            floor = 0 if request.heal else len(tokens)
        else:
            param = "messages"
            tokens, floor = self._conversation(request)
        if not tokens:
            raise InvalidRequest(f"`{param}` has no tokens; it needs at least one", param=param)
        self._check_length(len(tokens), param)
        return tokens, floor

    def _conversation(self, request: Request) -> tuple[TokenIds, int]:
        assert request.messages is not None  # a request has exactly one of the three
        if request.answer_ids and not request.continue_final_message:
            tokens = array("i", self._replayed(request, request.messages))
            return tokens, len(tokens)
        rendered = self._rendered(request, request.messages)
        if not (request.heal and request.continue_final_message and self._healer.can_heal):
            tokens = array("i", self._tokenizer.encode_prompt(rendered))
            return tokens, len(tokens)
        # The model wrote its answer after the template's last words, not merged with them.
        _, start = rendered.template_spans[-1] if rendered.template_spans else (0, 0)
        asked = RenderedPrompt(rendered.text[:start], rendered.template_spans)
        tokens = array("i", self._tokenizer.encode_prompt(asked))
        floor = len(tokens)
        tokens.extend(self._healer.after(tokens, rendered.text[start:]))
        return tokens, floor

    def _rendered(self, request: Request, messages: Sequence[Message]) -> RenderedPrompt:
        return self._template.render(
            messages,
            request.tools or None,
            continue_final_message=request.continue_final_message,
            **request.template_variables,
        )

    def _replayed(self, request: Request, messages: Sequence[Message]) -> list[int]:
        answers = spelled(self._tokenizer, request.answer_ids, messages)
        return replayed(self._tokenizer, partial(self._rendered, request), messages, answers)

    def _max_num_tokens(self, request: Request, num_prompt_tokens: int) -> int:
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


def _healed(
    healer: Healer, request: Request, prompt: TokenIds, floor: int
) -> tuple[Request, TokenIds]:
    """The request with what must be said first, and the prompt without it; both as they are where
    nothing has to be taken back, or where the answer's grammar knows nothing of the prompt."""
    num_kept = healer.num_kept(prompt, floor) if floor < len(prompt) else len(prompt)
    if num_kept == len(prompt):
        return request, prompt
    begun = healer.bytes_of(prompt[num_kept:])
    try:
        grammar = before(request.grammar, begun)
    except LookupError:
        return request, prompt
    # A raw prompt is its author's text; an answer that is gone on with is the model's own.
    tokens = prompt[num_kept:] if request.prompt is not None else ()
    healing = healer.healing(begun, grammar, tokens)
    return replace(request, grammar=healing, begun=begun), prompt[:num_kept]


def _bound(healer: Healer, request: Request) -> Request:
    """A request that says itself what must be said first."""
    try:
        grammar = before(request.grammar, request.begun)
    except LookupError:
        grammar = request.grammar
    return replace(request, grammar=healer.healing(request.begun, grammar))
