"""Conversations through OpenAI's Python client, and over a restart of the server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from support.clients import openai_client
from support.crashing import Mortal, home_with
from support.servers import Server, eventually, get, running_server

FAKE = ("--engine", "fake", "--fake-text", "Hello there.", "--fake-rate", "inf")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(*FAKE, home=tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai_client(server)


def message(text: str, role: str = "user") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": text}


def test_a_conversation_from_beginning_to_end(client: openai.OpenAI) -> None:
    made = client.conversations.create(metadata={"topic": "demo"}, items=[message("Hi")])
    assert (made.object, made.metadata) == ("conversation", {"topic": "demo"})
    assert made.id.startswith("conv_") and made.created_at > 1_600_000_000
    assert client.conversations.retrieve(made.id) == made
    changed = client.conversations.update(made.id, metadata={"topic": "other"})
    assert changed.metadata == {"topic": "other"}
    gone = client.conversations.delete(made.id)
    assert (gone.id, gone.deleted, gone.object) == (made.id, True, "conversation.deleted")
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve(made.id)


def test_items(client: openai.OpenAI) -> None:
    made = client.conversations.create()
    call = {"type": "function_call", "call_id": "c1", "name": "sun", "arguments": '{"at":1}'}
    output = {"type": "function_call_output", "call_id": "c1", "output": "bright"}
    texts = [message(f"number {n}") for n in range(5)]
    added = client.conversations.items.create(made.id, items=[*texts, call, output])
    assert [item.type for item in added.data] == [*["message"] * 5, "function_call", output["type"]]
    assert (added.first_id, added.last_id) == (added.data[0].id, added.data[-1].id)
    listed = list(client.conversations.items.list(made.id, order="asc", limit=2))
    assert listed == added.data  # by pages of two
    newest = client.conversations.items.list(made.id, limit=3)
    assert newest.data == added.data[:-4:-1] and newest.has_more
    for item in added.data:
        assert client.conversations.items.retrieve(item.id, conversation_id=made.id) == item
    first = added.data[0]
    assert first.content[0].type == "input_text" and first.content[0].text == "number 0"
    assert added.data[5].arguments == '{"at":1}'
    left = client.conversations.items.delete(first.id, conversation_id=made.id)
    assert left.id == made.id
    assert list(client.conversations.items.list(made.id, order="asc")) == added.data[1:]
    with pytest.raises(openai.NotFoundError):
        client.conversations.items.retrieve(first.id, conversation_id=made.id)


def test_errors_name_the_field(client: openai.OpenAI) -> None:
    made = client.conversations.create()
    for body, param in (
        ({"metadata": {"x" * 65: "y"}}, "metadata"),
        ({"metadata": {"x": "y" * 513}}, "metadata.x"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"items": [message("x")] * 21}, "items"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.conversations.create(**body)
        assert (caught.value.param or "").startswith(param)
    with pytest.raises(openai.BadRequestError) as caught:
        client.conversations.items.list(made.id, limit=101)
    assert caught.value.param == "limit"


@pytest.mark.parametrize("stream", [False, True])
def test_responses_in_a_conversation(client: openai.OpenAI, stream: bool) -> None:
    made = client.conversations.create()
    for number in range(2):
        asked = {"model": "fake", "input": f"question {number}", "conversation": made.id}
        if stream:
            [*_, last] = client.responses.create(**asked, stream=True)
            answer = last.response
        else:
            answer = client.responses.create(**asked)
        assert answer.output_text == "Hello there."
    items = list(client.conversations.items.list(made.id, order="asc"))
    texts = [item.content[0].text for item in items]
    assert texts == ["question 0", "Hello there.", "question 1", "Hello there."]
    assert items[-1].id == answer.output[0].id
    follow = client.responses.create(model="fake", input="and?", previous_response_id=answer.id)
    assert follow.previous_response_id == answer.id
    assert len(list(client.conversations.items.list(made.id))) == 4


def test_a_response_is_retrieved_and_deleted(client: openai.OpenAI) -> None:
    told = client.responses.create(model="fake", input="hi", instructions="Be brief.")
    shown = client.responses.retrieve(told.id)
    assert (shown.id, shown.status, shown.output_text) == (told.id, "completed", "Hello there.")
    assert (shown.usage, shown.instructions, shown.model) == (told.usage, "Be brief.", "fake")
    (item,) = client.responses.input_items.list(told.id)
    assert item.content[0].text == "hi"  # type: ignore[union-attr]
    client.responses.delete(told.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(told.id)


def test_a_chat_completion_in_a_conversation(client: openai.OpenAI) -> None:
    made = client.conversations.create()
    for _ in range(2):
        client.chat.completions.create(
            model="fake",
            messages=[{"role": "user", "content": "hi"}],
            extra_body={"conversation": made.id},
        )
    assert len(list(client.conversations.items.list(made.id))) == 4


def test_what_was_kept_is_there_after_a_restart(tmp_path: Path) -> None:
    asked = {"prompt": "remember me", "conversation_id": "mine"}
    with running_server(*FAKE, home=tmp_path) as server:
        answer = httpx.post(f"{server.base_url}/api/chat", json=asked, timeout=30)
        assert answer.text.endswith("data: [DONE]\n\n")
    with running_server(*FAKE, home=tmp_path) as server:
        status, body = get(server.base_url, "/v1/conversations/mine/items?order=asc")
        assert status == 200
        texts = [item["content"][0]["text"] for item in json.loads(body)["data"]]
        assert texts == ["remember me", "Hello there."]


def test_a_turn_whose_server_was_killed(tmp_path: Path) -> None:
    """What had been said is kept and marked, and stands in nobody's way for long."""
    flags = ("--engine", "fake", "--fake-text", "word " * 2000, "--fake-rate", "100")
    path = "/v1/conversations/mine/items?order=asc"
    with running_server(*flags, home=tmp_path) as server:
        body = {"prompt": "begin", "conversation_id": "mine", "max_tokens": 1000}
        with httpx.stream("POST", f"{server.base_url}/api/chat", json=body, timeout=30) as answer:
            lines = answer.iter_lines()
            next(lines)
            eventually(lambda: "word" in get(server.base_url, path)[1].decode())
            server.process.kill()
    with running_server(*FAKE, home=tmp_path) as server:
        [_, said] = json.loads(get(server.base_url, path)[1])["data"]
        assert said["status"] in ("in_progress", "incomplete")
        assert said["content"][0]["text"].startswith("word")

        def is_free() -> bool:
            body = {"prompt": "again", "conversation_id": "mine"}
            answer = httpx.post(f"{server.base_url}/api/chat", json=body, timeout=30)
            assert answer.status_code in (200, 409)
            return answer.status_code == 200

        eventually(is_free)
        data = json.loads(get(server.base_url, path)[1])["data"]
        assert [item["status"] for item in data] == [
            "completed",
            "incomplete",
            "completed",
            "completed",
        ]


