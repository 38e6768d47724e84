"""The load generator's HTTP client: every framing, cut anywhere, connections used again."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from headrace.bench.serve.client import Pool, Server
from headrace.errors import BenchError
from support.chat_server import USAGE, Asked, ChatServer, Reply, answer, serving


class Heard:
    """Collects one answer."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.num_pieces = 0

    def hear_status(self, status: int) -> None:
        self.status = status

    def hear_body(self, data: bytes, at: float) -> None:
        self.body += data
        self.num_pieces += 1


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(20):
            return await work

    return asyncio.run(bounded())


BODY = answer("Hello", " you", usage=USAGE)


@pytest.mark.parametrize("framing", ["chunked", "length", "closing"])
@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_all_framings(framing: str, piece: int) -> None:
    async def asking() -> Heard:
        chat = ChatServer(lambda asked: Reply(BODY, framing=framing, piece=piece))
        async with serving(chat) as url:
            pool, heard = Pool(Server.parse(url)), Heard()
            await pool.ask(pool.server.request("POST", "/chat/completions", b"{}"), heard)
            pool.close()
            return heard

    heard = run(asking())
    assert (heard.status, heard.body) == (200, BODY)


def ask_in_turn(reply: Reply, num_requests: int) -> list[Asked]:
    async def asking() -> list[Asked]:
        chat = ChatServer(lambda asked: reply)
        async with serving(chat) as url:
            pool = Pool(Server.parse(url))
            for _ in range(num_requests):
                await pool.ask(pool.server.request("POST", "/x", b"{}"), Heard())
            pool.close()
        return chat.asked

    return run(asking())


def test_connections_are_used_again() -> None:
    assert [asked.connection for asked in ask_in_turn(Reply(), 3)] == [1, 1, 1]


@pytest.mark.parametrize("reply", [Reply(keep_alive=False), Reply(framing="closing")])
def test_closed_ones_are_not(reply: Reply) -> None:
    assert [asked.connection for asked in ask_in_turn(reply, 3)] == [1, 2, 3]


@pytest.mark.parametrize("was_noticed", [False, True])
def test_one_that_died_idle_is_replaced(was_noticed: bool) -> None:
    async def asking() -> list[int]:
        chat = ChatServer()
        async with serving(chat) as url:
            pool = Pool(Server.parse(url))
            for _ in range(2):
                heard = Heard()
                await pool.ask(pool.server.request("POST", "/x", b"{}"), heard)
                assert heard.status == 200
                for writer in chat.writers:
                    writer.close()
                if was_noticed:
                    await asyncio.sleep(0.02)
            pool.close()
        return [asked.connection for asked in chat.asked]

    assert run(asking()) == [1, 2]


@pytest.mark.parametrize("cut_after", [5, 60, 110])
def test_a_cut_answer_is_an_error(cut_after: int) -> None:
    async def asking() -> None:
        chat = ChatServer(lambda asked: Reply(BODY, cut_after=cut_after))
        async with serving(chat) as url:
            pool = Pool(Server.parse(url))
            with pytest.raises(ConnectionError):
                await pool.ask(pool.server.request("POST", "/x", b"{}"), Heard())
            assert len(chat.asked) == 1, "a request that was answered is not sent again"

    run(asking())


def test_what_is_not_http_is_an_error() -> None:
    async def asking() -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"220 smtp ready\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            pool = Pool(Server.parse(f"127.0.0.1:{port}"))
            with pytest.raises(ConnectionError, match="not HTTP"):
                await pool.ask(pool.server.request("GET", "/models"), Heard())

    run(asking())


def test_requests_are_whole() -> None:
    server = Server.parse("https://host.example/openai/v1/", "secret")
    text = server.request("POST", "/chat/completions", b'{"a":1}').decode()
    head, _, body = text.partition("\r\n\r\n")
    assert head.startswith("POST /openai/v1/chat/completions HTTP/1.1\r\nHost: host.example:443")
    assert "\r\nAuthorization: Bearer secret\r\n" in head
    assert "\r\nContent-Length: 7" in head and body == '{"a":1}'
    assert "Authorization" not in Server.parse("http://host").request("GET", "/models").decode()


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("https://api.groq.com/openai/v1/", "https://api.groq.com:443/openai/v1"),
        ("http://[::1]:9/x", "http://[::1]:9/x"),
    ],
)
def test_base_urls(given: str, url: str) -> None:
    assert Server.parse(given).url == url


@pytest.mark.parametrize("given", ["ftp://x", "http://", "http://host:port", "http://host:99999"])
def test_what_is_no_base_url(given: str) -> None:
    with pytest.raises(BenchError, match="no base URL"):
        Server.parse(given)
