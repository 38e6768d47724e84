"""Between turns, the next one's beginning is computed: nobody waits for that.

In: turns that have ended, and what was said. Out: banks. Thread: the event loop.
Next: `engine/engine.py`.

What was found for a question stands in front of it, and is gone from the next prompt. All from
there on would be computed then, the answer too, while somebody waits for the next.

    this turn  |system|turn 1|passages, question 2|answer 2|
    warmed     |system|turn 1|question 2|answer 2|
    the next   |system|turn 1|question 2|answer 2|passages, question 3|
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from headrace.engine.engine import Engine
from headrace.engine.request import Request
from headrace.errors import HeadraceError
from headrace.events import Event, fold
from headrace.server.contexts import Contexts
from headrace.server.fitting import Fit, fitted
from headrace.wire.ask import Ask

_LOOK_S = 0.05
"""How often it is looked whether the engine has room."""
_BUSY_SHARE = 4
"""It has none when this part of what it can run at a time is there."""
_MOST = 32
"""Turns that wait for room; those after them are computed when they are asked for."""

_log = logging.getLogger(__name__)


class Warmer:
    """The turns that are being warmed for."""

    def __init__(self, contexts: Contexts) -> None:
        self._contexts = contexts
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopped = False

    @property
    def num_running(self) -> int:
        return len(self._tasks)

    def begin(self, fit: Fit, tenant: str, answer: str, ids: Sequence[int] = ()) -> None:
        """Compute, when there is room, what follows a turn whose prompt told passages. `ids`: of
        the answer, where they are kept."""
        is_wanted = fit.fitted.plan.retrieved and not fit.ask.continues
        if not is_wanted or self._is_stopped or len(self._tasks) >= _MOST:
            return
        task = asyncio.create_task(self._make(fit, tenant, answer, ids))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """Warm no more."""
        self._is_stopped = True
        for task in list(self._tasks):
            task.cancel()

    async def _make(self, fit: Fit, tenant: str, answer: str, ids: Sequence[int]) -> None:
        try:
            await warm(self._contexts, fit, fit.followed(answer, ids), tenant)
        except HeadraceError as error:
            _log.info("a next turn was not prepared: %s", error.message)
        except Exception:
            _log.exception("a next turn was not prepared")


async def warm(contexts: Contexts, fit: Fit, ask: Ask, tenant: str) -> None:
    """Compute the banks of the prompt that `ask` would have now, with nothing looked for, when the
    engine has room. `fit`: of the question that it is, or follows. Raises what refuses it."""
    served, style = fit.served, fit.served.style

    def request() -> Request:
        shaped, _ = fitted(contexts, served, ask, tenant)
        messages, tools = style.frame(shaped)
        num_before = len(messages) - len(shaped.messages or ())
        return Request(
            messages=messages,
            answer_ids={index + num_before: ids for index, ids in shaped.answer_ids.items()},
            tools=tools,
            continue_final_message=shaped.continues,
            template_variables=style.variables(shaped),
            prefill_only=True,
            tenant=tenant,
        )

    made = await asyncio.to_thread(request)
    await room(served.engine)
    await whole_answer(served.engine, made)


async def room(engine: Engine) -> None:
    """Returns when nobody would wait for what is asked now."""
    most = max(1, engine.max_running // _BUSY_SHARE)
    while (stats := engine.stats()).num_waiting or stats.num_pending_requests >= most:
        await asyncio.sleep(_LOOK_S)


async def whole_answer(engine: Engine, request: Request) -> str:
    """Raises what refuses the request, and what it fails with."""
    events: list[Event] = []
    async with engine.generate(request) as stream:
        async for event in stream:
            events.append(event)
    return fold(events)[0].text
