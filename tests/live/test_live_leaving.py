"""Clients that leave: whatever the answer held is free at once, and the next one gets it."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import groq
import openai
import pytest

from support.clients import CLIENTS, MODEL, user
from support.servers import Server, eventually

LONG: dict[str, Any] = {
    "model": MODEL,
    "messages": user("Tell me a very long story."),
    "max_tokens": 4000,
    "seed": 1,
}
RUNNING = 'headrace_engine_sequences_running{model="smollm2-135m-instruct"}'
HELD = 'headrace_engine_banks{model="smollm2-135m-instruct",state="held"}'
LEFT = (
    'headrace_requests_total{endpoint="/chat/completions",model="smollm2-135m-instruct",'
    'status="499"}'
)


def num_left(server: Server) -> float:
    return server.metrics().get(LEFT, 0)


def check_all_is_free(server: Server, num_left_before: float) -> None:
    eventually(lambda: num_left(server) > num_left_before)
    eventually(lambda: server.metrics()[RUNNING] == 0)
    metrics = server.metrics()
    assert metrics[HELD] == 0
    assert metrics["headrace_requests_open"] == 0


def check_it_runs(server: Server) -> None:
    metrics = server.metrics()
    assert metrics[RUNNING] == 1
    assert metrics[HELD] > 0


@pytest.mark.parametrize("name", CLIENTS)
def test_leaving_a_stream(real: Server, name: str) -> None:
    before = num_left(real)
    stream = CLIENTS[name](real).chat.completions.create(**LONG, stream=True)
    for _ in range(3):
        next(stream)
    check_it_runs(real)
    stream.close()
    check_all_is_free(real, before)


@pytest.mark.parametrize("name", CLIENTS)
def test_giving_up_waiting_for_a_whole_answer(real: Server, name: str) -> None:
    before = num_left(real)
    client = CLIENTS[name](real, timeout=0.5)
    with pytest.raises((groq.APITimeoutError, openai.APITimeoutError)):
        client.chat.completions.create(**LONG)
    check_all_is_free(real, before)


def test_cancelling_a_task(real: Server) -> None:
    async def leave() -> None:
        async with groq.AsyncGroq(base_url=real.base_url, api_key="any") as client:
            stream = await client.chat.completions.create(**LONG, stream=True)
            reading = asyncio.create_task(anext(stream))
            await reading
            reading = asyncio.create_task(read_all(stream))
            await asyncio.sleep(0.1)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading

    async def read_all(stream: Any) -> None:
        async for _ in stream:
            pass

    before = num_left(real)
    asyncio.run(leave())
    check_all_is_free(real, before)


def test_pulling_the_plug(real: Server) -> None:
    """A reset instead of a farewell, before the head of the answer has been read."""
    before = num_left(real)
    body = json.dumps({**LONG, "stream": True, "n": 4}).encode()
    address = urlsplit(real.base_url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
        )
        connection.sendall(head % len(body) + body)
        connection.recv(1)
        # Zero seconds to linger: closing sends a reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    check_all_is_free(real, before)


def test_half_leave_and_half_stay(real: Server) -> None:
    """Who stays reads the same as alone."""
    asked = {**LONG, "max_tokens": 60}
    client = groq.Groq(base_url=real.base_url, api_key="any")
    alone = client.chat.completions.create(**asked).choices[0].message.content

    async def talk(several: groq.AsyncGroq, stays: bool) -> str:
        stream = await several.chat.completions.create(**asked, stream=True)
        said = ""
        async for chunk in stream:
            said += chunk.choices[0].delta.content or ""
            if not stays and len(said) > 20:
                await stream.close()
                break
        return said

    async def talk_all() -> list[str]:
        async with groq.AsyncGroq(base_url=real.base_url, api_key="any") as several:
            return await asyncio.gather(*(talk(several, number % 2 == 0) for number in range(8)))

    texts = asyncio.run(talk_all())
    assert texts[::2] == [alone] * 4
    eventually(lambda: real.metrics()[RUNNING] == 0)
    assert real.metrics()[HELD] == 0
