"""Streams that a dead server left go on in this one.

In: what was on disk. Out: the same streams, under their ids, for those who come back.
Thread: `made_ready` any but the event loop's; `revive` the event loop. Next: `streams/pump.py`.

What was said is said again, to logs that nobody has read yet, and so in the same cuts and under the
same numbers; then the engine goes on. Streams that had ended come back as well, for what is left of
their time. One that would not go on as it would have then is lost, and its readers learn why.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

from headrace.engine.engine import Prepared
from headrace.engine.past import Ended, Said
from headrace.errors import GenerationFailed, HeadraceError, StreamGone
from headrace.model.answer import AnswerPlan
from headrace.server import conversing
from headrace.server.api_chat import ApiChatForm
from headrace.server.asking import request_of, settle
from headrace.server.chat import ChatForm
from headrace.server.completions import CompletionForm
from headrace.server.durable import MAX_ATTEMPTS, Header, age_s
from headrace.server.exchange import Exchange
from headrace.server.models import ServedModel
from headrace.server.respond import ReadForm
from headrace.server.responses import ResponsesForm
from headrace.server.serving import Serving
from headrace.server.telling import Form, Telling
from headrace.streams.identity import differences
from headrace.streams.pump import Pump
from headrace.streams.recovery import Recovered
from headrace.wire.body import parse_body

_FORMS: Final[Mapping[str, ReadForm]] = {
    "/chat/completions": ChatForm,
    "/completions": CompletionForm,
    "/responses": ResponsesForm,
    "/api/chat": ApiChatForm,
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Revival:
    """A stream that is ready to be taken up again."""

    stream: Recovered
    header: Header
    served: ServedModel
    form: Form
    plan: AnswerPlan
    prepared: Prepared


def made_ready(serving: Serving) -> list[Revival]:
    """All streams that can go on, with their prompts and grammars. Needs the models; those that
    cannot go on are lost. Raises nothing for one stream's sake."""
    durable = serving.durable
    streams = durable.recovered
    attempts = durable.attempts([s for s in streams if s.ended_at is None]) if streams else {}
    ready = []
    for stream in streams:
        try:
            if attempts.get(stream.id, 0) > MAX_ATTEMPTS:
                stream = _given_up(serving, stream)
            ready.append(_ready(serving, stream))
        except HeadraceError as error:
            _lose(serving, stream, error)
        except Exception as error:
            _log.exception("a stream cannot go on")
            _lose(
                serving, stream, StreamGone(f"the stream cannot go on: internal error: {error!r}")
            )
    return ready


def revive(serving: Serving, revivals: Sequence[Revival]) -> None:
    """Take them up again, eldest first. Raises nothing for one stream's sake."""
    for revival in revivals:
        try:
            _revive(serving, revival)
        except HeadraceError as error:
            # Mostly an engine that is closed again already: the next server may have more luck.
            _log.warning("the stream %s does not go on: %s", revival.stream.id, error.message)
    serving.durable.are_back()
    if revivals:
        _log.info("%d streams go on or can be read again", len(revivals))


def _ready(serving: Serving, stream: Recovered) -> Revival:
    """Raises why it cannot go on."""
    if stream.ended_at is not None and age_s(stream.ended_at) >= serving.settings.stream_ttl_s:
        raise StreamGone(f"the stream `{stream.id}` is not kept any more; ask anew")
    header = Header.read(stream.header)
    served = _served(serving, header)
    read_form = _FORMS[header.endpoint]
    limits = serving.body_limits
    form = read_form(parse_body(header.body.encode(), limits), limits, header.strict)
    ask = form.asks[0]
    plan: AnswerPlan = served.style.plan(ask)
    request = replace(
        request_of(ask, plan, header.tenant),
        messages=None,
        prompt=None,
        tools=(),
        continue_final_message=False,
        token_ids=header.prompt,
        begun=bytes.fromhex(header.begun),
        seed=header.seed,
    )
    prepared = served.engine.prepare_again(
        request, stream.past, max_num_tokens=header.max_num_tokens
    )
    return Revival(stream, header, served, form, plan, prepared)


def _served(serving: Serving, header: Header) -> ServedModel:
    """The model that began the stream, as it was then. Raises `StreamGone`."""
    served = next((m for m in serving.registry.served if m.id == header.served_by), None)
    if served is None:
        raise StreamGone(
            f"the server was restarted without the model `{header.served_by}`, so the stream "
            "cannot go on; ask anew"
        )
    if different := differences(header.identity, served.engine):
        raise StreamGone(
            f"the server was restarted, and {' and '.join(different)} changed, so the stream "
            "cannot go on as it would have; ask anew"
        )
    return served


