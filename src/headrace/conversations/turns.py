"""Turns: one at a time in a conversation, kept as they are said.

In: where a turn goes on, its new messages, its answer as it grows. Out: the history it stands on.
Thread: an event loop. Next: `turn_rows.py`, `database.py`.

A turn is let in with a lease in the conversation's row, which it renews while it lives; so there is
one at a time also where several servers share a database, and one whose server died stands in
nobody's way for long. What its answer says is written now and then, all turns together, and at its
end; never on a token's way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, insert

from headrace.conversations import rows, turn_rows
from headrace.conversations.kept_responses import place_of, show
from headrace.conversations.open_turn import OpenTurn
from headrace.conversations.store import ConversationStore, busy, stored
from headrace.conversations.strategies.values import Message
from headrace.conversations.tables import responses
from headrace.conversations.turn_rows import LEASE_S
from headrace.conversations.values import (
    Answer,
    Conversation,
    StoredMessage,
    Turn,
)
from headrace.errors import ConversationBusy, ConversationNotFound, HeadraceError
from headrace.wire.ask import ROOT, Place
from headrace.wire.ids import conversation_id as new_conversation_id
from headrace.wire.ids import turn_id as new_turn_id

SAVE_S = 0.25
"""How often answers are saved while they grow."""
_RENEW_S = LEASE_S / 3

_log = logging.getLogger(__name__)
Key = tuple[str, str]
"""A tenant, and a conversation's id."""


