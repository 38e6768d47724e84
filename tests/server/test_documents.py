"""Documents of conversations over HTTP, and turns that are answered from them and from memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.conversations.memory.values import Scope
from headrace.server.keys import KeyStore
from headrace.server.memories import Memories
from headrace.testing import END_ID, FakeEmbedder, FakeModel, ManualEngine, saying
from headrace.testing.asgi import Call
from support.asgi import CHAT, Door, settle
from support.asgi import run as run_alone

MILL = "/v1/conversations/mill"
DOCUMENTS = MILL + "/documents"
WHEEL = "The water wheel of the mill turns at eleven revolutions a minute."
SCOPE = Scope("local", "mill")
MANUAL = {"id": "manual", "title": "wheel.md", "source": {"type": "text", "text": WHEEL}}


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    yield from doors(tmp_path)


async def embedder() -> FakeEmbedder:
    return FakeEmbedder()


def doors(tmp_path: Path, keys: KeyStore | None = None) -> Iterator[Door]:
    model = FakeModel(rule=saying([*b"Yes."], END_ID), context_length=4096)
    door = Door(ManualEngine(model), database_url=f"sqlite:///{tmp_path}/c.db", keys=keys)
    serving = door.serving
    serving.memories = Memories(serving.database, embedder)
    yield door
    serving.memories.stop()
    serving.conversations.close()


def run(door: Door, play: Any) -> None:
    async def whole() -> None:
        await play()
        while door.serving.conversations.num_open or door.serving.warmer.num_running:
            await asyncio.sleep(0.002)
            if door.engine.stats().num_pending_requests:
                door._step()
        await embedded(door)

    run_alone(whole)


async def told(call: Call, status: int = 200) -> Any:
    """The JSON of an answer that needs no engine."""
    await asyncio.wait_for(call.ended(), 30)
    assert call.status == status, call.body
    return json.loads(call.body)


async def embedded(door: Door) -> None:
    await asyncio.wait_for((await door.serving.memories.kept()).idle(), 30)


async def found(door: Door, question: str) -> list[str]:
    """The sources of what answers a question."""
    memory = await door.serving.memories.kept()
    recall = await memory.recall(SCOPE, question, timeout_s=30)
    return [one.chunk.source.id for one in recall.found]


async def asked(door: Door, text: str, documents: Any = None, **context: Any) -> dict[str, Any]:
    """The report of a turn."""
    body = {
        "model": "fake",
        "messages": [{"role": "user", "content": text}],
        "conversation": "mill",
        "max_tokens": 8,
        "documents": documents,
        "context": {"strategy": "retrieval", "report": True, **context},
    }
    call = door.post(CHAT, body)
    while not call.has_ended:
        await asyncio.sleep(0.002)
        if door.engine.stats().num_pending_requests:
            door._step()
    await call.ended()
    assert call.status == 200, call.body
    while door.serving.conversations.num_open:
        await asyncio.sleep(0.005)
    answer: dict[str, Any] = json.loads(call.body)
    return dict(answer["x_headrace"]["context"])


async def make(door: Door) -> None:
    await told(door.post("/v1/conversations", {"id": "mill"}))


def test_a_document_is_given_listed_asked_and_deleted(door: Door) -> None:
    async def play() -> None:
        await make(door)
        given = await told(door.post(DOCUMENTS, MANUAL))
        assert given["object"] == "conversation.document"
        assert (given["id"], given["title"], given["chars"]) == ("manual", "wheel.md", len(WHEEL))
        assert given["chunks"]["total"] == 1
        await embedded(door)
        listed = await told(door.call("GET", DOCUMENTS))
        assert [one["status"] for one in listed["data"]] == ["completed"]
        assert (await told(door.call("GET", DOCUMENTS + "/manual")))["chunks"]["embedded"] == 1
        assert await found(door, "How fast does the water wheel turn?") == ["manual"]
        gone = await told(door.call("DELETE", DOCUMENTS + "/manual"))
        assert gone["deleted"] is True
        await told(door.call("GET", DOCUMENTS + "/manual"), 404)
        assert await found(door, "How fast does the water wheel turn?") == []

    run(door, play)


def test_a_message_that_is_shown_no_more_is_found_again(door: Door) -> None:
    async def play() -> None:
        await make(door)
        await asked(door, "My dog is called Kelpie.")
        for day in range(8):
            await asked(door, f"Rain and wind on day {day}. " * 4, max_tokens=700)
        await embedded(door)
        report = await asked(door, "What is my dog called?", max_tokens=700, k=1)
        (source,) = report["sources"]
        assert source["type"] == "message"
        assert source["title"] == "user"
        assert report["dropped"]["messages"] > 0
        assert "missing" not in report["retrieval"]

    run(door, play)


def test_a_turn_is_answered_from_documents_kept_and_sent(door: Door) -> None:
    async def play() -> None:
        await make(door)
        await told(door.post(DOCUMENTS, MANUAL))
        sent = {"id": "note", "source": {"type": "text", "text": "The wheel was oiled in May."}}
        report = await asked(door, "When was the water wheel oiled?", documents=[sent])
        assert {source["id"] for source in report["sources"]} == {"manual", "note"}
        assert report["retrieved"]["messages"] == 2

    run(door, play)


def test_a_conversations_own_context_holds(door: Door) -> None:
    async def play() -> None:
        made = {"id": "mill", "context": {"strategy": "retrieval", "k": 1, "report": True}}
        await told(door.post("/v1/conversations", made))
        await told(door.post(DOCUMENTS, MANUAL))
        report = await asked(door, "How fast does the water wheel turn?", strategy=None)
        assert report["strategy"] == "retrieval"
        assert [source["id"] for source in report["sources"]] == ["manual"]

    run(door, play)


def test_a_conversation_that_is_deleted_takes_its_documents_with_it(door: Door) -> None:
    async def play() -> None:
        await make(door)
        await told(door.post(DOCUMENTS, MANUAL))
        await embedded(door)
        assert await found(door, "wheel") == ["manual"]
        await told(door.call("DELETE", MILL))
        await told(door.call("GET", DOCUMENTS), 404)
        await embedded(door)
        memory = await door.serving.memories.kept()
        assert memory.num_held == 0
        await make(door)
        assert (await told(door.call("GET", DOCUMENTS)))["data"] == []
        assert await found(door, "How fast is the wheel?") == []

    run(door, play)


def test_anothers_documents_are_not_there(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path / "keys.json")
    anna, ben = ({"authorization": f"Bearer {keys.create(name)[1]}"} for name in ("anna", "ben"))
    for door in doors(tmp_path, keys):

        async def play(door: Door = door) -> None:
            await told(door.post("/v1/conversations", {"id": "mill"}, anna))
            await told(door.post(DOCUMENTS, MANUAL, anna))
            await told(door.call("GET", DOCUMENTS, headers=ben), 404)
            await told(door.post(DOCUMENTS, MANUAL, ben), 404)
            await told(door.call("GET", DOCUMENTS), 401)
            await told(door.post("/v1/conversations", {"id": "mill"}, ben))
            assert (await told(door.call("GET", DOCUMENTS, headers=ben)))["data"] == []
            await told(door.call("DELETE", DOCUMENTS + "/manual", headers=ben), 404)
            await told(door.call("GET", DOCUMENTS + "/manual", headers=anna))

        run(door, play)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "source"),
        ({"source": "text"}, 400, "source"),
        ({"source": {"type": "text", "text": ""}}, 400, "source.text"),
        ({"source": {"type": "text", "text": "x"}, "id": ""}, 400, "id"),
        (MANUAL, 409, "id"),
    ],
)
def test_what_is_no_document_is_refused_by_name(
    door: Door, body: dict[str, Any], status: int, param: str
) -> None:
    async def play() -> None:
        await make(door)
        await told(door.post(DOCUMENTS, MANUAL))
        refused = await told(door.post(DOCUMENTS, body), status)
        assert refused["error"]["param"] == param

    run(door, play)


def test_an_embedder_that_comes_while_a_document_is_read_is_used(tmp_path: Path) -> None:
    """The memory that was there when the request began is gone by then."""
    door = Door(database_url=f"sqlite:///{tmp_path}/c.db")
    serving = door.serving
    loaded: list[FakeEmbedder] = []

    async def get() -> FakeEmbedder | None:
        return loaded[0] if loaded else None

    serving.memories = Memories(serving.database, get)

    async def play() -> None:
        await make(door)
        call = door.call("POST", DOCUMENTS, None)
        await settle()
        assert not (await serving.memories.kept()).has_vectors
        loaded.append(FakeEmbedder())
        assert (await serving.memories.kept()).has_vectors
        call.send_body(json.dumps(MANUAL).encode(), is_last=True)
        await told(call)
        await embedded(door)
        assert await found(door, "water wheel") == ["manual"]

    run(door, play)
    serving.memories.stop()
    serving.conversations.close()


def test_a_nul_is_a_space_in_documents_and_in_no_id(door: Door) -> None:
    async def play() -> None:
        await make(door)
        said = {"id": "nul", "source": {"type": "text", "text": "A mill\0wheel."}}
        assert (await told(door.post(DOCUMENTS, said)))["chars"] == 13
        await embedded(door)
        recall = await (await door.serving.memories.kept()).recall(SCOPE, "wheel", timeout_s=30)
        assert [one.chunk.text for one in recall.found] == ["A mill wheel."]
        for path in (DOCUMENTS + "/n%00", "/v1/conversations/n%00/documents"):
            refused = await told(door.call("GET", path), 404)
            assert "NUL" in refused["error"]["message"]  # it was not looked for

    run(door, play)


def test_without_a_database_documents_are_refused() -> None:
    async def play() -> None:
        door = Door()
        await told(door.post(DOCUMENTS, MANUAL), 503)

    run_alone(play)


def test_the_servers_own_embedder_embeds(tmp_path: Path) -> None:
    door = Door(database_url=f"sqlite:///{tmp_path}/c.db")

    async def play() -> None:
        await make(door)
        await told(door.post(DOCUMENTS, MANUAL))
        await embedded(door)
        shown = await told(door.call("GET", DOCUMENTS + "/manual"))
        assert shown["chunks"] == {"total": 1, "embedded": 1, "failed": 0}

    run(door, play)
    door.serving.memories.stop()
    door.serving.conversations.close()


def test_a_fork_has_documents_of_its_own(door: Door) -> None:
    async def play() -> None:
        await make(door)
        await told(door.post(DOCUMENTS, MANUAL))
        await embedded(door)
        forked = await told(door.post(MILL + "/fork", {"id": "copy"}))
        assert forked["id"] == "copy"
        await embedded(door)
        copies = "/v1/conversations/copy/documents"
        (copy,) = (await told(door.call("GET", copies)))["data"]
        (first,) = (await told(door.call("GET", DOCUMENTS)))["data"]
        assert copy == first
        await told(door.call("DELETE", DOCUMENTS + "/manual"))
        memory = await door.serving.memories.kept()
        recall = await memory.recall(Scope("local", "copy"), "water wheel", timeout_s=30)
        assert [one.chunk.text for one in recall.found] == [WHEEL]
        assert await found(door, "water wheel") == []

    run(door, play)


def test_a_response_is_answered_from_documents(door: Door) -> None:
    async def play() -> None:
        body = {
            "model": "fake",
            "input": "How fast does the water wheel turn?",
            "documents": [MANUAL],
            "context": {"strategy": "retrieval", "report": True},
        }
        call = door.post("/v1/responses", body)
        while not call.has_ended:
            await asyncio.sleep(0.002)
            if door.engine.stats().num_pending_requests:
                door._step()
        report = (await told(call))["x_headrace"]["context"]
        assert [source["id"] for source in report["sources"]] == ["manual"]

    run(door, play)
