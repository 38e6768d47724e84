"""The store against a model of it: trees, branches, tenants; on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from headrace.conversations import tree
from headrace.conversations.database import Database
from headrace.conversations.memory import rows as remembered
from headrace.conversations.memory.tables import chunks
from headrace.conversations.memory.values import Scope
from headrace.conversations.store import ConversationStore, StoreConfig
from headrace.conversations.turns import Turns
from headrace.conversations.values import Answer, StoredMessage
from headrace.errors import (
    ConversationNotFound,
    ConversationTooLarge,
    HeadraceError,
    InvalidRequest,
)
from headrace.wire.ask import ROOT, Place

TENANTS = ("one", "two")
NAMES = ("a", "b", "c")
QUICK = settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database.open(database_url)
    yield database
    database.close()


@dataclass
class Model:
    """What the store should hold: texts by tenant and name, as trees."""

    trees: dict[tuple[str, str], list[StoredMessage]] = field(default_factory=dict)
    heads: dict[tuple[str, str], str | None] = field(default_factory=dict)

    def branch(self, key: tuple[str, str]) -> list[tuple[str, str]]:
        told = tree.branch(self.trees[key], self.heads[key])
        return [(each.id, str(each.message["content"])) for each in told]


Step = tuple[str, str, str, int]
"""What is done, by whom, to which conversation, and a number that chooses among its messages."""
DOINGS = ("create", "append", "turn", "edit", "rollback", "fork", "remove", "delete", "search")
steps = st.lists(
    st.tuples(
        st.sampled_from(DOINGS),
        st.sampled_from(TENANTS),
        st.sampled_from(NAMES),
        st.integers(0, 1000),
    ),
    max_size=25,
)


class Player:
    """Does the same to the store and to the model, and holds them against each other."""

    def __init__(self, store: ConversationStore) -> None:
        self.store = store
        self.turns = Turns(store)
        self.model = Model()
        self.num_said = 0
        self.gone: list[tuple[str, str]] = []
        store.on_delete.append(lambda tenant, named: self.gone.append((tenant, named)))

    async def play(self, todo: list[Step]) -> None:
        for doing, tenant, name, number in todo:
            key = (tenant, name)
            does: Callable[[tuple[str, str], int], Awaitable[None]] = getattr(self, "_" + doing)
            if doing == "create" or key in self.model.trees:
                await does(key, number)
            else:
                with pytest.raises(ConversationNotFound):
                    await self.store.branch(tenant, name)
        await self.check()

    async def check(self) -> None:
        for tenant in TENANTS:
            listed = await self.store.listed(tenant, limit=100)
            own = {name for of, name in self.model.trees if of == tenant}
            assert {each.id for each in listed} == own
            for name in own:
                told = await self.store.branch(tenant, name)
                assert [(m.id, m.message["content"]) for m in told] == self.model.branch(
                    (tenant, name)
                )
                _, whole = await self.store.tree(tenant, name)
                expected = self.model.trees[tenant, name]
                assert {(m.id, m.parent_id) for m in whole} == {
                    (m.id, m.parent_id) for m in expected
                }

    def _said(self, tenant: str) -> dict[str, Any]:
        self.num_said += 1
        return {"role": "user", "content": f"{tenant} says {self.num_said}"}

    def _chosen(self, key: tuple[str, str], number: int) -> StoredMessage | None:
        messages = self.model.trees[key]
        return messages[number % len(messages)] if messages else None

    def _grow(self, key: tuple[str, str], added: list[StoredMessage]) -> None:
        self.model.trees[key] += [replace(each) for each in added]
        if added:
            self.model.heads[key] = added[-1].id

    async def _create(self, key: tuple[str, str], number: int) -> None:
        tenant, name = key
        said = [self._said(tenant) for _ in range(number % 3)]
        if key in self.model.trees:
            with pytest.raises(InvalidRequest):
                await self.store.create(tenant, said, conversation_id=name)
            return
        await self.store.create(tenant, said, conversation_id=name)
        _, messages = await self.store.tree(tenant, name)
        self.model.trees[key], self.model.heads[key] = [], None
        self._grow(key, messages)
        assert [m.message for m in messages] == said

    async def _append(self, key: tuple[str, str], number: int) -> None:
        said = [self._said(key[0]) for _ in range(number % 3)]
        added = await self.store.append(*key, said)
        self._grow(key, added)

    async def _turn(self, key: tuple[str, str], number: int, after: str | None = None) -> None:
        tenant, name = key
        place = Place(conversation_id=name, after=after)
        opened = await self.turns.begin(tenant, place)
        if after is None:
            told = [(m.id, str(m.message["content"])) for m in opened.turn.history]
            assert told == self.model.branch(key)
        said = self._said(tenant)
        reply = {"role": "assistant", "content": f"{tenant} hears {self.num_said}"}
        answer = Answer(reply, (1, 2, number), "completed")
        self.turns.keep(opened, [said], lambda: answer, lambda: None)
        self.turns.end(opened)
        await self.turns.drained()
        told = await self.store.branch(tenant, name)
        assert [m.message for m in told[-2:]] == [said, reply]
        assert told[-1].token_ids == (1, 2, number) and told[-1].num_tokens == 3
        self._grow(key, told[-2:])

    async def _edit(self, key: tuple[str, str], number: int) -> None:
        chosen = self._chosen(key, number)
        await self._turn(key, number, after=chosen.id if chosen else ROOT)

    async def _rollback(self, key: tuple[str, str], number: int) -> None:
        chosen = self._chosen(key, number)
        to = chosen.id if chosen else ROOT
        await self.store.rollback(*key, to)
        self.model.heads[key] = chosen.id if chosen else None
        for other in self.model.trees:  # a message of another conversation is none of this one
            strange = self._chosen(other, number)
            ids = {each.id for each in self.model.trees[key]}
            if strange is not None and strange.id not in ids:
                with pytest.raises(ConversationNotFound):
                    await self.store.rollback(*key, strange.id)

    async def _fork(self, key: tuple[str, str], number: int) -> None:
        tenant, _ = key
        new = (tenant, NAMES[number % len(NAMES)])
        chosen = self._chosen(key, number)
        at = chosen.id if chosen else None
        if new in self.model.trees:
            with pytest.raises(InvalidRequest):
                await self.store.fork(*key, at=at, new_id=new[1])
            return
        await self.store.fork(*key, at=at, new_id=new[1])
        messages = self.model.trees[key]
        head = at or self.model.heads[key]
        self.model.trees[new] = tree.branch(messages, head)
        self.model.heads[new] = head

    async def _remove(self, key: tuple[str, str], number: int) -> None:
        if (chosen := self._chosen(key, number)) is None:
            return
        await self.store.remove(*key, chosen.id)
        self.model.trees[key] = tree.without(self.model.trees[key], chosen.id)
        if self.model.heads[key] == chosen.id:
            self.model.heads[key] = chosen.parent_id

    async def _delete(self, key: tuple[str, str], number: int) -> None:
        await self.store.delete(*key)
        del self.model.trees[key], self.model.heads[key]
        assert self.gone.pop() == key

    async def _search(self, key: tuple[str, str], number: int) -> None:
        tenant = key[0]
        hits = await self.store.search(tenant, "SAYS", limit=1000)
        found = sorted((hit.conversation.id, hit.message.id) for hit in hits)
        assert found == sorted(
            (name, each.id)
            for (of, name), messages in self.model.trees.items()
            for each in messages
            if of == tenant and "says" in str(each.message["content"])
        )
        other = next(each for each in TENANTS if each != tenant)
        assert not await self.store.search(tenant, other)


@QUICK
@given(steps)
def test_any_order_of_doings_is_as_the_model_has_it(database: Database, todo: list[Step]) -> None:
    store = ConversationStore(database)

    async def play() -> None:
        player = Player(store)
        await player.play(todo)
        for key in list(player.model.trees):
            await store.delete(*key)
        with database.engine.connect() as connection:
            for table in ("conversations", "messages", "responses"):
                assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() == 0

    asyncio.run(play())


@QUICK
@given(st.lists(st.lists(st.sampled_from(DOINGS), max_size=6), min_size=4, max_size=4))
def test_tenants_at_the_same_time_never_meet(database: Database, plans: list[list[str]]) -> None:
    """Four at once, two of each tenant, under the same names: nobody reads what another said."""
    store = ConversationStore(database)

    async def one(number: int, todo: list[str]) -> None:
        tenant, name = TENANTS[number % 2], NAMES[number // 2]
        player = Player(store)
        for doing in todo:
            key = (tenant, name)
            if doing in ("fork", "search"):
                hits = await store.search(tenant, "says", limit=1000)
                assert all(str(h.message.message["content"]).startswith(tenant) for h in hits)
            elif doing == "create" or key in player.model.trees:
                await getattr(player, "_" + doing)(key, number)
        if (tenant, name) in player.model.trees:
            told = await store.branch(tenant, name)
            assert [(m.id, m.message["content"]) for m in told] == player.model.branch(
                (tenant, name)
            )
            assert all(str(m.message["content"]).startswith(tenant) for m in told)
            await store.delete(tenant, name)

    async def play() -> None:
        await asyncio.gather(*[one(number, todo) for number, todo in enumerate(plans)])
        for tenant in TENANTS:
            assert await store.listed(tenant) == []

    asyncio.run(play())


def test_pages_of_a_list(database: Database) -> None:
    store = ConversationStore(database)

    async def play() -> None:
        names = [(await store.create("t", conversation_id=f"{n}")).id for n in range(5)]
        await store.create("u", conversation_id="0")
        first = await store.listed("t", limit=2)
        rest = await store.listed("t", limit=9, after=first[-1].id)
        assert [c.id for c in (*first, *rest)] == names[::-1]
        eldest = await store.listed("t", limit=2, newest_first=False)
        after = await store.listed("t", limit=9, after=eldest[-1].id, newest_first=False)
        assert [c.id for c in (*eldest, *after)] == names

    asyncio.run(play())


@pytest.mark.parametrize(
    "words", ["", "  ", '"', "*", "a OR", "NEAR(", "text:", "\0", "(", "wörld'"]
)
def test_words_are_words_whatever_they_are(database: Database, words: str) -> None:
    store = ConversationStore(database)

    async def play() -> None:
        await store.create("t", [{"role": "user", "content": "hello wörld\0 there"}])
        await store.search("t", words)
        assert len(await store.search("t", "THERE hello")) == 1

    asyncio.run(play())


def test_what_is_too_old_goes(database: Database) -> None:
    now = 1000.0
    store = ConversationStore(database, StoreConfig(ttl_s=60.0), clock=lambda: now)
    gone: list[tuple[str, str]] = []
    store.on_delete.append(lambda tenant, named: gone.append((tenant, named)))

    async def play() -> None:
        nonlocal now
        await store.create("t", conversation_id="old")
        now += 40
        await store.create("t", conversation_id="new")
        now += 30
        assert await store.expire() == 1
        assert gone == [("t", "old")]
        assert [c.id for c in await store.listed("t")] == ["new"]

    asyncio.run(play())


def test_a_conversation_has_its_bounds(database: Database) -> None:
    store = ConversationStore(database, StoreConfig(max_messages=3))
    said = {"role": "user", "content": "x"}

    async def play() -> None:
        made = await store.create("t", [said, said])
        await store.append("t", made.id, [said])
        with pytest.raises(ConversationTooLarge):
            await store.append("t", made.id, [said])
        with pytest.raises(ConversationTooLarge):
            await Turns(store).begin("t", Place(conversation_id=made.id))
        assert len(await store.branch("t", made.id)) == 3

    asyncio.run(play())


def test_the_memory_forgets_what_is_taken_out_of_a_message(database: Database) -> None:
    store = ConversationStore(database)
    answer = {"role": "assistant", "content": "a secret", "reasoning": "none"}
    left = {"role": "assistant", "reasoning": "none"}

    async def play() -> None:
        made = await store.create("t", [{"role": "user", "content": "Hi"}, answer])
        _, told = await store.branch("t", made.id)
        scope = Scope("t", made.id)
        waiting = await database.read(lambda c: remembered.untold_messages(c, scope, 9))
        for conversation, number, text in waiting:
            told_of = conversation, number, [(0, text)]
            await database.write(lambda c, told_of=told_of: remembered.add_message(c, *told_of))
        await store.remove("t", made.id, told.id, lambda gone: left)
        kept = await database.read(lambda c: [*c.execute(select(chunks.c.text)).scalars()])
        assert kept == ["Hi"]

    asyncio.run(play())


def test_an_import_that_is_no_tree(database: Database) -> None:
    store = ConversationStore(database)

    def said(named: str, parent: str | None) -> StoredMessage:
        return StoredMessage(named, parent, "user", {"role": "user", "content": named})

    async def refused(told: list[StoredMessage], head: str | None, param: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            await store.restore("t", told, head)
        assert caught.value.param == param

    async def play() -> None:
        await refused([said("a", "b"), said("b", "a")], "a", "messages[0].parent_id")
        await refused([said("a", None), said("a", None)], "a", "messages[1].id")
        await refused([said("a", None)], "z", "head_id")
        assert await store.listed("t") == []

    asyncio.run(play())


def test_deleting_hears_of_every_error(database: Database) -> None:
    """What hangs on a conversation cannot keep it."""
    store = ConversationStore(database)
    heard: list[str] = []

    def broken(tenant: str, named: str) -> None:
        raise HeadraceError("no")

    store.on_delete += [broken, lambda tenant, named: heard.append(named)]

    async def play() -> None:
        await store.create("t", conversation_id="c")
        await store.delete("t", "c")
        assert heard == ["c"]

    asyncio.run(play())
