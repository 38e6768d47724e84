"""A question as a turn of a kept conversation: told what was said before, kept as it is answered.

In: `Ask`s of one request. Out: a pump, whose answer is kept as it grows. Thread: the event loop.
Next: `asking.py`; `conversations/turns.py`.

A turn is let in before anything is prepared, and leaves no trace where its question is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from headrace.conversations.prompt import answer_ids, new_messages, prompt_messages
from headrace.conversations.said import Said
from headrace.server import asking
from headrace.server.asking import Question
from headrace.server.exchange import Exchange
from headrace.server.recalling import remember
from headrace.server.responses import ResponsesForm
from headrace.server.serving import Serving
from headrace.server.telling import Form
from headrace.streams.pump import Pump, Record
from headrace.wire.ask import Ask, Context, Place, Stamp
from headrace.wire.context_field import parse_context

if TYPE_CHECKING:
    from headrace.conversations.open_turn import OpenTurn
    from headrace.conversations.values import Turn

RESPONSE = "resp_"
"""How the ids of answers begin that may be named later."""


async def start(
    serving: Serving,
    exchange: Exchange,
    asks: Sequence[Ask],
    record: Callable[[Question], Record | None] = lambda question: None,
) -> Pump:
    """As `asking.start`, for turns as well. Raises also what refuses the turn."""
    place = asks[0].place
    if place is not None:
        await serving.conversations.opened()
    if place is None or not _is_kept(serving, place):
        return await asking.start(serving, exchange, asks, record)
    turns = serving.conversations.turns
    num_asked = len(asks[0].messages or ())
    opened = await turns.begin(
        exchange.tenant, place, waits=place.queue, num_asked=num_asked - place.num_passing
    )
    try:
        exchange.turn = opened
        if place.stores and exchange.answer_id.startswith(RESPONSE):
            opened.name(exchange.answer_id)
        ask = _told(asks[0], opened.turn, place)
        if serving.contexts.of(ask).strategy == "summary":
            await serving.summaries.recall(serving.conversations, opened)
        pump = await asking.start(serving, exchange, [ask], record)
    except BaseException:
        await turns.give_up(opened)
        raise
    keep(serving, opened, asks[0], pump)
    remember(serving, exchange, ask)
    return pump


def _is_kept(serving: Serving, place: Place) -> bool:
    """Where nothing is named, the answer is kept if there is a database, as a courtesy."""
    is_named = place.conversation_id or place.previous_response_id
    return bool(is_named) or serving.conversations.is_open


async def foretold(serving: Serving, tenant: str, asks: Sequence[Ask]) -> Sequence[Ask]:
    """As the turn would be told now, which is not let in. Raises what would refuse it for what it
    names."""
    place = asks[0].place
    if place is None or not (place.conversation_id or place.previous_response_id):
        return asks
    await serving.conversations.opened()
    turn = await serving.conversations.turns.foreseen(tenant, place)
    return [_told(ask, turn, place) for ask in asks]


def _told(ask: Ask, turn: Turn, place: Place) -> Ask:
    """The question, after what was said before."""
    messages = prompt_messages(turn.history, ask.messages or (), place.num_passing)
    return replace(
        ask,
        messages=messages,
        context=_context(ask, turn, place),
        answer_ids=answer_ids(turn.history, place.num_passing),
    )


def _context(ask: Ask, turn: Turn, place: Place) -> Context:
    """The question's word over the conversation's, over what is the custom there."""
    kept = turn.context
    own = parse_context(kept) if kept else Context()
    return (ask.context or Context()).over(own).over(place.custom or Context())


def keep(serving: Serving, opened: OpenTurn, ask: Ask, pump: Pump) -> None:
    """From now on the turn is kept, whoever reads it."""
    place, turns = ask.place, serving.conversations.turns
    assert place is not None
    if opened.turn.conversation_id is None and not place.stores:
        turns.leave(opened)
        return
    new = new_messages(opened.turn.history, ask.messages or (), place.num_passing)
    turns.keep(opened, new, Said(pump.log).read, pump.cancel)
    pump.when_over(lambda: turns.end(opened))


def show(opened: OpenTurn | None, form: Form, stamp: Stamp) -> None:
    """A response is kept with what its object says beside its items."""
    if opened is not None and opened.response_id is not None and isinstance(form, ResponsesForm):
        opened.shown = form.begun(stamp)


def mark_of(exchange: Exchange) -> Mapping[str, Any] | None:
    """What another process must know to keep the turn."""
    return exchange.turn.mark() if exchange.turn is not None else None


def resume(
    serving: Serving,
    mark: Mapping[str, Any] | None,
    form: Form,
    stamp: Stamp,
    pump: Pump,
    *,
    is_over: bool,
) -> None:
    """A turn goes on that another process began, or what it said in the end is kept after all."""
    if mark is None or not serving.conversations.is_open:
        return
    opened = serving.conversations.turns.resumed(mark, is_over=is_over)
    show(opened, form, stamp)
    keep(serving, opened, form.asks[0], pump)
