"""A server with a database of its own, whose threads answer when they can."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from headrace.testing import ManualEngine
from headrace.testing.asgi import Call
from support.asgi import Door
from support.asgi import run as run_alone


def kept_door(tmp_path: Path, engine: ManualEngine | None = None, **settings: Any) -> Door:
    return Door(engine, database_url=f"sqlite:///{tmp_path}/c.db", **settings)


def run(door: Door, play: Any) -> None:
    """What is left to the database's threads is waited for."""

    async def whole() -> None:
        await play()
        await drained(door)

    run_alone(whole)


async def drained(door: Door) -> None:
    while door.serving.conversations.num_open:
        await asyncio.sleep(0.005)


async def stepped(door: Door, call: Call) -> Call:
    """Step until it is answered, however long the database takes."""
    while not call.has_ended:
        await asyncio.sleep(0.002)
        if door.engine.stats().num_pending_requests:
            door._step()
    return await call.ended()
