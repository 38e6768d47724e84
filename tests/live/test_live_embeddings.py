"""Embeddings with the official clients, from a server as it is without a single flag."""

from __future__ import annotations

from typing import Any

import groq
import numpy as np
import openai
import pytest

from headrace.model.catalogue import DEFAULT_EMBEDDER
from headrace.model.embedding import native
from support.clients import CLIENTS, MODEL, user
from support.models import default_embedder_path
from support.servers import Server

TEXTS = ["The mill is by the river.", "Where does the mill stand?", "Her passport is lost."]


@pytest.fixture(scope="module", autouse=True)
def the_model_is_here() -> None:
    """In the data folder of the server, whose default model is in the same one."""
    default_embedder_path()


def test_likeness(client: Any) -> None:
    answer = client.embeddings.create(model=DEFAULT_EMBEDDER, input=TEXTS)
    vectors = np.array([item.embedding for item in answer.data])
    assert vectors.shape == (3, 384)
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.6 > 0.3 > vectors[0] @ vectors[2]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 9 + 8 + 7


def test_both_encodings_are_what_python_gives(real: Server) -> None:
    expected = native.load(default_embedder_path()).embed(TEXTS).vectors
    # OpenAI's client asks for base64 where it is told nothing, and reads it with numpy.
    for client, options in (
        (CLIENTS["openai"](real), {}),
        (CLIENTS["openai"](real), {"encoding_format": "float"}),
        (CLIENTS["groq"](real), {"encoding_format": "float"}),
    ):
        answer = client.embeddings.create(model=DEFAULT_EMBEDDER, input=TEXTS, **options)
        got = np.array([item.embedding for item in answer.data], np.float32)
        assert got.tobytes() == expected.tobytes()


def test_fewer_dimensions(real: Server) -> None:
    client = CLIENTS["openai"](real)
    answer = client.embeddings.create(model=DEFAULT_EMBEDDER, input="a mill", dimensions=64)
    vector = np.array(answer.data[0].embedding)
    assert len(vector) == 64 and abs(np.linalg.norm(vector) - 1) < 1e-5


def test_what_cannot_be_embedded(client: Any) -> None:
    for given in ("", [], [1, 2, 3], [[1, 2]]):
        with pytest.raises((openai.BadRequestError, groq.BadRequestError)) as caught:
            client.embeddings.create(model=DEFAULT_EMBEDDER, input=given)
        assert caught.value.body
    with pytest.raises((openai.NotFoundError, groq.NotFoundError)):
        client.embeddings.create(model="text-embedding-3-small", input="x")


def test_streams_and_embeddings_share_a_server(client: Any) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=user("Count to ten."), max_tokens=24, stream=True, temperature=0
    )
    alone = client.embeddings.create(model=DEFAULT_EMBEDDER, input=TEXTS)
    beside = client.embeddings.create(model=DEFAULT_EMBEDDER, input=["x y z " * 40] * 20 + TEXTS)
    assert sum(1 for _ in stream) > 5
    assert [item.embedding for item in beside.data[20:]] == [item.embedding for item in alone.data]


def test_it_is_listed(client: Any) -> None:
    listed = {card.id: card for card in client.models.list().data}
    assert listed[DEFAULT_EMBEDDER].context_window == 256
    assert client.models.retrieve(DEFAULT_EMBEDDER).id == DEFAULT_EMBEDDER
