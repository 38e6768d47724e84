"""`retrieval` and `documents` through the whole server, where nothing is kept."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from headrace.conversations.database import Database
from headrace.errors import DatabaseFailed, ModelError
from headrace.model.embedder import Embedded, Embedder
from headrace.server.memories import Memories
from headrace.testing import END_ID, FakeEmbedder, FakeModel, ManualEngine, saying
from headrace.testing.asgi import Call
from support.asgi import CHAT, Door, run

PARTS = ("kept", "summarised", "retrieved", "turn", "template")
WHEEL = "The water wheel of the mill turns at eleven revolutions a minute."
DOCUMENTS = [
    {"id": "wheel", "title": "wheel.md", "source": {"type": "text", "text": WHEEL}},
    {"source": {"type": "json", "data": {"pond": {"fish": "carp", "depth": 3}}}},
]


async def _none() -> Database:
    raise DatabaseFailed("none")


def door_with(embedder: Embedder | None, **settings: Any) -> Door:
    model = FakeModel(rule=saying([*b"Yes."], END_ID), context_length=4096)
    door = Door(ManualEngine(model), **settings)

    async def get() -> Embedder | None:
        return embedder

    door.serving.memories = Memories(_none, get)
    return door


def body(messages: Sequence[Any], documents: Any = None, **context: Any) -> dict[str, Any]:
    asked = {"model": "fake", "messages": messages, "max_tokens": 8, "context": context}
    return asked | ({} if documents is None else {"documents": documents})


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def answer(door: Door, call: Call) -> Call:
    """Step until it is answered, however long the search takes, and the next turn prepared."""
    while not call.has_ended or door.serving.warmer.num_running:
        await asyncio.sleep(0.002)
        if door.engine.stats().num_pending_requests:
            door._step()
    return await call.ended()


def answered(call: Call) -> dict[str, Any]:
    assert call.status == 200, call.body
    answer: dict[str, Any] = json.loads(call.body)
    report = answer["x_headrace"]["context"]
    assert sum(report[part]["tokens"] for part in PARTS) == answer["usage"]["prompt_tokens"]
    assert report["template"]["tokens"] >= 0
    return dict(report)


@pytest.mark.parametrize("embedder", [FakeEmbedder(), None], ids=["vectors", "words"])
def test_documents_answer_a_question(embedder: Embedder | None) -> None:
    async def play() -> None:
        door = door_with(embedder)
        asked = body(
            [user("How fast does the water wheel turn?")],
            DOCUMENTS,
            strategy="retrieval",
            k=1,
            report=True,
        )
        report = answered(await answer(door, door.post(CHAT, asked)))
        (source,) = report["sources"]
        assert (source["type"], source["id"], source["title"]) == ("document", "wheel", "wheel.md")
        assert report["retrieved"]["messages"] == 1
        assert report["retrieved"]["tokens"] == source["tokens"] > 0
        assert report["retrieval"].get("missing") == (None if embedder else ["vectors"])
        door.assert_nothing_is_held()

    run(play)


def test_earlier_messages_answer_a_question() -> None:
    async def play() -> None:
        door = door_with(FakeEmbedder())
        messages = [user("My dog is called Kelpie."), {"role": "assistant", "content": "Nice."}]
        for index in range(8):
            messages += [user(f"Tell me about day {index}. " * 3)]
            messages += [{"role": "assistant", "content": "Rain and wind again. " * 3}]
        asked = [*messages, user("What is my dog called?")]
        context = {"strategy": "retrieval", "k": 1, "max_tokens": 900, "report": True}
        report = answered(await answer(door, door.post(CHAT, body(asked, **context))))
        assert [source["id"] for source in report["sources"]] == ["0"]
        assert report["sources"][0]["type"] == "message"
        assert report["dropped"]["messages"] > 2
        assert not report["over_budget"]

    run(play)


def test_a_conversation_that_is_shown_whole_is_not_told_twice() -> None:
    async def play() -> None:
        door = door_with(FakeEmbedder())
        asked = [
            user("My dog is Kelpie."),
            {"role": "assistant", "content": "Ah."},
            user("My dog?"),
        ]
        report = answered(
            await answer(door, door.post(CHAT, body(asked, strategy="retrieval", report=True)))
        )
        assert report["kept"]["messages"] == 2
        assert report["sources"] == []

    run(play)


def test_without_retrieval_documents_are_told_whole() -> None:
    async def play() -> None:
        door = door_with(None)
        plain = body([user("How fast?")], report=True)
        without = answered(await answer(door, door.post(CHAT, plain)))
        report = answered(await answer(door, door.post(CHAT, plain | {"documents": DOCUMENTS})))
        assert report["strategy"] == "full"
        assert report["turn"]["tokens"] > without["turn"]["tokens"] + len(WHEEL) // 2

    run(play)


def test_a_search_that_takes_too_long_goes_by_words() -> None:
    is_free = threading.Event()

    class Stuck(FakeEmbedder):
        def embed(self, texts: Sequence[str]) -> Embedded:
            is_free.wait(timeout=30)
            return super().embed(texts)

    class Broken(FakeEmbedder):
        def embed(self, texts: Sequence[str]) -> Embedded:
            raise ModelError("broken")

    async def play() -> None:
        try:
            for embedder in (Stuck(), Broken()):
                door = door_with(embedder, retrieval_timeout_s=0.2)
                asked = body([user("water wheel")], DOCUMENTS, strategy="retrieval", report=True)
                report = answered(await answer(door, door.post(CHAT, asked)))
                assert report["sources"][0]["id"] == "wheel"
                assert report["retrieval"]["missing"] == ["vectors"]
        finally:
            is_free.set()

    run(play)


def test_a_search_whose_time_is_over_ends_and_stands_in_nobodys_way() -> None:
    is_free = threading.Event()

    class Stuck(FakeEmbedder):
        num_done = 0

        def embed(self, texts: Sequence[str]) -> Embedded:
            is_free.wait(timeout=30)
            self.num_done += 1
            return super().embed(texts)

    async def play() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        embedder = Stuck()
        door = door_with(embedder, retrieval_timeout_s=0.2)
        said = [{"source": {"type": "text", "text": f"{WHEEL} Day {n}."}} for n in range(100)]
        asked = body([user("water wheel")], said, strategy="retrieval", report=True)
        try:
            report = answered(await answer(door, door.post(CHAT, asked)))
            assert report["retrieval"]["missing"] == ["vectors"]
            assert embedder.num_done == 0
        finally:
            is_free.set()
        both_are_free = threading.Barrier(2, timeout=30).wait
        memories = door.serving.memories
        await asyncio.gather(memories.search(both_are_free), memories.search(both_are_free))
        assert embedder.num_done == 1
        memories.stop()

    run(play)


@pytest.mark.parametrize(
    ("documents", "param"),
    [
        (3, "documents"),
        (["x"], "documents[0]"),
        ([{}], "documents[0].source"),
        ([{"source": {"type": "pdf"}}], "documents[0].source.type"),
        ([{"source": {"type": "text"}}], "documents[0].source.text"),
        ([{"source": {"type": "text", "text": " "}}], "documents[0].source.text"),
        ([{"source": {"type": "json", "data": [1]}}], "documents[0].source.data"),
        ([{"id": "a/b", "source": {"type": "text", "text": "x"}}], "documents[0].id"),
        ([{"id": "a", "source": {"type": "text", "text": "x"}}] * 2, "documents[1].id"),
        ([{"source": {"type": "text", "text": "x"}}] * 129, "documents"),
    ],
)
def test_documents_that_are_none_are_refused_by_name(documents: Any, param: str) -> None:
    async def play() -> None:
        door = door_with(None)
        call = await answer(door, door.post(CHAT, body([user("x")], documents)))
        assert call.status == 400, call.body
        assert json.loads(call.body)["error"]["param"] == param

    run(play)
