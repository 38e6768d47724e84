"""Conversations, kept: made, read, changed, forked, searched, deleted; each by its tenant alone.

In: a tenant and what it asks. Out: values. Thread: an event loop; the database has its own.
Next: `rows.py`; `turns.py` for what is asked of a model.

Another tenant's conversation is one that is not there. A conversation whose turn is going on is
read and deleted, and not changed otherwise.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from sqlalchemy import Connection, select, tuple_

from headrace.conversations import rows, tree
from headrace.conversations.database import Database
from headrace.conversations.memory.rows import copy_documents
from headrace.conversations.strategies.values import Message
from headrace.conversations.tables import conversations
from headrace.conversations.values import (
    Conversation,
    Data,
    Hit,
    StoreConfig,
    StoredMessage,
)
from headrace.errors import ConversationBusy, ConversationTooLarge, InvalidRequest
from headrace.wire.ask import ROOT
from headrace.wire.ids import conversation_id as new_conversation_id
from headrace.wire.ids import message_id

Deleted = Callable[[str, str], None]
"""A tenant, and the id of the conversation that is no more."""
_KEPT_RESPONSE_S = 30 * 86_400.0
"""How long responses are kept that belong to no conversation: as long as OpenAI does."""
_NUM_EXPIRED = 200
"""Conversations that go in one transaction."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class ConversationStore:
    """All conversations of one database."""

    def __init__(
        self,
        database: Database,
        config: StoreConfig | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.database = database
        self.config = config or StoreConfig()
        self.clock = clock
        self.on_delete: list[Deleted] = []
        """Hear of every conversation that is deleted or expires, on the loop that asked."""

    async def create(
        self,
        tenant: str,
        added: Sequence[Message] = (),
        *,
        conversation_id: str | None = None,
        metadata: Data | None = None,
        title: str | None = None,
        context: Data | None = None,
    ) -> Conversation:
        """A new one. Raises `InvalidRequest` where the tenant has one of that id."""
        named = conversation_id or new_conversation_id()

        def work(connection: Connection) -> Conversation:
            now = self.clock()
            if conversation_id is not None:
                _check_free(connection, tenant, conversation_id)
            chain = _chain(added, None, now)
            number = rows.add_conversation(
                connection,
                {
                    "tenant": tenant,
                    "id": named,
                    "metadata": metadata or {},
                    "title": title,
                    "context": context,
                    "head_id": chain[-1].id if chain else None,
                    "created_at": now,
                    "updated_at": now,
                },
            )
            rows.add_messages(connection, number, chain)
            return rows.find(connection, tenant, named)

        return await self.database.write(work)

    async def get(self, tenant: str, conversation_id: str) -> Conversation:
        """Raises `ConversationNotFound`, as everything here that names one."""
        return await self.database.read(lambda c: rows.find(c, tenant, conversation_id))

    async def update(self, tenant: str, conversation_id: str, **changed: Any) -> Conversation:
        """Set `metadata`, `title` or `context`."""

        def work(connection: Connection) -> Conversation:
            found = rows.find(connection, tenant, conversation_id)
            if changed:
                rows.change(connection, found.number, **changed, updated_at=self.clock())
            return rows.find(connection, tenant, conversation_id)

        return await self.database.write(work)

    async def delete(self, tenant: str, conversation_id: str) -> None:
        """The conversation, its messages and all that hangs on them."""

        def work(connection: Connection) -> None:
            found = rows.find(connection, tenant, conversation_id)
            rows.delete_conversation(connection, found.number)

        await self.database.write(work)
        self._tell_deleted([(tenant, conversation_id)])

    async def listed(
        self, tenant: str, *, after: str | None = None, limit: int = 20, newest_first: bool = True
    ) -> list[Conversation]:
        """At most `limit` of the tenant's, by when they were made; those that come after one."""
        key = tuple_(conversations.c.created_at, conversations.c.number)
        parts = (conversations.c.created_at, conversations.c.number)

        def work(connection: Connection) -> list[Conversation]:
            asked = (
                select(*rows.CONVERSATION)
                .where(conversations.c.tenant == tenant, conversations.c.is_hidden == 0)
                .order_by(*(part.desc() if newest_first else part.asc() for part in parts))
                .limit(limit)
            )
            if after is not None:
                last = rows.find(connection, tenant, after)
                place = tuple_(last.created_at, last.number)
                asked = asked.where(key < place if newest_first else key > place)
            return [Conversation(*row) for row in connection.execute(asked)]

        return await self.database.read(work)

    async def search(self, tenant: str, words: str, *, limit: int = 20) -> list[Hit]:
        """Messages in which all the words stand, best first."""

        def work(connection: Connection) -> list[Hit]:
            split = 1 + len(rows.CONVERSATION)
            return [
                Hit(Conversation(*row[1:split]), StoredMessage(*row[split:]))
                for row in rows.search(connection, tenant, words, limit)
            ]

        return await self.database.read(work)

    async def branch(
        self, tenant: str, conversation_id: str, head_id: str | None = None
    ) -> list[StoredMessage]:
        """The messages from the beginning to the head, or to another one."""

        def work(connection: Connection) -> list[StoredMessage]:
            found = rows.find(connection, tenant, conversation_id)
            if head_id is not None:
                rows.message(connection, found.number, head_id)
            return rows.branch(connection, found.number, head_id or found.head_id)

        return await self.database.read(work)

    async def tree(
        self, tenant: str, conversation_id: str
    ) -> tuple[Conversation, list[StoredMessage]]:
        """All of it, eldest first: what an export is made of."""

        def work(connection: Connection) -> tuple[Conversation, list[StoredMessage]]:
            found = rows.find(connection, tenant, conversation_id)
            return found, rows.all_messages(connection, found.number)

        return await self.database.read(work)

    async def message(self, tenant: str, conversation_id: str, named: str) -> StoredMessage:
        """Raises `ConversationNotFound` where there is none."""

        def work(connection: Connection) -> StoredMessage:
            found = rows.find(connection, tenant, conversation_id)
            return rows.message(connection, found.number, named)

        return await self.database.read(work)

    async def append(
        self, tenant: str, conversation_id: str, added: Sequence[Message]
    ) -> list[StoredMessage]:
        """New messages after the head. Raises `ConversationBusy` and `ConversationTooLarge`."""

        def work(connection: Connection, found: Conversation) -> list[StoredMessage]:
            self._check_room(connection, found.number, len(added))
            chain = _chain(added, found.head_id, self.clock())
            rows.add_messages(connection, found.number, chain)
            rows.change(connection, found.number, head_id=chain[-1].id if chain else found.head_id)
            return chain

        return await self._change(tenant, conversation_id, work)

    async def remove(
        self,
        tenant: str,
        conversation_id: str,
        named: str,
        left_of: Callable[[StoredMessage], Message | None] = lambda message: None,
    ) -> Conversation:
        """Take one message out, or all but what `left_of` leaves of it. Raises what that raises."""

        def work(connection: Connection, found: Conversation) -> Conversation:
            gone = rows.message(connection, found.number, named)
            if (left := left_of(gone)) is None:
                rows.remove(connection, found.number, gone)
            else:
                rows.replace_message(connection, found.number, named, left)
            return rows.find(connection, tenant, conversation_id)

        return await self._change(tenant, conversation_id, work)

    async def rollback(self, tenant: str, conversation_id: str, to: str) -> Conversation:
        """Make another message the head; what came after it stays in the tree. `to`: a message's
        id, or "root" for the beginning."""

        def work(connection: Connection, found: Conversation) -> Conversation:
            if to != ROOT:
                rows.message(connection, found.number, to)
            rows.change(connection, found.number, head_id=None if to == ROOT else to)
            return rows.find(connection, tenant, conversation_id)

        return await self._change(tenant, conversation_id, work)

    async def fork(
        self,
        tenant: str,
        conversation_id: str,
        *,
        at: str | None = None,
        new_id: str | None = None,
        metadata: Data | None = None,
    ) -> Conversation:
        """A new conversation with the branch up to a message, by default up to the head, and with
        the documents. Messages keep their ids, and share nothing: what happens to one conversation
        happens to it alone."""

        def work(connection: Connection) -> Conversation:
            found = rows.find(connection, tenant, conversation_id)
            if at is not None:
                rows.message(connection, found.number, at)
            told = rows.branch(connection, found.number, at or found.head_id)
            kept = [message for message in told if message.status != "in_progress"]
            data = found.metadata if metadata is None else metadata
            copy = replace(found, title=found.title, metadata=data)
            made = self._restore(connection, copy, kept, kept[-1].id if kept else None, new_id)
            copy_documents(connection, found.number, made.number)
            return made

        return await self.database.write(work)

    async def restore(
        self,
        tenant: str,
        told: Sequence[StoredMessage],
        head_id: str | None,
        *,
        title: str | None = None,
        metadata: Data | None = None,
        context: Data | None = None,
        new_id: str | None = None,
    ) -> Conversation:
        """A conversation from an export. Messages get ids of their own. Raises `InvalidRequest`
        where they are no tree, and `ConversationTooLarge`."""
        tree.check(told, head_id)
        if len(told) > self.config.max_messages:
            raise self._too_large(len(told))
        fresh = {message.id: message_id() for message in told}
        renamed = [
            replace(
                message,
                id=fresh[message.id],
                parent_id=fresh[message.parent_id] if message.parent_id else None,
                turn_id=None,
            )
            for message in told
        ]
        now = self.clock()
        copy = Conversation(0, tenant, "", title, metadata or {}, context, None, now, now)
        head = fresh[head_id] if head_id is not None else None
        return await self.database.write(lambda c: self._restore(c, copy, renamed, head, new_id))

    def _restore(
        self,
        connection: Connection,
        like: Conversation,
        told: Sequence[StoredMessage],
        head_id: str | None,
        new_id: str | None,
    ) -> Conversation:
        if new_id is not None:
            _check_free(connection, like.tenant, new_id)
        named, now = new_id or new_conversation_id(), self.clock()
        values = {
            "tenant": like.tenant,
            "id": named,
            "title": like.title,
            "metadata": like.metadata,
            "context": like.context,
            "head_id": head_id,
            "created_at": now,
            "updated_at": now,
        }
        rows.add_messages(connection, rows.add_conversation(connection, values), told)
        return rows.find(connection, like.tenant, named)

    async def expire(self) -> int:
        """Delete what nobody has used for as long as the settings say; how many went."""
        num = 0
        while gone := await self.database.write(self._expire):
            self._tell_deleted([(tenant, named) for tenant, named, is_hidden in gone])
            num += len(gone)
        return num

    def _expire(self, connection: Connection) -> list[tuple[str, str, int]]:
        now, ttl_s = self.clock(), self.config.ttl_s
        columns = (conversations.c.tenant, conversations.c.id, conversations.c.is_hidden)
        numbers: dict[int, tuple[str, str, int]] = {}
        for is_hidden, kept_s in (
            (0, ttl_s),
            (1, min(ttl_s or _KEPT_RESPONSE_S, _KEPT_RESPONSE_S)),
        ):
            if kept_s is None:
                continue
            asked = (
                select(conversations.c.number, *columns)
                .where(
                    conversations.c.is_hidden == is_hidden,
                    conversations.c.updated_at < now - kept_s,
                )
                .limit(_NUM_EXPIRED)
            )
            numbers |= {row[0]: (row[1], row[2], row[3]) for row in connection.execute(asked)}
        for number in numbers:
            rows.delete_conversation(connection, number)
        return [*numbers.values()]

    def check_room(self, num_messages: int) -> None:
        """Raise `ConversationTooLarge` where a conversation would have that many."""
        if num_messages > self.config.max_messages:
            raise self._too_large(num_messages)

    def _check_room(self, connection: Connection, number: int, num_more: int) -> None:
        self.check_room(rows.count_messages(connection, number) + num_more)

    def _too_large(self, num_messages: int) -> ConversationTooLarge:
        return ConversationTooLarge(
            f"the conversation would have {num_messages:,} messages; it may have "
            f"{self.config.max_messages:,}; fork it from where it matters, or begin another",
            param="conversation",
        )

    async def _change(
        self, tenant: str, conversation_id: str, work: Callable[[Connection, Conversation], T]
    ) -> T:
        """Change a conversation that nobody is answered in. Raises `ConversationBusy`."""

        def whole(connection: Connection) -> T:
            found = rows.find(connection, tenant, conversation_id, locks=True)
            check_idle(connection, found.number, self.clock())
            result = work(connection, found)
            rows.change(connection, found.number, updated_at=self.clock())
            return result

        return await self.database.write(whole)

    def _tell_deleted(self, gone: Sequence[tuple[str, str]]) -> None:
        for tenant, named in gone:
            for hear_of_it in self.on_delete:
                try:
                    hear_of_it(tenant, named)
                except Exception:
                    _log.exception("what hangs on a conversation was not deleted")


def check_idle(connection: Connection, number: int, now: float) -> None:
    """Raise `ConversationBusy` while a turn goes on."""
    turn_id, until = rows.lease(connection, number)
    if turn_id is not None and until > now:
        raise busy()


def busy() -> ConversationBusy:
    return ConversationBusy(
        "another turn of this conversation is going on; wait for its end, or send "
        '`"queue": true` to be answered after it',
        param="conversation",
    )


def _check_free(connection: Connection, tenant: str, conversation_id: str) -> None:
    taken = select(conversations.c.number).where(
        conversations.c.tenant == tenant, conversations.c.id == conversation_id
    )
    if connection.execute(taken).first() is not None:
        raise InvalidRequest(
            f"`id`: there is a conversation `{conversation_id}` already", param="id"
        )


def _chain(added: Sequence[Message], parent_id: str | None, now: float) -> list[StoredMessage]:
    """Each follows the one before it."""
    chain: list[StoredMessage] = []
    for message in added:
        chain.append(stored(message, chain[-1].id if chain else parent_id, now))
    return chain


def stored(
    message: Mapping[str, Any], parent_id: str | None, now: float, turn_id: str | None = None
) -> StoredMessage:
    """A new message, as it is kept."""
    return StoredMessage(
        id=message_id(),
        parent_id=parent_id,
        role=str(message["role"]),
        message=message,
        created_at=now,
        turn_id=turn_id,
    )
