"""From a checked question to a running generation: model, prompt, limits, engine.

In: `Ask`s of one request. Out: a pump that is filling its log, or a refusal.
Thread: the event loop; long prompts and grammars are prepared beside it. Next: `streams/pump.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from headrace.engine.engine import Engine, Prepared
from headrace.engine.request import Request
from headrace.errors import FlexCapacityExceeded
from headrace.events import Delta, Finished, Usage
from headrace.model.answer import AnswerPlan, AnswerStyle
from headrace.server.checking import (
    check_fit,
    check_max_tokens,
    check_thoughtless,
    fields_of,
    naming,
    without_effect,
)
from headrace.server.exchange import Exchange
from headrace.server.fitting import Fit, fitted, shifts
from headrace.server.limits import Permit
from headrace.server.models import ServedModel
from headrace.server.recalling import ask_with_documents, recalled
from headrace.server.serving import Serving
from headrace.server.summaries import keeper
from headrace.streams.pump import Pump, Record
from headrace.wire.ask import DEFAULT_MAX_TOKENS, Ask
from headrace.wire.json_bytes import compact

_LONG = 16_384
"""Characters of prompt from which on rendering and tokenizing would hold up the loop."""


@dataclass(frozen=True, slots=True)
class Question:
    """Asks of one request, ready for one engine."""

    served: ServedModel
    asks: Sequence[Ask]
    plans: Sequence[AnswerPlan]
    prepared: Sequence[Prepared]
    fit: Fit | None = None
    """What became of the conversation, where that was anybody's choice."""

    @property
    def num_choices(self) -> int:
        return sum(ask.n for ask in self.asks)

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(one.prompt) for one in self.prepared)

    @property
    def max_tokens(self) -> int | None:
        """All that may be generated, where the request says so."""
        ask = self.asks[0]
        return None if ask.max_tokens is None else ask.max_tokens * self.num_choices


async def start(
    serving: Serving,
    exchange: Exchange,
    asks: Sequence[Ask],
    record: Callable[[Question], Record | None] = lambda question: None,
) -> Pump:
    """Begin to answer. `record` makes the place where the answer is kept, when all is known and
    nothing runs. Raises what refuses the request, before anything runs."""
    question = await prepare(serving, exchange, asks)
    ask = asks[0]
    try:
        permit = await serving.admit(
            exchange.tenant,
            ask.model,
            question.num_prompt_tokens,
            question.max_tokens,
            ask.service_tier,
        )
        exchange.pump = _begin(serving, exchange, question, permit, record)
        return exchange.pump
    finally:
        # When the permit is as it will be: a request that the engine refused gave it back.
        exchange.headers += serving.limit_headers(exchange.tenant, ask.model)


def _begin(
    serving: Serving,
    exchange: Exchange,
    question: Question,
    permit: Permit,
    record: Callable[[Question], Record | None],
) -> Pump:
    """Hand the question to its engine; what refuses it gives its permit back."""
    plans = [
        plan for plan, ask in zip(question.plans, question.asks, strict=True) for _ in range(ask.n)
    ]
    try:
        if question.asks[0].service_tier == "flex":
            _check_room(question.served.engine)
        pump = Pump(
            question.num_choices,
            parser=lambda choice: plans[choice].parser(choice, exchange.id),
            patience=serving.patience,
            on_end=lambda pump: _ended(serving, exchange, question, permit, pump),
            record=record(question),
        )
        pump.submit(question.served.engine, question.prepared)
    except BaseException:
        permit.cancel()
        raise
    return pump


def _ended(
    serving: Serving, exchange: Exchange, question: Question, permit: Permit, pump: Pump
) -> None:
    settle(permit, pump.usage)
    if question.fit is not None and not serving.is_draining:
        _foresee(serving, question.fit, pump, exchange)
        keep = keeper(serving.contexts, serving.conversations, exchange.turn)
        serving.summaries.begin(question.fit, exchange.tenant, keep)


def _foresee(serving: Serving, fit: Fit, pump: Pump, exchange: Exchange) -> None:
    """What the next turn will find said is counted, and computed where this turn's prompt is not
    its beginning. An answer that had to go to disk is not read back for that."""
    events = pump.log.recent
    if len(events) < len(pump.log):
        return
    deltas = [e for e in events if isinstance(e, Delta) and e.choice == 0]
    said = "".join(delta.text for delta in deltas)
    keeps_ids = exchange.turn is not None
    ids = [token for delta in deltas for token in delta.token_ids] if keeps_ids else []
    with suppress(RuntimeError):  # the loop is being closed
        asyncio.get_running_loop().run_in_executor(None, fit.foresee, said, ids)
    if isinstance(events[-1], Finished):
        serving.warmer.begin(fit, exchange.tenant, said, ids)


