"""A question's conversation is fitted into its prompt, by the strategy that holds for it.

In: an `Ask`. Out: the same with the messages that its prompt shows, and what became of the others.
Thread: any. Next: `asking.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from headrace.conversations.measure import Measure
from headrace.conversations.passages import Recalled
from headrace.conversations.planning import Fitted, Planner, Room
from headrace.conversations.report import context_report
from headrace.conversations.strategies import Message
from headrace.engine.replay import Render, replayed, spelled
from headrace.errors import HeadraceError
from headrace.model.answer import AnswerStyle
from headrace.server.contexts import Contexts, variables_key
from headrace.server.models import ServedModel
from headrace.wire.ask import DEFAULT_MAX_TOKENS, JSON, Ask, Context

_LEAST_SHARE = 4
"""Where nobody says how long an answer may be, at most this part of the context is held free."""

_NOTHING = Recalled()


@dataclass(frozen=True, slots=True)
class Fit:
    """A conversation that was fitted, and all that is needed to do it again."""

    served: ServedModel
    ask: Ask
    """As it was asked."""
    context: Context
    planner: Planner
    fitted: Fitted
    rewrites: Sequence[str]

    @property
    def wants_report(self) -> bool:
        return bool(self.context.report)

    def followed(self, answer: str, ids: Sequence[int] = ()) -> Ask:
        """The least question after this one's answer. `ids`: of the answer, where they are kept."""
        before = self.ask.messages or ()
        said = {"role": "assistant", "content": answer}
        return replace(
            self.ask,
            messages=(*before, said, {"role": "user", "content": "x"}),
            answer_ids={**self.ask.answer_ids, len(before): ids} if ids else self.ask.answer_ids,
            continues=False,
        )

    def foresee(self, answer: str, ids: Sequence[int] = ()) -> None:
        """Count what the next turn will find said, so that it need not. As `followed`; raises
        nothing."""
        next_one = self.followed(answer, ids)
        with suppress(HeadraceError):
            self.planner.measure.items(next_one.messages or (), next_one.answer_ids)

    def report(self, num_prompt_tokens: int) -> Mapping[str, JSON]:
        told = context_report(self.fitted, num_prompt_tokens, self.rewrites)
        return told | {"shifted_tokens": 0} if shifts(self.context) else told


def fitted(
    contexts: Contexts,
    served: ServedModel,
    ask: Ask,
    tenant: str,
    recalled: Recalled = _NOTHING,
) -> tuple[Ask, Fit | None]:
    """`ask` as it is answered; None where its messages stay and nobody wants to know more.
    `recalled`: what was found for it. Raises `ContextLengthExceeded`, and what the template
    raises."""
    context = contexts.of(ask)
    if ask.messages is None or _is_plain(context):
        return ask, None
    style: AnswerStyle = served.style
    asking = _Asking(served, style, ask)
    planner = Planner(
        Measure(asking.prompt, contexts.counts, asking.scope),
        Room(served.engine.context_length, _num_answer(ask, served.engine.context_length)),
        asking.frame,
        contexts.shelf,
        b"/".join((tenant.encode(), served.id.encode())),
        can_shift=ask.place is not None and ask.place.conversation_id is not None,
        recalled=recalled,
    )
    fit = planner.fit(ask.messages, context, ask.answer_ids)
    rewrites = contexts.rewrites(served, style, ask, asking.render) if context.report else ()
    shaped = replace(
        ask, messages=fit.messages, answer_ids=fit.moved(ask.answer_ids), context=context
    )
    return shaped, Fit(served, ask, context, planner, fit, rewrites)


def shifts(context: Context | None) -> bool:
    """Whether banks follow dropped turns instead of being computed anew."""
    return context is not None and (context.strategy, context.mode) == ("sliding_window", "shift")


def _is_plain(context: Context) -> bool:
    """All messages stay, and the engine says where they are too many."""
    return (
        context.strategy == "full"
        and context.fallback is None
        and context.max_tokens is None
        and not context.report
    )


def _num_answer(ask: Ask, context_length: int) -> int:
    if ask.max_tokens is not None:
        return ask.max_tokens
    return min(DEFAULT_MAX_TOKENS, context_length // _LEAST_SHARE)


class _Asking:
    """One question's way through the template."""

    def __init__(self, served: ServedModel, style: AnswerStyle, ask: Ask) -> None:
        self._engine = served.engine
        self._style = style
        self._ask = ask
        self.render: Render = partial(
            served.engine.template.render, tools=None, **style.variables(ask)
        )
        self.scope = served.id.encode() + b"\n" + variables_key(style, ask)

    def prompt(
        self, messages: Sequence[Message], ids: Mapping[int, Sequence[int]]
    ) -> Sequence[int]:
        shown = self._style.shown(messages)
        tokenizer = self._engine.tokenizer
        return replayed(tokenizer, self.render, shown, spelled(tokenizer, ids, shown))

    def frame(self, head: Sequence[Message]) -> int:
        """Tokens of tools and of a wished-for format, which the template writes beside the
        messages."""
        if not self._ask.tools and self._ask.response_format is None:
            return 0
        least: Any = (*head, {"role": "user", "content": "x"})
        messages, tools = self._style.frame(replace(self._ask, messages=least, continues=False))
        rendered = self._engine.template.render(
            messages, tools or None, **self._style.variables(self._ask)
        )
        whole = len(self._engine.tokenizer.encode_prompt(rendered))
        return whole - len(self.prompt(least, {}))
