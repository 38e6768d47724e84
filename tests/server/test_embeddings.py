"""`POST /embeddings` without a socket, on a fake model whose every call the test can hold."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.errors import InvalidRequest, ModelLoading, SettingsError, SourceUnavailable
from headrace.model.catalogue import DEFAULT_EMBEDDER
from headrace.model.embedder import Embedded
from headrace.server import embedders as embedders_module
from headrace.server.embedders import (
    EmbedderNames,
    Embedders,
    check_embedder,
    embedder_names,
)
from headrace.server.embeddings import SLICE_CHARS
from headrace.server.keys import KeyStore
from headrace.server.models import model_names
from headrace.settings import DEFAULT_EMBEDDING_MODEL, ServerSettings
from headrace.testing import FakeEmbedder
from support.asgi import CHAT, Door, run
from support.bodies import chat_body
from support.embedding_models import write_model

EMBEDDINGS = "/openai/v1/embeddings"
SHORT = "/v1/embeddings"


def body(texts: Any, **fields: Any) -> dict[str, Any]:
    return {"model": DEFAULT_EMBEDDER, "input": texts} | fields


class HeldEmbedder(FakeEmbedder):
    """Each call waits until the test lets it go on; `calls` are the texts of each."""

    def __init__(self) -> None:
        super().__init__(8)
        self.calls: list[list[str]] = []
        self.may_go = threading.Semaphore(0)

    def embed(self, texts: Sequence[str]) -> Embedded:
        self.calls.append(list(texts))
        assert self.may_go.acquire(timeout=10)
        return super().embed(texts)


def door_with(embedder: Any, **settings: Any) -> Door:
    door = Door(**settings)
    door.serving.embedders.open_embedder = lambda: embedder
    return door


async def until(is_so: Any) -> None:
    while not is_so():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("path", [EMBEDDINGS, SHORT])
def test_texts_become_vectors_in_their_order(path: str) -> None:
    async def play() -> None:
        door = Door()
        call = await door.post(path, body(["the mill", "the river", "the mill"])).ended()
        assert call.status == 200 and call.header("content-type") == "application/json"
        answer = json.loads(call.body)
        assert answer["model"] == DEFAULT_EMBEDDER
        first, second, third = (item["embedding"] for item in answer["data"])
        assert len(first) == 384 and first == third != second
        assert answer["usage"] == {"prompt_tokens": 12, "total_tokens": 12}
        (fact,) = door.ended
        assert (fact.endpoint, fact.served_by) == ("/embeddings", DEFAULT_EMBEDDER)
        assert (fact.num_prompt_tokens, fact.num_completion_tokens) == (12, 0)

    run(play)


def test_fewer_dimensions_are_made_to_length_one_again() -> None:
    async def play() -> None:
        door = Door()
        whole = await door.post(EMBEDDINGS, body("the mill")).ended()
        short = await door.post(EMBEDDINGS, body("the mill", dimensions=100)).ended()
        expected = np.array(json.loads(whole.body)["data"][0]["embedding"])[:100]
        got = np.array(json.loads(short.body)["data"][0]["embedding"])
        assert np.allclose(got, expected / np.linalg.norm(expected), atol=1e-6)
        refused = await door.post(EMBEDDINGS, body("x", dimensions=385)).ended()
        assert refused.status == 400
        assert json.loads(refused.body)["error"]["param"] == "dimensions"

    run(play)


def test_what_was_cut_is_said() -> None:
    async def play() -> None:
        door = door_with(FakeEmbedder(8, max_tokens=4))
        texts = ["a b", "a b c", "x" * SLICE_CHARS, "a b c d"]
        call = await door.post(EMBEDDINGS, body(texts)).ended()
        assert json.loads(call.body)["x_headrace"] == {"truncated": [1, 3]}

    run(play)


def test_errors_wear_the_envelope() -> None:
    async def play() -> None:
        door = Door()
        for sent, status, param in (
            (body([1, 2, 3]), 400, "input"),
            (body(""), 400, "input"),
            (body("x", model="fake"), 404, "model"),
            (body("x", model="text-embedding-3-small"), 404, "model"),
            ({"input": "x"}, 400, "model"),
            (b"{", 400, None),
        ):
            call = await door.post(EMBEDDINGS, sent).ended()
            error = json.loads(call.body)["error"]
            assert (call.status, error.get("param")) == (status, param), sent
        assert (await door.call("GET", EMBEDDINGS).ended()).status == 404

    run(play)


def test_a_model_for_embeddings_answers_nothing() -> None:
    async def play() -> None:
        door = Door()
        call = await door.post(CHAT, chat_body(model=DEFAULT_EMBEDDER)).ended()
        error = json.loads(call.body)["error"]
        assert call.status == 400 and "makes embeddings" in error["message"]
        assert error["param"] == "model"

    run(play)


def test_aliases_only_where_they_are_given() -> None:
    async def play() -> None:
        door = Door(aliases={"text-embedding-3-small": DEFAULT_EMBEDDER, "gpt": "fake"})
        call = await door.post(EMBEDDINGS, body("x", model="text-embedding-3-small")).ended()
        assert json.loads(call.body)["model"] == "text-embedding-3-small"
        cards = json.loads((await door.call("GET", "/v1/models").ended()).body)["data"]
        assert [card["id"] for card in cards] == [
            *("fake", "gpt", DEFAULT_EMBEDDER, "text-embedding-3-small"),
        ]
        card = await door.call("GET", "/v1/models/text-embedding-3-small").ended()
        assert json.loads(card.body)["context_window"] == 256

    run(play)


def test_no_embeddings_at_all() -> None:
    async def play() -> None:
        door = Door(embedding_model="none")
        call = await door.post(EMBEDDINGS, body("x")).ended()
        assert call.status == 404 and "this server has none" in call.body.decode()
        cards = json.loads((await door.call("GET", "/v1/models").ended()).body)["data"]
        assert DEFAULT_EMBEDDER not in [card["id"] for card in cards]

    run(play)


def test_keys_and_limits(tmp_path: Path) -> None:
    async def play() -> None:
        keys = KeyStore(tmp_path / "keys.json")
        _, secret = keys.create("tester")
        table = tmp_path / "limits.json"
        table.write_text(json.dumps({"models": {DEFAULT_EMBEDDER: {"tpm": 20}}}))
        door = Door(keys=keys, limits=str(table))
        assert (await door.post(EMBEDDINGS, body("x")).ended()).status == 401
        key = {"authorization": f"Bearer {secret}"}
        call = await door.post(EMBEDDINGS, body("one two three"), key).ended()
        assert call.header("x-ratelimit-remaining-tokens") == "15"
        too_many = await door.post(EMBEDDINGS, body(["a b c d e f g h i"] * 4), key).ended()
        assert too_many.status in (413, 429)
        assert json.loads(too_many.body)["error"]["type"] == "tokens"

    run(play)


def test_the_loop_goes_on_and_slices_of_others_come_in_between() -> None:
    async def play() -> None:
        embedder = HeldEmbedder()
        door = door_with(embedder)
        texts = [letter * (SLICE_CHARS // 2) for letter in "abcdef"]
        long = door.post(EMBEDDINGS, body(texts))
        await until(lambda: embedder.calls)
        short = door.post(EMBEDDINGS, body("short"))
        assert (await door.call("GET", "/health").ended()).status == 200
        await until(lambda: door.serving.embedders._thread._work_queue.qsize() == 1)
        for _ in range(4):
            embedder.may_go.release()
        await asyncio.gather(long.ended(), short.ended())
        assert [len(call) for call in embedder.calls] == [2, 1, 2, 2]
        assert embedder.calls[1] == ["short"]
        assert len(json.loads(long.body)["data"]) == 6
        door.assert_nothing_is_held()

    run(play)


def test_leaving_ends_the_work() -> None:
    async def play() -> None:
        embedder = HeldEmbedder()
        door = door_with(embedder)
        call = door.post(EMBEDDINGS, body(["x" * SLICE_CHARS] * 5))
        await until(lambda: embedder.calls)
        call.leave()
        embedder.may_go.release()
        await until(lambda: door.ended)
        assert len(embedder.calls) == 1
        assert door.ended[0].status == 499 and door.ended[0].num_prompt_tokens == 3
        door.assert_nothing_is_held()

    run(play)


def test_a_model_is_loaded_once_and_only_when_it_is_asked_for() -> None:
    async def play() -> None:
        door, num_loads = Door(), 0

        def load() -> FakeEmbedder:
            nonlocal num_loads
            num_loads += 1
            return FakeEmbedder(8)

        door.serving.embedders.open_embedder = load
        await door.call("GET", "/v1/models").ended()
        assert num_loads == 0
        calls = [door.post(EMBEDDINGS, body("x")) for _ in range(3)]
        await asyncio.gather(*(call.ended() for call in calls))
        assert num_loads == 1 and all(call.status == 200 for call in calls)

    run(play)


def test_who_comes_after_a_failure_tries_again() -> None:
    async def play() -> None:
        door, tries = Door(), 0

        def load() -> FakeEmbedder:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise SourceUnavailable("the package index cannot be reached")
            return FakeEmbedder(8)

        door.serving.embedders.open_embedder = load
        call = await door.post(EMBEDDINGS, body("x")).ended()
        assert call.status == 502 and b"cannot be reached" in call.body
        assert (await door.post(EMBEDDINGS, body("x")).ended()).status == 200

    run(play)


def test_a_model_that_takes_long_to_come_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def play() -> None:
        monkeypatch.setattr(embedders_module, "PATIENCE_S", 0.01)
        door, is_here = Door(), threading.Event()

        def load() -> FakeEmbedder:
            assert is_here.wait(10)
            return FakeEmbedder(8)

        door.serving.embedders.open_embedder = load
        call = await door.post(EMBEDDINGS, body("x")).ended()
        assert call.status == ModelLoading.status and call.header("retry-after") == "5"
        is_here.set()
        monkeypatch.setattr(embedders_module, "PATIENCE_S", 10)
        assert (await door.post(EMBEDDINGS, body("x")).ended()).status == 200

    run(play)


def test_a_server_that_drains_takes_none() -> None:
    async def play() -> None:
        door = Door()
        door.serving.begin_drain()
        assert (await door.post(EMBEDDINGS, body("x")).ended()).status == 503

    run(play)


def test_names_of_the_settings(home: Path, tmp_path: Path) -> None:
    assert DEFAULT_EMBEDDING_MODEL == DEFAULT_EMBEDDER
    assert embedder_names(ServerSettings()) == EmbedderNames(DEFAULT_EMBEDDER, DEFAULT_EMBEDDER)
    assert DEFAULT_EMBEDDER in embedder_names(ServerSettings())
    assert "" not in embedder_names(ServerSettings(embedding_model=None))
    mine = write_model(tmp_path / "mine")
    given = ServerSettings(embedding_model=str(mine), aliases={"other": "mine"})
    names = embedder_names(given)
    assert names == EmbedderNames("mine", str(mine), ("other",))
    assert check_embedder(names) == []
    assert model_names(given).aliases == {}
    (mine / "config.json").write_text("{}")
    assert "model_type" in check_embedder(names)[0].message
    (problem,) = check_embedder(EmbedderNames("gone", "gone"))
    assert "no embedding model is called 'gone'" in problem.message
    assert check_embedder(EmbedderNames(DEFAULT_EMBEDDER, DEFAULT_EMBEDDER)) == []


def test_names_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="only makes embeddings"):
        embedder_names(ServerSettings(aliases={"*": DEFAULT_EMBEDDER}))
    twins = ServerSettings(models=("a/twin.gguf",), embedding_model="b/twin")
    with pytest.raises(SettingsError, match="would be called 'twin', as a model is"):
        model_names(twins)


def test_a_registry_of_none_refuses_nothing() -> None:
    none = Embedders(EmbedderNames(), FakeEmbedder)
    none.check_not_asked("")
    assert none.cards() == []
    some = Embedders(EmbedderNames("m", "m", ("n",)), FakeEmbedder)
    with pytest.raises(InvalidRequest, match="makes embeddings"):
        some.check_not_asked("n")
