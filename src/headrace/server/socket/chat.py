"""Chats over one socket: questions, whole or piece by piece, cancellations and resumptions.

In: messages. Out: answers, each under its question's id. Thread: the event loop. Next: `answer.py`.

Whatever a message is, it is answered under its own id or, where that is not to be known or is being
answered already, under `null`; no bad message harms an answer.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping

from headrace.errors import HeadraceError, InvalidRequest, RateLimited
from headrace.server.exchange import LEFT, Exchange, headers_of
from headrace.server.serving import Serving
from headrace.server.socket.answer import Answer
from headrace.server.socket.caller import Caller
from headrace.server.socket.drafts import Drafts
from headrace.server.socket.outlet import Outlet
from headrace.wire.ask import JSON
from headrace.wire.body import parse_body
from headrace.wire.socket_frames import (
    Append,
    Cancel,
    Clear,
    Commit,
    Question,
    Resume,
    Wish,
    client_id,
    refusal,
    wish,
)

_PRINTABLE = re.compile("[!-~]+")
_log = logging.getLogger(__name__)

ASKING = "/chat/completions"
READING = "/streams/{id}"
"""The endpoints that a question and a resumption count for."""


class ChatTalk:
    """What is asked over one socket, and what is being answered."""

    def __init__(self, serving: Serving, caller: Caller, outlet: Outlet) -> None:
        self._serving = serving
        self._caller = caller
        self._outlet = outlet
        self._max_answers = serving.settings.socket_answers
        self._answers: dict[str, Answer] = {}
        """Those whose last message is still to be sent, by id."""
        self._drafts = Drafts(serving, caller)
        self._running: dict[asyncio.Task[None], Answer] = {}

    @property
    def num_open(self) -> int:
        """Answers that are not done."""
        return len(self._running)

    def hear(self, message: bytes) -> bool:
        """Begin to do what a message says. False where it was no JSON object."""
        exchange = Exchange(endpoint=ASKING, is_streamed=True)
        try:
            body = parse_body(message, self._serving.body_limits)
        except InvalidRequest as error:
            self._refuse(None, exchange, error)
            return False
        answer_id = None
        try:
            answer_id = client_id(body)
            self._do(answer_id, body, exchange)
        except HeadraceError as error:
            self._refuse(None if self._is_used(answer_id) else answer_id, exchange, error)
        return True

    async def leave(self) -> None:
        """The client is gone. Returns when everybody who is concerned knows of it."""
        for answer in self._running.values():
            answer.leave()
        if ending := {*self._running, *self._drafts.leave()}:
            await asyncio.wait(ending)

    def _do(self, answer_id: str, body: Mapping[str, JSON], exchange: Exchange) -> None:
        wanted = wish(body)
        if not isinstance(wanted, Cancel):
            self._check_free(answer_id, wanted)
        match wanted:
            case Cancel():
                self._drafts.drop(answer_id)
                # One that has ended meanwhile need not be stopped.
                if (running := self._answers.get(answer_id)) is not None:
                    running.stop()
            case Append():
                self._drafts.append(answer_id, wanted)
            case Clear():
                self._drafts.clear(answer_id)
            case Commit():
                self._begin(answer_id, self._drafts.commit(answer_id, wanted), exchange)
            case Question():
                self._begin(answer_id, wanted, exchange)
            case Resume():
                exchange.endpoint = READING
                self._begin(answer_id, wanted, exchange)

    def _is_used(self, answer_id: str | None) -> bool:
        return answer_id is not None and (answer_id in self._answers or answer_id in self._drafts)

    def _check_free(self, answer_id: str, wanted: Wish) -> None:
        """Raises what keeps `answer_id` from meaning this."""
        if answer_id in self._answers:
            raise InvalidRequest(
                f"`id`: {answer_id!r} is being answered; choose another", param="id"
            )
        if answer_id in self._drafts:
            if isinstance(wanted, (Question, Resume)):
                raise InvalidRequest(
                    f"`id`: {answer_id!r} is an input that was not committed; choose another",
                    param="id",
                )
        elif (
            not isinstance(wanted, Clear)
            and len(self._running) + len(self._drafts) >= self._max_answers
        ):
            raise RateLimited(
                f"this socket has {self._max_answers} answers and inputs at the same time, which "
                "is the most; wait for one to end, or open another",
                wire_type="requests",
                retry_after_s=None,
            )

    def _begin(self, answer_id: str, wanted: Question | Resume, exchange: Exchange) -> None:
        exchange.client_request_id = answer_id if _PRINTABLE.fullmatch(answer_id) else None
        answer = Answer(
            self._serving,
            exchange,
            answer_id,
            self._outlet,
            on_end=lambda: self._forget(answer),
        )
        self._answers[answer_id] = answer
        task = asyncio.create_task(self._run(answer, wanted))
        self._running[task] = answer
        task.add_done_callback(self._running.pop)

    async def _run(self, answer: Answer, wanted: Question | Resume) -> None:
        """One answer to its end, however it ends."""
        exchange = answer.exchange
        try:
            exchange.tenant = self._caller.tenant().id
            with self._serving.open():
                await answer.give(wanted)
        except HeadraceError as error:
            self._end_badly(answer, error)
        except Exception:
            _log.exception("an answer over a socket failed")
            self._end_badly(answer, HeadraceError("Internal Server Error"))
        finally:
            self._forget(answer)
            if exchange.has_left:
                exchange.status = LEFT
            exchange.ended_at = time.perf_counter()
            exchange.when_counted(lambda: self._serving.observer.observe(exchange.fact()))

    def _end_badly(self, answer: Answer, error: HeadraceError) -> None:
        answer.failed(error)
        if self._answers.get(answer.id) is answer:  # its last message was not sent
            self._forget(answer)
            self._outlet.say(refusal(answer.id, headers_of(answer.exchange), error))

    def _refuse(self, answer_id: str | None, exchange: Exchange, error: HeadraceError) -> None:
        """Answer a message that asks for nothing that could be begun."""
        exchange.status, exchange.error = error.status, error
        self._outlet.say(refusal(answer_id, headers_of(exchange), error))
        self._serving.observer.observe(exchange.fact())

    def _forget(self, answer: Answer) -> None:
        """The id is free again."""
        if self._answers.get(answer.id) is answer:
            del self._answers[answer.id]