class Turns:
    """The turns of one server."""

    def __init__(self, store: ConversationStore) -> None:
        self._store = store
        self._by_place: dict[Key, OpenTurn] = {}
        self._open: set[OpenTurn] = set()
        self._saving: asyncio.Task[None] | None = None
        store.on_delete.append(self._deleted)

    @property
    def num_open(self) -> int:
        """Turns that are not kept to their end yet."""
        return len(self._open)

    async def begin(
        self, tenant: str, place: Place, *, waits: bool = False, num_asked: int = 1
    ) -> OpenTurn:
        """Let a turn in. `waits`: after the one that is going on, rather than to be refused.
        `num_asked`: messages that it will add before its answer. Whoever gets it must `keep` or
        `give_up`. Raises `ConversationBusy`, `ConversationNotFound` and `ConversationTooLarge`."""
        if place.conversation_id is None:
            return self._entered(
                await self._store.database.read(lambda c: self._aside(c, tenant, place))
            )
        key = tenant, place.conversation_id
        await self._wait_for(key, waits)
        opened = self._entered(Turn(new_turn_id(), tenant, place.conversation_id, None, None, ()))
        self._by_place[key] = opened
        try:
            await self._let_in(opened, place, waits, num_asked)
            self._check_history(opened.turn)
            return opened
        except BaseException:
            await self.give_up(opened)
            raise

    async def foreseen(self, tenant: str, place: Place) -> Turn:
        """What a turn would stand on now, without being let in. Raises as `begin` does."""

        def work(connection: Connection) -> Turn:
            named = place.conversation_id
            if named is None:
                return self._aside(connection, tenant, place)
            try:
                found = rows.find(connection, tenant, named)
            except ConversationNotFound:
                if not place.creates:
                    raise
                return Turn("", tenant, named, None, None, ())
            parent_id = self._parent(connection, found, place)
            turn = Turn("", tenant, named, found.number, parent_id, (), context=found.context)
            return turn_rows.with_history(connection, turn)

        return await self._store.database.read(work)

    async def _wait_for(self, key: Key, waits: bool) -> None:
        """Until no turn of this server is in that place. One that only has to be kept is waited
        for anyway."""
        while (other := self._by_place.get(key)) is not None:
            if not waits and not other.is_ending:
                raise busy()
            await asyncio.shield(other.done)

    async def _let_in(self, opened: OpenTurn, place: Place, waits: bool, num_asked: int) -> None:
        while True:
            try:
                await self._take_lease(opened, place, num_asked)
                return
            except ConversationBusy:
                if not waits:
                    raise
            await asyncio.sleep(1.0)  # another server's turn; it tells nobody of its end

    async def _take_lease(self, opened: OpenTurn, place: Place, num_asked: int) -> None:
        """Afterwards it is known whether the turn has it, also where who asked left meanwhile."""
        turn = opened.turn
        taking = asyncio.ensure_future(
            self._store.database.write_and_read(
                lambda c: self._enter(c, turn, place, num_asked), turn_rows.with_history
            )
        )
        try:
            self._has_lease(opened, await asyncio.shield(taking))
        except asyncio.CancelledError:
            await asyncio.wait([taking])
            if taking.exception() is None:
                self._has_lease(opened, taking.result())
            raise

    def _has_lease(self, opened: OpenTurn, turn: Turn) -> None:
        opened.turn, opened.number = turn, turn.number
        opened.renewed_at = self._store.clock()
        self._save()  # its lease, too, which may run out before the answer begins

    def _enter(self, connection: Connection, turn: Turn, place: Place, num_asked: int) -> Turn:
        """Take the lease. Raises also `ConversationTooLarge`."""
        assert place.conversation_id is not None
        now = self._store.clock()
        lease = {"turn_id": turn.id, "turn_until": now + LEASE_S}
        found = rows.take_idle(connection, turn.tenant, place.conversation_id, lease)
        is_new = False
        if found is None:
            found, is_new = self._made_or_taken_over(connection, turn.tenant, place, lease, now)
        num_there = 0 if is_new else rows.count_messages(connection, found.number)
        self._store.check_room(num_there + num_asked + 1)
        return replace(
            turn,
            number=found.number,
            parent_id=self._parent(connection, found, place),
            context=found.context,
            is_new=is_new,
        )

    def _made_or_taken_over(
        self,
        connection: Connection,
        tenant: str,
        place: Place,
        lease: Mapping[str, Any],
        now: float,
    ) -> tuple[Conversation, bool]:
        """The conversation, and whether it is new. Raises `ConversationBusy`."""
        named = place.conversation_id
        assert named is not None
        is_new = False
        if place.creates:
            made = {"tenant": tenant, "id": named, "created_at": now, "updated_at": now}
            is_new = rows.add_if_new(connection, {**made, **lease})
        found = rows.find(connection, tenant, named, locks=True)
        if not is_new:
            turn_rows.check_lease(connection, found.number, now)
            rows.change(connection, found.number, **lease)
        return found, is_new

    def _check_history(self, turn: Turn) -> None:
        """Raises `ConversationNotFound` where it was deleted meanwhile."""
        if turn.parent_id is not None and not turn.history:
            raise rows.no_conversation(turn.conversation_id or "")

    def _parent(self, connection: Connection, found: Conversation, place: Place) -> str | None:
        if place.after == ROOT:
            return None
        if place.after is not None:
            return rows.message(connection, found.number, place.after).id
        return found.head_id

    def _aside(self, connection: Connection, tenant: str, place: Place) -> Turn:
        """A turn that no conversation names: it follows a response, or nothing. Others may follow
        the same one at the same time."""
        turn = Turn(new_turn_id(), tenant, None, None, None, ())
        if place.previous_response_id is None:
            return turn
        number, parent_id = place_of(connection, tenant, place.previous_response_id)
        history = rows.branch(connection, number, parent_id)
        self._store.check_room(len(history) + 1)
        return replace(turn, number=number, parent_id=parent_id, history=history)

    def _entered(self, turn: Turn) -> OpenTurn:
        opened = OpenTurn(turn, asyncio.get_running_loop().create_future(), number=turn.number)
        self._open.add(opened)
        return opened

    def keep(
        self,
        opened: OpenTurn,
        asked: Sequence[Message],
        read: Callable[[], Answer],
        stop: Callable[[], None],
    ) -> None:
        """The question is being answered: keep it, and the answer as it grows. `read` tells the
        answer so far; `stop` ends it where the conversation is gone. Does not wait."""
        turn, now = opened.turn, self._store.clock()
        chain: list[StoredMessage] = []
        for each in asked:
            parent_id = chain[-1].id if chain else turn.parent_id
            chain.append(stored(each, parent_id, now, turn.id))
        opened.read, opened.stop = read, stop
        begun = replace(
            stored({"role": "assistant", "content": ""}, None, now, turn.id),
            id=opened.answer_id,
            parent_id=chain[-1].id if chain else turn.parent_id,
            status="in_progress",
        )

        def work(connection: Connection) -> int | None:
            return self._keep(connection, opened, [*chain, begun])

        self._do(opened, self._kept(opened, work))
        self._save()

    async def _kept(self, opened: OpenTurn, work: Callable[[Connection], int | None]) -> None:
        opened.number = await self._store.database.write(work)
        if opened.number is None and opened.turn.conversation_id is not None:
            opened.stop()  # it was deleted

    def _keep(
        self,
        connection: Connection,
        opened: OpenTurn,
        added: Sequence[StoredMessage],
    ) -> int | None:
        """The conversation's number; None where it was deleted meanwhile."""
        turn, number, now = opened.turn, opened.turn.number, self._store.clock()
        if opened.is_resumed:
            number = turn_rows.resume(connection, opened, now)
            if opened.is_over:
                # What is not there, or not as it was said, its owner has deleted.
                is_cut = number is not None and turn_rows.is_cut(
                    connection, number, opened.answer_id
                )
                return number if is_cut else None
            if number is not None and turn_rows.reopened(connection, number, opened.answer_id):
                return number
        if number is None:
            hidden = {"tenant": turn.tenant, "id": new_conversation_id(), "is_hidden": 1}
            moments = {"created_at": now, "updated_at": now}
            number = rows.add_conversation(connection, hidden | moments)
        elif not turn_rows.moved(connection, turn, number, added[-1].id, now):
            return None
        rows.add_messages(connection, number, added)
        if opened.response_id is not None:
            named = {"tenant": turn.tenant, "id": opened.response_id, "conversation": number}
            row = named | {"message_id": added[-1].id, "shown": opened.shown}
            connection.execute(insert(responses), row)
        return number

    def end(self, opened: OpenTurn) -> None:
        """The answer is whole, or broke off: keep what it says. Does not wait."""
        if not opened.is_ending:
            opened.is_ending = True
            self._do(opened, self._end(opened))

    async def _end(self, opened: OpenTurn) -> None:
        try:
            if (answer := opened.answer()) is None:
                _log.warning("an answer cannot be read, and is kept as far as it was saved")
            await asyncio.gather(*opened.jobs - {asyncio.current_task()}, return_exceptions=True)
            if opened.number is not None:
                await self._store.database.write(lambda c: self._finish(c, opened, answer))
        finally:
            self._leave(opened)

    def _finish(self, connection: Connection, opened: OpenTurn, answer: Answer | None) -> None:
        """Where there is no answer to be read, what was saved of it is all of it."""
        turn = opened.turn
        if answer is None:
            connection.execute(
                turn_rows.BREAK_OFF, {"of": opened.number, "named": opened.answer_id}
            )
        else:
            connection.execute(turn_rows.SAVE, turn_rows.saved(opened, answer))
            if opened.response_id is not None and opened.shown is not None:
                show(connection, turn.tenant, opened.response_id, {**opened.shown, **answer.shown})
        freed = {"of": opened.number, "whose": turn.id, "now": self._store.clock()}
        connection.execute(turn_rows.FREE, freed)

    def resumed(self, mark: Mapping[str, Any], *, is_over: bool = False) -> OpenTurn:
        """A turn that another process began, as it was marked there. Whoever gets it must `keep`
        it. `is_over`: it had ended there, and stands in nobody's way."""
        turn = Turn(
            mark["id"],
            mark["tenant"],
            None if is_over else mark["conversation_id"],
            mark["number"],
            mark["parent_id"],
            history=(),
        )
        opened = self._entered(turn)
        opened.is_resumed, opened.is_over = True, is_over
        opened.answer_id, opened.response_id = mark["answer_id"], mark["response_id"]
        if turn.conversation_id is not None:
            self._by_place.setdefault((turn.tenant, turn.conversation_id), opened)
        return opened

    def leave(self, opened: OpenTurn) -> None:
        """Nothing of the turn is to be kept; only for one that no conversation names."""
        self._leave(opened)

    async def give_up(self, opened: OpenTurn) -> None:
        """The question was refused: nothing of the turn stays. Where the database fails, the
        lease runs out by itself."""
        opened.is_ending = True
        turn = opened.turn
        try:
            if turn.conversation_id is not None:
                await asyncio.shield(
                    self._store.database.write(lambda c: turn_rows.withdraw(c, turn))
                )
        except HeadraceError as error:
            _log.warning("a turn's lease was not given back: %s", error.message)
        finally:
            self._leave(opened)

    async def settled(self, tenant: str, conversation_id: str) -> None:
        """Returns when a turn whose answer has ended is kept: who has read it may look for it."""
        opened = self._by_place.get((tenant, conversation_id))
        if opened is not None and opened.is_ending:
            await asyncio.shield(opened.done)

    async def response_settled(self, tenant: str, response_id: str) -> None:
        """As `settled`; of one that is still being said, when its turn is kept as far as it is."""
        for opened in self._of_response(tenant, response_id):
            if opened.is_ending:
                await asyncio.shield(opened.done)
            elif opened.jobs:
                await asyncio.wait(opened.jobs)

    def stop_response(self, tenant: str, response_id: str) -> None:
        """It is not wanted any more, in case it is still being said here."""
        for opened in self._of_response(tenant, response_id):
            opened.stop()

    def _of_response(self, tenant: str, response_id: str) -> list[OpenTurn]:
        wanted = tenant, response_id
        return [each for each in self._open if (each.turn.tenant, each.response_id) == wanted]

    async def drained(self) -> None:
        """Returns when all turns that have ended are kept."""
        while ending := [each.done for each in self._open if each.is_ending]:
            await asyncio.wait(ending)

    def _leave(self, opened: OpenTurn) -> None:
        self._open.discard(opened)
        if not self._open and self._saving is not None:
            self._saving.cancel()
            self._saving = None
        turn = opened.turn
        if turn.conversation_id is not None:
            key = turn.tenant, turn.conversation_id
            if self._by_place.get(key) is opened:
                del self._by_place[key]
        if not opened.done.done():
            opened.done.set_result(None)

    def _do(self, opened: OpenTurn, work: Any) -> None:
        """Beside the token path; the database failing ends no answer."""
        task = asyncio.ensure_future(work)
        opened.jobs.add(task)
        task.add_done_callback(lambda task: self._done(opened, task))

    def _done(self, opened: OpenTurn, task: asyncio.Task[None]) -> None:
        opened.jobs.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a turn could not be kept: %s", error)

    def _save(self) -> None:
        if self._saving is None:
            self._saving = asyncio.create_task(self._save_all())

    async def _save_all(self) -> None:
        """While there are turns: what each has said since, in one transaction."""
        while True:
            await asyncio.sleep(SAVE_S)
            await self._save_grown()

    async def _save_grown(self) -> None:
        now = self._store.clock()
        grown: list[dict[str, Any]] = []
        renewed: list[dict[str, Any]] = []
        for opened in self._open:
            if opened.is_ending or opened.number is None:
                continue
            answer = opened.answer()
            if answer is not None and len(answer.token_ids) > opened.num_saved:
                opened.num_saved = len(answer.token_ids)
                grown.append(turn_rows.saved(opened, answer))
            if opened.turn.conversation_id is not None and now - opened.renewed_at > _RENEW_S:
                opened.renewed_at = now
                renewed.append(
                    {"whose": opened.turn.id, "of": opened.number, "until": now + LEASE_S}
                )

        def work(connection: Connection) -> None:
            if grown:
                connection.execute(turn_rows.GROW, grown)
            if renewed:
                connection.execute(turn_rows.RENEW, renewed)

        if grown or renewed:
            try:
                await self._store.database.write(work)
            except HeadraceError as error:
                _log.error("answers were not saved: %s", error.message)

    def _deleted(self, tenant: str, conversation_id: str) -> None:
        if (opened := self._by_place.get((tenant, conversation_id))) is not None:
            opened.stop()
