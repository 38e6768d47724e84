"""What can be wrong with a question for the model that is to answer it, in its endpoint's words.

In: an `Ask`, and what the model is. Out: nothing, or `InvalidRequest` naming a field of the wire;
and which fields mean nothing here. Next: `asking.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from headrace.engine.engine import Prepared
from headrace.errors import ContextLengthExceeded, InvalidRequest
from headrace.model.answer import AnswerStyle
from headrace.wire.ask import Ask


class Fields(NamedTuple):
    """What an endpoint calls them."""

    max_tokens: str
    prompt: str


_CHAT: Final = Fields("max_completion_tokens", "messages")
_BY_ENDPOINT: Final = {
    "/responses": Fields("max_output_tokens", "input"),
    "/completions": Fields("max_tokens", "prompt"),
    "/api/chat": Fields("max_tokens", "prompt"),
}


def fields_of(endpoint: str) -> Fields:
    return _BY_ENDPOINT.get(endpoint, _CHAT)


@contextmanager
def naming(fields: Fields) -> Iterator[None]:
    """The engine's own name for a prompt of tokens is no field of the wire."""
    try:
        yield
    except InvalidRequest as error:
        if error.param != "token_ids":
            raise
        message = error.message.replace("`token_ids`", f"`{fields.prompt}`")
        raise InvalidRequest(message, param=fields.prompt) from None


def check_thoughtless(ask: Ask, endpoint: str) -> None:
    """Groq's validator lets nobody ask a model for thoughts that has none."""
    names = [
        # Items of `input` are not numbered as the messages that become of them.
        "input" if endpoint == "/responses" else f"messages[{index}].reasoning"
        for index, message in enumerate(ask.messages or ())
        if message.get("reasoning")
    ]
    if ask.reasoning_effort not in (None, "none"):
        names.append(_effort_at(endpoint))
    if names:
        raise InvalidRequest(
            f"`{names[0]}`: reasoning is not supported with this model", param=names[0]
        )


def _effort_at(endpoint: str) -> str:
    return "reasoning.effort" if endpoint == "/responses" else "reasoning_effort"


def check_max_tokens(ask: Ask, context_length: int, fields: Fields) -> None:
    if ask.max_tokens is not None and ask.max_tokens > context_length:
        name = fields.max_tokens
        raise InvalidRequest(
            f"`{name}` must be less than or equal to `{context_length}`, the maximum value for "
            f"`{name}` is less than the `context_window` for this model",
            param=name,
        )


def check_fit(ask: Ask, prepared: Prepared, context_length: int, fields: Fields) -> None:
    """An explicit limit is a promise; the default one takes what room there is."""
    num_tokens = len(prepared.prompt) + (ask.max_tokens or 1)
    if num_tokens > context_length:
        raise ContextLengthExceeded(
            "Please reduce the length of the messages or completion. The prompt has "
            f"{len(prepared.prompt)} tokens and the completion may have {ask.max_tokens or 1}; the "
            f"context holds {context_length}.",
            param=fields.prompt,
        )


def without_effect(style: AnswerStyle, asks: Sequence[Ask], endpoint: str) -> list[str]:
    """Fields that mean nothing here. A model that does not think does what `none` asks for."""
    idle = []
    effort = asks[0].reasoning_effort
    if style.thinks is None and effort not in (None, "none"):
        idle.append(_effort_at(endpoint))
    context = asks[0].context
    if endpoint == "/api/chat" and context is not None and context.report:
        idle.append("context.report")  # there is no place for one
    return idle