def settle(permit: Permit, usage: Usage) -> None:
    """All has been said; this is what it cost."""
    permit.settle(usage.num_prompt_tokens, usage.num_cached_tokens, usage.num_completion_tokens)


async def prepare(serving: Serving, exchange: Exchange, asks: Sequence[Ask]) -> Question:
    """What an engine would be asked. Raises what refuses it."""
    ask = asks[0]
    exchange.model = ask.model
    serving.embedders.check_not_asked(ask.model)
    served = serving.registry.resolve(ask.model)
    exchange.served_by = served.id
    if serving.settings.log_prompts:
        exchange.prompts = tuple(map(_prompt, asks))
    fields = fields_of(exchange.endpoint)
    check_max_tokens(ask, served.engine.context_length, fields)
    style: AnswerStyle = served.style
    if serving.settings.strict and style.thinks is None:
        check_thoughtless(ask, exchange.endpoint)
    exchange.ignored += without_effect(style, asks, exchange.endpoint)
    found = await recalled(serving, exchange, ask)
    told = [ask_with_documents(serving.contexts, one) for one in asks]

    def work() -> Question:
        fits = [fitted(serving.contexts, served, one, exchange.tenant, found) for one in told]
        shaped = [one for one, _ in fits]
        plans = [style.plan(one) for one in shaped]
        with naming(fields):
            prepared = [
                served.engine.prepare(request_of(one, plan, exchange.tenant))
                for one, plan in zip(shaped, plans, strict=True)
            ]
        return Question(served, shaped, plans, prepared, fits[0][1])

    # A thread costs more than a short prompt; a long one would hold up every stream.
    is_long = style.needs_time(ask) or _num_chars(asks) > _LONG
    question = await asyncio.to_thread(work) if is_long else work()
    for one, prepared in zip(question.asks, question.prepared, strict=True):
        check_fit(one, prepared, served.engine.context_length, fields)
    if question.fit is not None and question.fit.wants_report:
        exchange.context = question.fit.report(len(question.prepared[0].prompt))
    return question


def request_of(ask: Ask, plan: AnswerPlan, tenant: str) -> Request:
    """The engine's request. Its own checks name fields of the wire, too."""
    return Request(
        messages=plan.messages,
        answer_ids=_answer_ids(ask, plan),
        shift=shifts(ask.context),
        prompt=ask.prompt,
        token_ids=ask.token_ids,
        tools=plan.tools,
        continue_final_message=ask.continues,
        template_variables=plan.template_variables,
        max_tokens=ask.max_tokens or DEFAULT_MAX_TOKENS,
        stop=ask.stop,
        n=ask.n,
        ignore_eos=ask.ignore_eos,
        heal=ask.heal,
        temperature=ask.temperature,
        top_p=ask.top_p,
        top_k=ask.top_k,
        min_p=ask.min_p,
        repetition_penalty=ask.repetition_penalty,
        frequency_penalty=ask.frequency_penalty,
        presence_penalty=ask.presence_penalty,
        logit_bias=ask.logit_bias,
        seed=ask.seed,
        logprobs=ask.logprobs,
        top_logprobs=ask.top_logprobs,
        grammar=plan.grammar,
        visible_tokens=plan.visible_tokens,
        tenant=tenant,
        conversation=ask.place.conversation_id if ask.place else None,
    )


def _prompt(ask: Ask) -> str:
    """For people to read."""
    if ask.prompt is not None:
        return ask.prompt
    return compact(ask.token_ids if ask.messages is None else ask.messages).decode()


def _answer_ids(ask: Ask, plan: AnswerPlan) -> Mapping[int, Sequence[int]]:
    """By index in the plan's messages, which may begin with one more."""
    if not ask.answer_ids:
        return {}
    further = len(plan.messages or ()) - len(ask.messages or ())
    return {index + further: ids for index, ids in ask.answer_ids.items()}


def _check_room(engine: Engine) -> None:
    stats = engine.stats()
    if stats.num_waiting or stats.num_pending_requests >= engine.max_running:
        raise FlexCapacityExceeded(
            "No capacity for flex requests now. Try again later, or use `on_demand`, which waits."
        )


def _num_chars(asks: Sequence[Ask]) -> int:
    num = 0
    for ask in asks:
        num += len(ask.prompt or "")
        for message in ask.messages or ():
            content = message.get("content")
            num += len(content) if isinstance(content, str) else 0
    return num
