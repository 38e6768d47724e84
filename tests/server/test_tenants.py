"""Whatever tenants do in whatever order, nobody reads another's streams."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import settings as checks
from hypothesis import strategies as st

from headrace.server.keys import KeyStore
from headrace.testing.asgi import Call
from support.asgi import CHAT, run
from support.bodies import chat_body
from support.durable import House

TENANTS = ("ada", "bob", "eve")
KEYS = ("one", "two")
WAYS = (
    *(("GET", ""), ("GET", "/events"), ("GET", "?after=3"), ("POST", "/token")),
    *(("DELETE", ""), ("POST", "/cancel")),
)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(TENANTS), st.sampled_from((None, *KEYS))),
        st.tuples(st.just("read"), st.sampled_from(TENANTS), st.integers(0, 9)),
        st.tuples(st.just("go on"), st.sampled_from(TENANTS), st.integers(0, 9)),
        st.tuples(st.just("token"), st.integers(0, 9), st.integers(0, 9)),
        st.tuples(st.just("turn"), st.integers(1, 12)),
        st.tuples(st.just("die")),
    ),
    min_size=3,
    max_size=14,
)


class Town:
    """Servers that die, tenants who ask, and who owns which stream."""

    def __init__(self, folder: Path) -> None:
        self.keys = KeyStore(folder / "keys.json")
        self.secrets = {name: self.keys.create(name)[1] for name in TENANTS}
        self.houses = [House(folder / "streams", keys=self.keys)]
        self.owners: dict[str, str] = {}
        self.calls: list[Call] = []

    @property
    def house(self) -> House:
        return self.houses[-1]

    def stream(self, number: int) -> str | None:
        """One of those there were."""
        names = list(self.owners)
        return names[number % len(names)] if names else None

    def headers(self, tenant: str, key: str | None = None) -> dict[str, str]:
        given = {"authorization": f"Bearer {self.secrets[tenant]}"}
        return given if key is None else {**given, "idempotency-key": key}

    async def ask(self, tenant: str, key: str | None) -> None:
        body = {**chat_body(model="fake", temperature=0), **RESUMABLE}
        call = self.house.post(CHAT, body, self.headers(tenant, key))
        await call.until(lambda: call.status is not None)
        name = call.header("x-headrace-stream")
        assert call.status == 200 and name is not None
        assert self.owners.setdefault(name, tenant) == tenant
        self.calls.append(call)

    async def read(self, tenant: str, number: int) -> None:
        name = self.stream(number)
        if name is None:
            return
        is_own = self.owners[name] == tenant
        for method, rest in WAYS if not is_own else WAYS[:4]:
            call = self.house.call(
                method, f"/v1/streams/{name}{rest}", headers=self.headers(tenant)
            )
            await self.house.answer(call)
            assert call.status in ((200, 204) if is_own else (404,)), (rest, call.status)

    async def go_on(self, tenant: str, number: int) -> None:
        name = self.stream(number)
        body = chat_body(model="fake", continue_from={"stream_id": name or "none"})
        call = await self.house.answer(self.house.post(CHAT, body, self.headers(tenant)))
        is_own = name is not None and self.owners[name] == tenant
        assert call.status in ((200, 409) if is_own else (404,))

    async def use_token(self, number: int, other: int) -> None:
        """A token reads its own stream, and no other one."""
        name, another = self.stream(number), self.stream(other)
        if name is None or another is None:
            return
        made = self.house.call(
            "POST", f"/v1/streams/{name}/token", headers=self.headers(self.owners[name])
        )
        token = json.loads((await made.ended()).body)["token"]
        call = self.house.call("GET", f"/v1/streams/{another}?token={token}")
        await self.house.answer(call)
        assert (call.status in (200, 204)) == (name == another), call.status

    async def die(self) -> None:
        """Another server goes on with what is on disk."""
        self.houses.append(self.house.after_death(keys=self.keys))
        self.house.revive()

    async def end(self) -> None:
        for house in self.houses:
            house.leave()
        for call in self.calls:
            call.leave()
            await call.ended()


RESUMABLE: dict[str, Any] = {"stream": True, "stream_options": {"resumable": True}}


@given(actions=ACTIONS)
@checks(max_examples=25, deadline=None)
def test_nobody_reads_anothers_streams(actions: list[tuple[Any, ...]]) -> None:
    async def play() -> None:
        with tempfile.TemporaryDirectory() as folder:
            town = Town(Path(folder))
            does = {
                "ask": town.ask,
                "read": town.read,
                "go on": town.go_on,
                "token": town.use_token,
                "turn": lambda num_steps: town.house.turn(num_steps),
                "die": town.die,
            }
            for what, *how in actions:
                await does[what](*how)
            await town.end()
            await asyncio.sleep(0)

    run(play)
