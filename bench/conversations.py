"""Two thousand conversations at the same time: none of their messages lost or doubled, and what the
store takes of a turn.

    python bench/conversations.py [--quick] [--url URL] [--think SECONDS]

The whole server in this process, with a fake engine that says 200 tokens a second. Each
conversation asks its next question a random while after its last answer. Afterwards every message
is counted in the database. A turn's time in the store is that of its three jobs: let in with its
history, kept when it begins, kept when it ends. Only the first is on a client's way.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from headrace.bench.figures import percentile
from headrace.conversations.open_turn import OpenTurn
from headrace.conversations.turns import Turns
from headrace.model.answer import AnswerStyle
from headrace.server.app import create_app
from headrace.server.keys import KeyStore
from headrace.server.serving import Serving
from headrace.settings import ServerSettings
from headrace.testing import scripted_engine
from headrace.testing.asgi import Call
from headrace.wire.ask import Place

ANSWER = "A short answer, of a dozen words or so, as chats have them."
BAR_MS = 10.0
"""Of a turn, in the store, at the 95th percentile."""


class Timed(Turns):
    """Notes how long each turn was in the store."""

    def __init__(self, serving: Serving) -> None:
        super().__init__(serving.conversations.store)
        self.begin_s: list[float] = []
        self.turn_s: list[float] = []
        self._so_far_s: dict[OpenTurn, float] = {}

    async def begin(
        self, tenant: str, place: Place, *, waits: bool = False, num_asked: int = 1
    ) -> OpenTurn:
        began_at = time.perf_counter()
        opened = await super().begin(tenant, place, waits=waits, num_asked=num_asked)
        self.begin_s.append(time.perf_counter() - began_at)
        self._so_far_s[opened] = self.begin_s[-1]
        return opened

    async def _kept(self, opened: OpenTurn, work: Callable[..., int | None]) -> None:
        began_at = time.perf_counter()
        await super()._kept(opened, work)
        self._so_far_s[opened] += time.perf_counter() - began_at

    async def _end(self, opened: OpenTurn) -> None:
        began_at = time.perf_counter()
        await super()._end(opened)
        # Nothing of a turn is held here: a heap that grows is one that is looked through for long.
        self.turn_s.append(self._so_far_s.pop(opened) + time.perf_counter() - began_at)


def served(url: str) -> Serving:
    """A server with a fake engine and a database of its own."""
    settings = ServerSettings(
        engine="fake",
        database=url,
        max_running=256,
        max_pending=100_000,
        max_queue_s=600.0,
        queue_timeout_s=None,
    )
    serving = Serving(settings, keys=KeyStore(Path(tempfile.mkdtemp()) / "none.json"))
    serving.registry.load(
        settings,
        open_engine=lambda named, config: scripted_engine(
            ANSWER, tokens_per_s=200.0, config=config
        ),
        style_of=lambda engine: AnswerStyle.for_model(engine.template, engine.tokenizer),
    )
    serving.open_conversations()
    return serving


async def converse(app: object, number: int, num_turns: int, think_s: float) -> int:
    """One conversation; how many of its turns were answered whole."""
    num_whole = 0
    chance = random.Random(number)
    for turn in range(num_turns):
        await asyncio.sleep(chance.uniform(0, 2 * think_s))
        asked = {"prompt": f"question {turn} of {number}", "conversation_id": f"{number}"}
        raw = json.dumps(asked).encode()
        call = Call(app, "POST", "/api/chat", raw, [("host", "127.0.0.1")])  # type: ignore[arg-type]
        await call.ended()
        num_whole += call.status == 200 and call.body.endswith(b"data: [DONE]\n\n")
    return num_whole


def wrong(serving: Serving, num_conversations: int, num_turns: int) -> int:
    """Conversations whose messages are not each there, once and in order."""
    expected = [text for turn in range(num_turns) for text in (f"question {turn} of {{0}}", ANSWER)]
    num_wrong = 0

    async def count() -> None:
        nonlocal num_wrong
        for number in range(num_conversations):
            _, found = await serving.conversations.store.tree("local", f"{number}")
            texts = [each.message["content"] for each in found]
            parents = [None, *(each.id for each in found[:-1])]
            is_chain = [each.parent_id for each in found] == parents
            is_whole = all(each.status == "completed" for each in found)
            told = [text.format(number) for text in expected]
            num_wrong += not (texts == told and is_chain and is_whole)

    asyncio.run(count())
    return num_wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter ones")
    parser.add_argument("--url", help="a database; by default SQLite in a folder of its own")
    parser.add_argument("--think", type=float, help="seconds between two turns, on average")
    given = parser.parse_args()
    num_conversations, num_turns, think_s = (100, 5, 1.0) if given.quick else (2000, 20, 30.0)
    think_s = think_s if given.think is None else given.think
    with tempfile.TemporaryDirectory() as folder:
        serving = served(given.url or f"sqlite:///{folder}/conversations.db")
        try:
            is_good = measure(serving, num_conversations, num_turns, think_s)
        finally:
            serving.registry.close()
            serving.conversations.close()
    sys.exit(0 if is_good else 1)


def measure(serving: Serving, num_conversations: int, num_turns: int, think_s: float) -> bool:
    turns = serving.conversations._turns = Timed(serving)
    app = create_app(serving)

    async def play() -> int:
        asked = [converse(app, n, num_turns, think_s) for n in range(num_conversations)]
        num_whole = sum(await asyncio.gather(*asked))
        await turns.drained()
        return num_whole

    gc.collect()
    gc.freeze()  # as the server does when it is ready
    began_at = time.perf_counter()
    num_whole = asyncio.run(play())
    took_s = time.perf_counter() - began_at
    num_asked = num_conversations * num_turns
    print(
        f"{num_conversations} conversations of {num_turns} turns in {took_s:.1f} s, "
        f"{num_asked / took_s:.0f} turns a second"
    )
    num_wrong = wrong(serving, num_conversations, num_turns)
    show("turns that were not answered whole", num_asked - num_whole, "", 0)
    show("conversations with a message lost or doubled", num_wrong, "", 0)
    begin_ms = [1000 * each for each in turns.begin_s]
    turn_ms = [1000 * each for each in turns.turn_s]
    print(
        f"let in, on the client's way: p50 {percentile(begin_ms, 50):.2f} ms, "
        f"p95 {percentile(begin_ms, 95):.2f} ms"
    )
    print(f"in the store, a turn: p50 {percentile(turn_ms, 50):.2f} ms")
    p95 = percentile(turn_ms, 95)
    show("in the store, a turn, p95", p95, "ms", BAR_MS)
    return num_whole == num_asked and num_wrong == 0 and p95 <= BAR_MS


def show(name: str, value: float, unit: str, bar: float) -> None:
    verdict = "holds" if value <= bar else "BROKEN"
    print(f"{name:<46} {value:8.2f} {unit:<3} bar {bar:g}  {verdict}")


if __name__ == "__main__":
    main()
