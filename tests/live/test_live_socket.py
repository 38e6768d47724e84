"""WebSockets against a running server, by a client that we did not write."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from support.clients import MODEL, groq_client, user
from support.servers import Server, eventually, get, running_server
from support.sockets import is_last, question, text_of

COUNTING = ("--fake-text", " ".join(map(str, range(20_000))), "--fake-rate", "20000")
PATHS = ("/v1/chat/completions", "/openai/v1/chat/completions")


def opened(server: Server, path: str = PATHS[0], **how: Any) -> connect:
    return connect(server.base_url.replace("http://", "ws://") + path, **how)


async def answers(ws: ClientConnection, num: int) -> dict[str | None, list[dict[str, Any]]]:
    """All messages until `num` answers have ended, by id."""
    got: dict[str | None, list[dict[str, Any]]] = {}
    async with asyncio.timeout(60):
        while num:
            message = json.loads(await ws.recv())
            got.setdefault(message["id"], []).append(message)
            num -= is_last(message)
    return got


def play(it: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(it, 90))


@pytest.fixture(scope="module")
def counting() -> Any:
    with running_server("--engine", "fake", *COUNTING, "--max-body", "100kB") as server:
        yield server


@pytest.mark.parametrize("path", PATHS)
def test_the_model_s_answers_are_those_over_http(real: Server, path: str) -> None:
    asked = {"model": MODEL, "seed": 7, "max_tokens": 24}
    prompts = [f"Count to {number}." for number in range(6)]
    client = groq_client(real)
    expected = [
        client.chat.completions.create(messages=user(prompt), **asked).choices[0].message.content
        for prompt in prompts
    ]

    async def talk() -> None:
        async with opened(real, path) as ws:
            for number, prompt in enumerate(prompts):
                body = {**asked, "id": str(number), "messages": user(prompt)}
                await ws.send(json.dumps(body))
            got = await answers(ws, len(prompts))
        assert [text_of(got[str(number)]) for number in range(len(prompts))] == expected

    play(talk())


def is_idle(server: Server) -> bool:
    running = [
        value
        for name, value in server.metrics().items()
        if name.startswith("headrace_engine_sequences_running")
    ]
    return bool(running) and not any(running)


def test_a_question_in_pieces_is_answered_as_the_whole_one(real: Server) -> None:
    text = (
        "The naïve café owner — 你好。 Здравствуйте 👩‍👩‍👧 — asks:\n\n  why don't 3.14 rivers" * 6
    )
    asked = {"model": MODEL, "seed": 11, "temperature": 1, "max_tokens": 16}
    whole = groq_client(real).chat.completions.create(messages=user(f"Hear: {text}"), **asked)
    dice = random.Random(4)

    async def talk() -> None:
        async with opened(real) as ws:
            for number in range(3):
                rest = f"Number {number} asks. {text}" if number else f"Hear: {text}"
                fields: dict[str, Any] = dict(asked)
                while rest:
                    size = dice.randrange(1, 40)
                    piece, rest = rest[:size], rest[size:]
                    append = {"id": str(number), "type": "input.append", "text": piece, **fields}
                    await ws.send(json.dumps(append))
                    fields = {}
                    if not rest or dice.random() < 0.2:
                        await asyncio.to_thread(eventually, lambda: is_idle(real))
                await ws.send(json.dumps({"id": str(number), "type": "input.commit"}))
                got = (await answers(ws, 1))[str(number)]
                usage = got[-2]["data"]["x_groq"]["usage"]
                if number == 0:
                    assert text_of(got) == whole.choices[0].message.content
                    assert usage["prompt_tokens"] == whole.usage.prompt_tokens
                    continue
                # A new text, most of which was computed before it was whole.
                cached = usage["prompt_tokens_details"]["cached_tokens"]
                assert usage["prompt_tokens"] - cached < 120 < cached

    play(talk())


def test_a_stream_that_is_left_by_one_way_is_gone_on_with_by_another(real: Server) -> None:
    body = {**question("a", model=MODEL, max_tokens=40, seed=3), "messages": user("A story.")}
    body["stream_options"] = {"resumable": True}

    async def talk() -> None:
        async with opened(real) as ws:
            await ws.send(json.dumps(body))
            first = [json.loads(await ws.recv()) for _ in range(8)]
        stream, after = first[0]["headers"]["x-headrace-stream"], first[-1]["event"]
        async with opened(real) as ws:
            resume = {"id": "b", "type": "resume", "stream": stream, "after": after}
            await ws.send(json.dumps(resume))
            rest = (await answers(ws, 1))["b"]
        status, over_http = await asyncio.to_thread(get, real.base_url, f"/v1/streams/{stream}")
        assert status == 200
        parts = [
            part
            for part in over_http.decode().removeprefix("retry: 1000\n").split("\n\n")
            if part.startswith("id: ")
        ]
        numbers = [message["event"] for message in (*first[1:], *rest[1:])]
        assert numbers == [int(part.split("\n")[0][4:]) for part in parts]
        chunks = [json.loads(part.split("data: ", 1)[1]) for part in parts[:-1]]
        assert [message["data"] for message in (*first[1:], *rest[1:-1])] == chunks

    play(talk())


def test_leaving_frees_all(counting: Server) -> None:
    async def talk() -> None:
        async with opened(counting) as ws:
            for number in range(8):
                await ws.send(json.dumps(question(str(number), max_tokens=4000)))
            for _ in range(40):
                await ws.recv()

    play(talk())
    eventually(lambda: counting.metrics()["headrace_requests_open"] == 0)
    eventually(lambda: counting.metrics()['headrace_engine_sequences_running{model="fake"}'] == 0)


def test_a_plug_that_is_pulled(counting: Server) -> None:
    async def talk() -> None:
        ws = await opened(counting)
        await ws.send(json.dumps(question("a", max_tokens=4000)))
        for _ in range(5):
            await ws.recv()
        ws.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
        )
        ws.transport.abort()

    play(talk())
    eventually(lambda: counting.metrics()["headrace_requests_open"] == 0)


def test_a_message_that_is_too_large_closes(counting: Server) -> None:
    async def talk() -> None:
        async with opened(counting) as ws:
            await ws.send(json.dumps(question("a", user="x" * 100_000)))
            with pytest.raises(ConnectionClosed) as caught:
                await answers(ws, 1)
            assert caught.value.rcvd is not None and caught.value.rcvd.code == 1009

    play(talk())
    eventually(lambda: counting.metrics()["headrace_requests_open"] == 0)


def test_junk_closes_in_the_end(counting: Server) -> None:
    async def talk() -> None:
        async with opened(counting) as ws:
            for _ in range(8):
                await ws.send("junk")
            with pytest.raises(ConnectionClosed) as caught:
                await answers(ws, 100)
            assert caught.value.rcvd is not None and caught.value.rcvd.code == 1003

    play(talk())


def test_pings_are_answered_and_messages_may_come_in_parts(counting: Server) -> None:
    async def talk() -> None:
        async with opened(counting) as ws:
            await (await ws.ping())
            body = json.dumps(question("a", max_tokens=4))
            await ws.send([body[:10], body[10:30], body[30:]])
            assert text_of((await answers(ws, 1))["a"])
            await (await ws.ping())

    play(talk())


def test_a_reader_that_sleeps_gets_all_in_fewer_messages(counting: Server) -> None:
    asked = [question(str(number), max_tokens=4000) for number in range(8)]

    def is_said() -> bool:
        """The engine is done with all of them, and the server is not."""
        metrics = counting.metrics()
        num_open = metrics["headrace_requests_open"]
        return num_open == 8 and metrics['headrace_engine_requests_pending{model="fake"}'] == 0

    async def talk() -> None:
        narrow = socket.create_connection(urlsplit(counting.base_url).netloc.split(":"))
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        async with opened(counting, sock=narrow, max_queue=1) as ws:
            for one in asked:
                await ws.send(json.dumps(one))
            await asyncio.to_thread(eventually, is_said)
            got = await answers(ws, len(asked))
        for messages in got.values():
            text = text_of(messages).strip()
            assert text == " ".join(map(str, range(len(text.split()))))
        num_messages = sum(map(len, got.values()))
        num_tokens = sum(each[-2]["data"]["usage"]["completion_tokens"] for each in got.values())
        assert num_messages < num_tokens, "nothing was merged"

    play(talk())


def test_keys_foreign_pages_and_unknown_urls(locked: tuple[Server, str], counting: Server) -> None:
    server, secret = locked

    async def refused(by: Server, status: int, path: str = PATHS[0], **how: Any) -> None:
        with pytest.raises(InvalidStatus) as caught:
            await opened(by, path, **how)
        response = caught.value.response
        assert response.status_code == status
        assert json.loads(bytes(response.body))["error"]["message"]

    async def talk() -> None:
        await refused(server, 401)
        await refused(server, 404, path="/v1/completions")
        await refused(counting, 403, origin="https://evil.example")
        offered = [Subprotocol("headrace"), Subprotocol(f"headrace.key.{secret}")]
        for how in (
            {"subprotocols": offered},
            {"additional_headers": {"Authorization": f"Bearer {secret}"}},
        ):
            async with opened(server, **how) as ws:
                assert ws.response is not None and secret not in str(ws.response.headers)
                assert ws.subprotocol == ("headrace" if "subprotocols" in how else None)
                await ws.send(json.dumps(question("a")))
                assert text_of((await answers(ws, 1))["a"]) == "Hello."

    play(talk())
    assert secret not in server.log


def test_a_server_that_goes_answers_and_says_why_it_closes() -> None:
    with running_server("--engine", "fake", "--fake-text", "word " * 200) as server:

        async def talk() -> None:
            async with opened(server) as ws:
                await ws.send(json.dumps(question("a", max_tokens=150)))
                for _ in range(5):
                    await ws.recv()
                server.process.send_signal(signal.SIGTERM)
                got = (await answers(ws, 1))["a"]
                assert got[-1]["data"] == "[DONE]"
                with pytest.raises(ConnectionClosed) as caught:
                    await ws.recv()
                assert caught.value.rcvd is not None and caught.value.rcvd.code == 1001

        play(talk())
        assert server.process.wait(20) == 0
        assert "Traceback" not in server.log and "ASGI" not in server.log


def test_a_handshake_is_all_that_is_read_before_it_is_answered(counting: Server) -> None:
    """Half of an upgrade is not left to stand for ever, nor taken for a request."""
    address = urlsplit(counting.base_url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(
            b"GET /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\n\r\n"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")


def test_nothing_was_logged_that_failed(counting: Server, home: Path) -> None:
    assert "Traceback" not in counting.log and "ASGI" not in counting.log