def _given_up(serving: Serving, stream: Recovered) -> Recovered:
    """The same with an end, because it comes no further."""
    ended = {one.choice for one in stream.past if isinstance(one, Ended)}
    choices = [choice for choice in range(stream.num_choices) if choice not in ended]
    error = GenerationFailed(
        f"the server died {MAX_ATTEMPTS} times without a new token of this stream, so it was given "
        "up; ask anew"
    )
    serving.durable.end(stream.id, choices, error)
    past = [*stream.past, *(Ended(choice, error) for choice in choices)]
    return replace(stream, past=past, ended_at=stream.opened_at + age_s(stream.opened_at))


def _lose(serving: Serving, stream: Recovered, error: HeadraceError) -> None:
    if not isinstance(error, StreamGone):
        error = StreamGone(f"the stream cannot go on after a restart: {error.message}")
    _log.warning("the stream %s is lost: %s", stream.id, error.message)
    serving.durable.lose(stream.id, str(stream.header.get("tenant", "")), error)


def _revive(serving: Serving, revival: Revival) -> None:
    stream, header = revival.stream, revival.header
    is_over = stream.ended_at is not None
    pump = _pump(serving, revival)
    pump.submit(revival.served.engine, [revival.prepared])
    if not is_over:
        _observe(serving, revival, pump)
    conversing.resume(serving, header.turn, revival.form, header.stamp, pump, is_over=is_over)
    spelling = revival.served.engine.tokenizer if revival.form.asks[0].logprobs else None
    kept = serving.keep(
        stream.id,
        header.tenant,
        pump,
        Telling(
            revival.form,
            header.stamp,
            header.seed,
            spelling,
            header.is_streamed,
            (header.turn or {}).get("conversation_id"),
        ),
        served_by=header.served_by,
        age_s=age_s(stream.ended_at) if stream.ended_at is not None else 0.0,
    )
    if header.key is not None:
        serving.idempotency.restore(header.tenant, header.key, bytes.fromhex(header.digest), kept)


def _pump(serving: Serving, revival: Revival) -> Pump:
    stream, header, plan = revival.stream, revival.header, revival.plan
    is_over = stream.ended_at is not None
    said_before: Counter[int] = Counter()
    for one in stream.past:
        said_before[one.choice] += len(one.token_ids) if isinstance(one, Said) else 0
    return Pump(
        stream.num_choices,
        parser=lambda choice: plan.parser(choice, header.stamp.request_id),
        # It has waited for its first step and token before; now others may stand before it.
        patience=replace(serving.patience, queue_s=None, first_token_s=None),
        on_end=_nothing if is_over else _counted(serving, revival),
        record=serving.durable.again(stream.id),
        age_s=0.0 if is_over else age_s(stream.opened_at),
        said_before=said_before,
    )


def _nothing(pump: Pump) -> None:
    """What it cost was counted where it ended."""


def _counted(serving: Serving, revival: Revival) -> Callable[[Pump], None]:
    """Its limits count it as if it had been asked here: the server that admitted it is dead, and
    with that what it counted."""
    ask = revival.form.asks[0]
    max_tokens = None if ask.max_tokens is None else ask.max_tokens * ask.n
    permit = serving.readmit(
        revival.header.tenant, ask.model, len(revival.header.prompt), max_tokens
    )
    return lambda pump: settle(permit, pump.usage)


def _observe(serving: Serving, revival: Revival, pump: Pump) -> None:
    """Its request is told of when it ends: the server that took it could not. Its times count from
    when it was asked for; when its first tokens came is not known any more."""
    header, stamp = revival.header, revival.header.stamp
    exchange = Exchange(
        client_request_id=header.client_request_id,
        endpoint=header.endpoint,
        id=stamp.request_id,
        arrived_at=time.perf_counter() - age_s(revival.stream.opened_at),
        tenant=header.tenant,
        model=stamp.model,
        served_by=header.served_by,
        is_streamed=header.is_streamed,
        status=HTTPStatus.OK,
        pump=pump,
    )
    has_spoken = any(isinstance(one, Said) and one.token_ids for one in revival.stream.past)

    def tell() -> None:
        fact = exchange.fact()
        serving.observer.observe(replace(fact, ttft_s=None) if has_spoken else fact)

    exchange.when_counted(tell)
