"""Computes what is known of a question while the rest of it is being typed or spoken.

In: a draft that grows. Out: banks in the cache, which the question will find. Thread: the event
loop. Next: `asking.py`, when it is asked.

Nothing of this reaches the answer: the question that is asked is rendered and tokenized whole, as
any other, and what was computed ahead is used where its tokens begin with the same ones. So a guess
that was wrong would cost time and nothing else. Guessed is little: taken are the tokens that the
prompt has in common with one that goes on otherwise after its last gap between words.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from array import array
from collections.abc import Mapping
from typing import Protocol

from headrace.engine.request import Request
from headrace.errors import ContextLengthExceeded, HeadraceError
from headrace.events import Failed, Finished
from headrace.model.interface import TokenIds
from headrace.server.asking import Question, prepare
from headrace.server.chat import ChatForm
from headrace.server.conversing import foretold
from headrace.server.exchange import Exchange
from headrace.server.limits import Permit
from headrace.server.serving import Serving
from headrace.server.socket.caller import Caller
from headrace.wire.ask import JSON

_LEAST = 16
"""Bytes that are worth another look: a few words."""
_SHARE = 256
"""A draft is looked at again when it has grown by this part at least: so all looks together cost
no more than some hundred times the last one, however small the pieces are."""
_GAP = r"\s\u3001\u3002\uff0c\uff0e\uff01\uff1f\uff1b\uff1a"
"""What stands between words; where there are no spaces, after some of them."""
_LAST_GAP = re.compile(f"(.*[^{_GAP}])[{_GAP}]+[^{_GAP}]", re.DOTALL)
_log = logging.getLogger(__name__)


class Growing(Protocol):
    """A draft, as far as it is known."""

    @property
    def num_bytes(self) -> int: ...

    @property
    def text(self) -> str: ...

    def body(self, text: str) -> Mapping[str, JSON]: ...


class Ahead:
    """Follows one draft, with at most one prompt in the engine at a time."""

    def __init__(
        self, serving: Serving, caller: Caller, draft: Growing, tasks: set[asyncio.Task[None]]
    ) -> None:
        """In `tasks` is whatever runs."""
        self._serving = serving
        self._caller = caller
        self._draft = draft
        self._tasks = tasks
        self._task: asyncio.Task[None] | None = None
        self._is_over = False
        self._due_at = 0
        """Bytes from which on another look is due."""
        self._known: TokenIds = array("i")
        """What was computed last."""

    def look(self) -> None:
        """The draft has grown, maybe enough."""
        is_due = self._draft.num_bytes >= self._due_at and not self._serving.is_draining
        if is_due and not self._is_over and self._task is None:
            self._due_later()
            self._task = asyncio.create_task(self._follow())
            self._tasks.add(self._task)
            # One that is cancelled before it begins runs no `finally`.
            self._task.add_done_callback(self._ended)

    def turn_back(self) -> None:
        """The draft has lost its text: what is being computed belongs to it no more."""
        self._due_later()
        self._cancel()

    def stop(self) -> None:
        """Look no more; what is being computed comes to its end."""
        self._is_over = True

    def abandon(self) -> None:
        """Nobody will ask: compute no more."""
        self.stop()
        self._cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _due_later(self) -> None:
        num_bytes = self._draft.num_bytes
        self._due_at = num_bytes + max(_LEAST, num_bytes // _SHARE)

    async def _follow(self) -> None:
        try:
            await self._compute()
        except ContextLengthExceeded:
            self._due_at = sys.maxsize  # text only grows; `turn_back` looks again
        except HeadraceError:
            pass  # Told when it is asked: until then it may become something else.
        except Exception:
            _log.exception("a question could not be computed ahead")
            self._is_over = True

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._task = None
        self.look()

    async def _compute(self) -> None:
        tenant = self._caller.tenant().id
        one, other = probes(self._draft.text)
        asks = [ask for text in (one, other) for ask in self._form(text).asks]
        # Looked up once for both, so that nothing differs but the text.
        asks = [*await foretold(self._serving, tenant, asks)]
        question, unlike = [
            await prepare(self._serving, Exchange(tenant=tenant), [ask]) for ask in asks
        ]
        served = question.served
        known = common(question.prepared[0].prompt, unlike.prepared[0].prompt)
        num_new = len(known) - len(common(known, self._known))
        # Where somebody waits already, this can, too: until it is asked.
        if self._is_over or not num_new or served.engine.stats().num_waiting:
            return
        permit = await self._serving.admit_ahead(tenant, question.asks[0].model, num_new)
        if permit is not None:
            await _prefill(question, tenant, known, permit)
            self._known = known

    def _form(self, text: str) -> ChatForm:
        body = self._draft.body(text)
        return ChatForm(body, self._serving.body_limits, self._serving.settings.strict)


async def _prefill(question: Question, tenant: str, known: TokenIds, permit: Permit) -> None:
    """Compute `known`, and charge what was not there. Where that is cut off, all that was reserved
    is charged."""
    request = Request(token_ids=known, prefill_only=True, tenant=tenant)
    try:
        async with question.served.engine.generate(request) as stream:
            async for event in stream:
                if isinstance(event, (Finished, Failed)):
                    usage = event.usage
                    permit.settle(usage.num_prompt_tokens, usage.num_cached_tokens, 0)
    except HeadraceError:
        permit.cancel()
        raise


def probes(text: str) -> tuple[str, str]:
    """Two texts, whose prompts have in common what is in the prompt of all that `text` may become.

    They differ from the last gap on that something follows: a word may still grow, and so may a
    gap. Of a first word, or of nothing, they tell only what the template writes before it."""
    found = _LAST_GAP.match(text)
    if found is None:
        return text if text.strip() else f"{text}\n0", "0" if text.lstrip().startswith("#") else "#"
    stem, gap = found[1], text[found.end(1)]
    return text, stem + ("\n#" if gap == " " else " #")


def common(one: TokenIds, other: TokenIds) -> TokenIds:
    """What both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return one[:low]