def test_a_kept_turn_goes_on_in_the_next_server(default_model_path: Path, tmp_path: Path) -> None:
    """Asked again by its key after a `kill -9`: the same answer, and each message kept once."""
    mortal = Mortal(home_with(default_model_path, tmp_path / "home"), "--drain-timeout", "0.2")
    url = f"http://127.0.0.1:{mortal.port}"
    asked = {
        "url": f"{url}/api/chat",
        "json": {"prompt": "Tell me about rivers.", "conversation_id": "c", "max_tokens": 120},
        "headers": {"idempotency-key": "once"},
        "timeout": 60,
    }

    def is_ready() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{url}/ready").status_code == 200
        return False

    with mortal.alive():
        wait_for(is_ready)
        with suppress(httpx.TransportError), httpx.stream("POST", **asked) as answer:
            for number, _ in enumerate(answer.iter_lines()):
                if number == 20:
                    mortal.kill()
        mortal.start()
        wait_for(is_ready)
        whole = httpx.post(**asked)
        assert whole.headers["x-headrace-conversation-id"] == "c"
        said = tokens(whole.text)
        found = httpx.get(f"{url}/v1/conversations/c/export").json()["messages"]
        texts = [each["message"]["content"] for each in found]
        assert texts == ["Tell me about rivers.", said]
        assert found[1]["status"] in ("completed", "incomplete")  # by its own end, or its limit
        assert tokens(httpx.post(**asked).text) == said
        assert len(httpx.get(f"{url}/v1/conversations/c/export").json()["messages"]) == 2


def wait_for(is_so: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 60.0
    while not is_so():
        assert time.monotonic() < ends_at, "it never came true"
        time.sleep(0.05)


def tokens(body: str) -> str:
    """What a whole stream said."""
    *lines, done = body.split("\n\n")[:-1]
    assert done == "data: [DONE]"
    return "".join(json.loads(line.removeprefix("data: "))["token"] for line in lines)
