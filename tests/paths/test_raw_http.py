"""From bytes on a socket to bytes on a socket: what clients, proxies and attackers really send."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from headrace.testing import scripted_engine
from support.asgi import streamed_text
from support.bodies import chat_body
from support.live_door import Client, LiveDoor, open_door

TEXT = "The channel carries fast water to the wheel."
ASK = json.dumps(chat_body(model="fake", stream=True)).encode()
HOST = b"host: localhost\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
LENGTH = b"content-length: %d\r\n" % len(ASK)


@pytest.fixture(scope="module")
def door() -> Iterator[LiveDoor]:
    with open_door(scripted_engine(TEXT), max_body_bytes=100_000) as door:
        yield door


@pytest.fixture
def client(door: LiveDoor) -> Iterator[Client]:
    client = Client(door.port)
    yield client
    client.leave()


def everything(client: Client) -> bytes:
    """Until the server closes."""
    received = client._received
    while part := client.socket.recv(65536):
        received += part
    return received


@pytest.mark.parametrize(
    "request_bytes",
    [
        POST + LENGTH + b"\r\n" + ASK,
        POST + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(ASK), ASK),
        POST + LENGTH + b"content-type: text/plain\r\n\r\n" + ASK,
        POST.replace(b"/v1/", b"//openai/v1/openai/v1/") + LENGTH + b"\r\n" + ASK,
        POST.replace(b"chat", b"%63hat") + LENGTH + b"\r\n" + ASK,
        POST.replace(b"completions ", b"completions?a=1&b=%00 ") + LENGTH + b"\r\n" + ASK,
        POST + LENGTH + b"X-Stainless-Lang: python\r\nAuthorization: bearer gsk_x\r\n\r\n" + ASK,
    ],
)
def test_ways_to_ask_the_same(client: Client, request_bytes: bytes) -> None:
    for _ in range(2):  # the connection stays
        client.socket.sendall(request_bytes)
        status, body = client.read_answer()
        assert (status, streamed_text(body)) == (200, TEXT)


def test_a_request_in_single_bytes(client: Client) -> None:
    for byte in POST + LENGTH + b"\r\n" + ASK:
        client.socket.sendall(bytes((byte,)))
    assert streamed_text(client.read_answer()[1]) == TEXT


def test_who_waits_for_leave_to_send_gets_it(client: Client) -> None:
    client.socket.sendall(POST + LENGTH + b"expect: 100-continue\r\n\r\n")
    assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.socket.sendall(ASK)
    assert streamed_text(client.read_answer()[1]) == TEXT


def test_who_asks_leave_for_too_much_is_refused_first(client: Client) -> None:
    client.socket.sendall(POST + b"content-length: 100001\r\nexpect: 100-continue\r\n\r\n")
    status, body = client.read_answer()
    assert status == 413 and json.loads(body)["error"]["code"] == "request_too_large"


def test_a_body_that_is_too_long_is_read_to_its_end_and_forgotten(client: Client) -> None:
    """So that clients get to see the answer, and may go on."""
    for length_told in (True, False):
        long = b"x" * 3_000_000
        if length_told:
            client.socket.sendall(POST + b"content-length: %d\r\n\r\n" % len(long) + long)
        else:
            head = POST + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(long)
            client.socket.sendall(head + long + b"\r\n0\r\n\r\n")
        status, body = client.read_answer()
        assert status == 413 and b"100,000 bytes" in body
        client.socket.sendall(POST + LENGTH + b"\r\n" + ASK)
        assert streamed_text(client.read_answer()[1]) == TEXT


def test_an_older_client_gets_no_chunks(client: Client) -> None:
    client.socket.sendall(POST.replace(b"HTTP/1.1", b"HTTP/1.0") + LENGTH + b"\r\n" + ASK)
    head, _, body = everything(client).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert body.startswith(b"data: ") and body.endswith(b"data: [DONE]\n\n")
    assert streamed_text(body) == TEXT


def test_head_has_no_body(client: Client) -> None:
    for _ in range(2):
        client.socket.sendall(b"HEAD /v1/models HTTP/1.1\r\n" + HOST + b"\r\n")
        head = client.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and re.search(rb"content-length: [1-9]", head)
    client.socket.sendall(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
    assert client.read_answer() == (200, b'{"status":"ok"}\n')


UPGRADE = b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
UPGRADE += b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
GET = b"GET /v1/chat/completions HTTP/1.1\r\n" + HOST


H2C = b"connection: keep-alive, upgrade\r\nupgrade: h2c\r\n"


@pytest.mark.parametrize("wish", [UPGRADE, H2C], ids=["websocket", "h2c"])
def test_a_wish_for_another_protocol_may_be_left_aside(client: Client, wish: bytes) -> None:
    chunked = b"transfer-encoding: chunked\r\n"
    for _ in range(2):  # the connection stays
        client.socket.sendall(POST + LENGTH + wish + b"\r\n" + ASK)
        assert streamed_text(client.read_answer()[1]) == TEXT
        client.socket.sendall(POST + wish + chunked + b"\r\n%x\r\n" % len(ASK))
        client.socket.sendall(ASK + b"\r\n0\r\n\r\n")
        assert streamed_text(client.read_answer()[1]) == TEXT


def test_a_wish_in_single_bytes_and_requests_behind_it(client: Client) -> None:
    for byte in POST + H2C + LENGTH + b"\r\n" + ASK:
        client.socket.sendall(bytes((byte,)))
    assert streamed_text(client.read_answer()[1]) == TEXT
    health = b"GET /health HTTP/1.1\r\n" + HOST
    client.socket.sendall(health + H2C + b"\r\n" + health + b"\r\n")
    for _ in range(2):
        assert client.read_answer() == (200, b'{"status":"ok"}\n')


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (GET + UPGRADE + b"content-length: 5\r\n\r\nhello", 400),
        (GET + UPGRADE + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (GET + UPGRADE.replace(b"13", b"12") + b"\r\n", 400),
        (GET + UPGRADE.replace(b"sec-websocket-key", b"x") + b"\r\n", 400),
        (GET + UPGRADE + b"x: " + b"y" * 9000 + b"\r\n\r\n", 431),
        (GET + UPGRADE + b"x: y\r\n" * 200 + b"\r\n", 431),
    ],
)
def test_what_is_no_handshake_is_answered_and_closed(
    client: Client, request_bytes: bytes, status: int
) -> None:
    client.socket.sendall(request_bytes)
    assert everything(client).startswith(b"HTTP/1.1 %d " % status)


def test_a_handshake_is_made(client: Client) -> None:
    client.socket.sendall(GET + UPGRADE + b"\r\n")
    assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (b"/v1/models/%zz", 404, "model_not_found"),
        (b"/v1/models/%ff%fe", 404, "model_not_found"),
        (b"/v1/models/%00", 404, "model_not_found"),
        (b"/v1/models/%F0%9F%98%80", 404, "model_not_found"),
        (b"/v1/models/a%0d%0aset-cookie:%20x=1", 404, "unknown_url"),
        (b"/v1/%2e%2e/health", 404, "unknown_url"),
        (b"/" + b"a" * 20_000, 404, "unknown_url"),
    ],
)
def test_paths_that_are_odd(client: Client, path: bytes, status: int, code: str) -> None:
    client.socket.sendall(b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    got, body = client.read_answer()
    assert (got, json.loads(body)["error"]["code"]) == (status, code)
    assert len(body) < 1000


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /health HTTP/9.9\r\n" + HOST + b"\r\n",
        b"CONNECT localhost:1 HTTP/1.1\r\n" + HOST + b"\r\n",
        POST + LENGTH + b"content-length: 5\r\n\r\n" + ASK,
        POST + b"content-length: -1\r\n\r\n",
        POST + b"content-length: 18446744073709551616\r\n\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        POST + LENGTH + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"a\x00b: c\r\n\r\n",
        POST + b" folded: x\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_the_envelope_and_is_let_go(
    client: Client, request_bytes: bytes
) -> None:
    client.socket.sendall(request_bytes)
    answer = everything(client)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_nothing_is_left_of_all_that(door: LiveDoor, client: Client) -> None:
    client.socket.sendall(POST + LENGTH + b"\r\n" + ASK)
    assert streamed_text(client.read_answer()[1]) == TEXT
    door.until(lambda: door.serving.num_open == 0)
    door.assert_nothing_is_held()
    assert {fact.status for fact in door.ended} <= {200, 404, 413, 499}
