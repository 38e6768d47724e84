"""Every URL, and what an error looks like wherever it comes from."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from headrace import errors
from headrace.errors import HeadraceError
from headrace.server.app import NOT_OFFERED, Refusals, Routes
from headrace.server.exchange import Exchanges
from headrace.server.keys import KeyStore
from headrace.server.paths import PREFIXES
from headrace.testing.asgi import Call
from support.asgi import CHAT, COMPLETIONS, Door, frames, run, settle
from support.bodies import chat_body

REQUEST_ID = re.compile(r"req_[0-9a-hjkmnp-tv-z]{26}")
API = {
    ("POST", "/chat/completions"),
    ("POST", "/completions"),
    ("POST", "/responses"),
    ("POST", "/embeddings"),
    ("GET", "/models"),
    ("GET", "/models/fake"),
}
ROOT = {
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
}
EVERYTHING = {(m, p + path) for m, path in API for p in PREFIXES} | ROOT
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW")


def envelope(call: Call) -> dict[str, Any]:
    """The inside of an error, as it stands on the wire."""
    assert call.header("content-type") == "application/json"
    assert call.header("content-length") == str(len(call.body))
    assert call.is_whole and call.body.endswith(b"}\n")
    body = json.loads(call.body)
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    return error


def test_all_urls_answer() -> None:
    async def play() -> None:
        door = Door()
        for method, path in sorted(EVERYTHING):
            call = await door.answer(door.call(method, path))
            # What asks has no body here.
            assert call.status == (400 if method == "POST" else 200), path
            request_id = call.header("x-request-id")
            assert request_id is not None and REQUEST_ID.fullmatch(request_id)

    run(play)


def test_a_base_url_that_is_not_whole_is_completed() -> None:
    async def play() -> None:
        call = await Door().call("POST", "/chat/completions").ended()
        assert (call.status, envelope(call)["code"]) == (404, "unknown_url")
        assert "did you mean /openai/v1/chat/completions?" in envelope(call)["message"]
        call = await Door().call("POST", "/chat/nothing").ended()
        assert envelope(call)["message"].endswith("see the docs at /docs")

    run(play)


@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_method_is_an_unknown_url(method: str) -> None:
    async def play() -> None:
        door = Door()
        for known, path in sorted(EVERYTHING):
            if known == method:
                continue
            call = await door.call(method, path).ended()
            assert call.status == 404
            assert envelope(call) == {
                "message": f"Unknown request URL: {method} {path}. Please check the URL for typos, "
                "or see the docs at /docs",
                "type": "invalid_request_error",
                "code": "unknown_url",
            }
            assert call.header("allow") is None

    run(play)


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/openai/v1",
        "/v2/chat/completions",
        "/chat/completions",
        "/openai/v1/chat",
        "/openai/v1/chat/completions/x",
        "/models",
        "/v1/health",
        "/favicon.ico",
        "/v1/../health",
        "/%00",
        "/é",
    ],
)
def test_no_other_url_is_known(path: str) -> None:
    async def play() -> None:
        call = await Door().call("GET", path).ended()
        assert (call.status, envelope(call)["code"]) == (404, "unknown_url")

    run(play)


def test_a_long_url_is_told_in_part() -> None:
    async def play() -> None:
        call = await Door().call("GET", "/" + "a" * 5000).ended()
        assert call.status == 404
        assert len(envelope(call)["message"]) < 400

    run(play)


def test_keys_of_an_error_are_in_order() -> None:
    async def play() -> None:
        door = Door()
        unknown = await door.call("GET", "/nothing").ended()
        assert list(envelope(unknown)) == ["message", "type", "code"]
        wrong = await door.answer(door.post(CHAT, chat_body(temperature=9)))
        assert list(envelope(wrong)) == ["message", "type", "param"]
        long = await door.answer(door.post(CHAT, chat_body(model="fake", max_tokens=250)))
        assert list(envelope(long)) == ["message", "type", "code", "param"]

    run(play)


@pytest.mark.parametrize("path", NOT_OFFERED)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_what_groq_has_and_we_do_not(path: str, method: str) -> None:
    async def play() -> None:
        for prefix in PREFIXES:
            asked = path.replace("{rest:path}", "a/b")
            call = await Door().call(method, prefix + asked).ended()
            assert call.status == 404
            error = envelope(call)
            assert error["code"] == "endpoint_not_offered"
            assert error["message"].startswith(f"headrace does not offer {asked};")

    run(play)


def test_models_by_any_spelling() -> None:
    async def play() -> None:
        door = Door(aliases={"openai/gpt-oss-20b": "fake"})
        for spelled in ("openai/gpt-oss-20b", "openai%2Fgpt-oss-20b", "openai%2fgpt-oss-20b/"):
            call = await door.call("GET", f"/openai/v1/models/{spelled}").ended()
            assert call.status == 200
            card = json.loads(call.body)
            assert card["id"] == "openai/gpt-oss-20b"
        listed = json.loads((await door.call("GET", "/v1/models").ended()).body)
        assert [card["id"] for card in listed["data"]] == [
            *("fake", "openai/gpt-oss-20b", "all-minilm-l6-v2"),
        ]
        assert listed["data"][1] == card
        call = await door.call("GET", "/v1/models/openai%2Fother").ended()
        assert call.status == 404
        assert envelope(call) == {
            "message": "The model `openai/other` does not exist or you do not have access to it.",
            "type": "invalid_request_error",
            "code": "model_not_found",
        }

    run(play)


def test_head_is_get_without_a_body() -> None:
    """ASGI servers drop the body; the headers must be those of GET."""

    async def play() -> None:
        door = Door()
        for path in ("/health", "/ready", "/v1/models", "/v1/models/fake"):
            get, head = [await door.call(method, path).ended() for method in ("GET", "HEAD")]
            told = [{n: v for n, v in c.headers if n != "x-request-id"} for c in (get, head)]
            assert (head.status, told[1]) == (get.status, told[0])
        assert (await door.call("HEAD", CHAT).ended()).status == 404

    run(play)


def test_keys_are_asked_for_where_something_is_told(tmp_path: Path) -> None:
    async def play() -> None:
        keys = KeyStore(tmp_path / "keys.json")
        _, secret = keys.create("me")
        door = Door(keys=keys)
        for method, path in sorted(EVERYTHING):
            call = await door.answer(door.call(method, path))
            if (method, path) in ROOT:
                assert call.status == 200
                continue
            assert call.status == 401
            assert envelope(call) == {
                "message": "Invalid API Key",
                "type": "invalid_request_error",
                "code": "invalid_api_key",
            }
            bearer = {"authorization": f"Bearer {secret}"}
            call = await door.answer(door.call(method, path, headers=bearer))
            assert call.status == (400 if method == "POST" else 200)
        tenants = {fact.tenant for fact in door.ended if fact.status in (200, 400)}
        assert len(tenants - {""}) == 1

    run(play)


def test_a_foreign_page_is_kept_out_and_fills_no_metrics() -> None:
    async def play() -> None:
        door = Door()
        for path in (CHAT, "/health", "/made/up/1", "/made/up/2"):
            call = await door.call("POST", path, headers={"origin": "https://evil.example"}).ended()
            assert (call.status, envelope(call)["code"]) == (403, "forbidden")
        assert {fact.endpoint for fact in door.ended} <= {"other", "/chat/completions", "/health"}

    run(play)


def test_preflights_fill_no_metrics() -> None:
    async def play() -> None:
        door = Door(cors_origins=("https://app.example",))
        asking = {"origin": "https://app.example", "access-control-request-method": "POST"}
        for path in (CHAT, "/made/up/1", "/made/up/2"):
            call = await door.call("OPTIONS", path, headers=asking).ended()
            assert call.status == 204 and call.header("x-request-id")
        assert {fact.endpoint for fact in door.ended} <= {"other", "/chat/completions"}

    run(play)


# --- errors, wherever they come from --------------------------------------------------------------


def _every_error() -> list[HeadraceError]:
    """One of each class in the tree that can be made of a message, and of those that cannot."""
    made: list[HeadraceError] = []
    for error in vars(errors).values():
        if not (isinstance(error, type) and issubclass(error, HeadraceError)):
            continue
        if error.__name__.startswith("_"):
            continue
        if issubclass(error, errors.RateLimited):
            made.append(error("m", wire_type="tokens", retry_after_s=61.5, limit="TPM"))
        elif issubclass(error, errors._FailedAnswer):
            made.append(error("m", "the text"))
        elif issubclass(error, errors.Unavailable):
            made.append(error("m", retry_after_s=1.2))
        else:
            made.append(error("m", param="p"))
    return made


@pytest.mark.parametrize("error", _every_error(), ids=lambda error: type(error).__name__)
def test_every_error_has_its_status_and_envelope(error: HeadraceError) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise error

    async def play() -> None:
        call = await Call(Refusals(app), "POST", "/x").ended()
        assert call.status == error.status
        expected = {
            "message": "m",
            "type": error.wire_type,
            "code": error.code,
            "param": error.param,
            "failed_generation": error.failed_generation,
        }
        told = {name: value for name, value in expected.items() if value is not None}
        assert list(envelope(call).items()) == list(told.items())
        retry, again = call.header("retry-after"), call.header("x-should-retry")
        match error.retry_after_s:
            case None:
                assert (retry, again) == (None, None)
            case 1.2:
                assert (retry, again) == ("2", None)
            case _:
                assert (retry, again) == ("62", "false")

    run(play)


def test_a_bug_tells_no_details(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("secret")

    async def play() -> None:
        call = await Call(Refusals(app), "POST", "/x").ended()
        assert call.status == 500
        assert envelope(call) == {
            "message": "Internal Server Error",
            "type": "internal_server_error",
        }

    run(play)
    assert "secret" in caplog.text


@pytest.mark.parametrize("error", [KeyError("secret"), errors.GenerationFailed("late")])
def test_an_error_after_the_first_byte_ends_the_connection(error: Exception) -> None:
    """The server closes it where the application raises."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise error

    async def play() -> None:
        call = Call(Refusals(app), "POST", "/x")
        with pytest.raises(type(error)):
            await call.ended()
        assert call.status == 200 and not call.is_whole

    run(play)


def test_a_handler_that_fails_is_told_of_as_500(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        door = Door()

        def broken(*args: Any) -> None:
            raise RuntimeError("secret")

        monkeypatch.setattr(door.serving.registry, "cards", broken)
        call = await door.call("GET", "/v1/models").ended()
        assert call.status == 500 and b"secret" not in call.body
        assert REQUEST_ID.fullmatch(call.header("x-request-id") or "")
        (fact,) = door.ended
        assert (fact.status, fact.endpoint) == (500, "/models")

    run(play)


def test_a_cancelled_request_is_no_answer() -> None:
    async def play() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.sleep(60)

        call = Call(Refusals(app), "POST", "/x")
        await settle()
        call._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call.ended()
        assert call.status is None

    run(play)


def test_lifespan_passes_and_unknown_websockets_do_not() -> None:
    seen: list[str] = []
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def play() -> None:
        await Refusals(app)({"type": "lifespan"}, None, send)  # type: ignore[arg-type]
        door = Door()
        socket = {"type": "websocket", "path": COMPLETIONS, "headers": [(b"host", b"localhost")]}
        await door.app(socket, None, send)  # type: ignore[arg-type]
        assert [(fact.status, fact.error_code) for fact in door.ended] == [(403, "unknown_url")]

    run(play)
    assert seen == ["lifespan"]
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_routes_are_found_once() -> None:
    """A request that no route takes is told so before any handler ran."""

    async def play() -> None:
        facts: list[Any] = []

        class Facts:
            def observe(self, fact: Any) -> None:
                facts.append(fact)

        app = Exchanges(Refusals(Routes([], {})), Facts())
        call = await Call(app, "GET", "/x").ended()
        assert call.status == 404
        assert [fact.endpoint for fact in facts] == ["other"]

    run(play)


# --- load that is declared ------------------------------------------------------------------------


def test_a_model_that_is_loading() -> None:
    async def play() -> None:
        door = Door(is_loaded=False)
        assert (await door.call("GET", "/health").ended()).status == 200
        assert (await door.call("GET", "/ready").ended()).status == 503
        for call in (
            await door.answer(door.post(CHAT, chat_body(model="fake"))),
            await door.call("GET", "/v1/models").ended(),
            await door.call("GET", "/v1/models/fake").ended(),
        ):
            assert (call.status, envelope(call)["code"]) == (503, "model_loading")
            assert call.header("retry-after") == "2"
        unknown = await door.answer(door.post(CHAT, chat_body(model="nobody")))
        assert unknown.status == 404
        door.load()
        call = await door.answer(door.post(CHAT, chat_body(model="fake")))
        assert call.status == 200
        door.assert_nothing_is_held()

    run(play)


def test_a_server_that_drains_finishes_what_it_has() -> None:
    async def play() -> None:
        door = Door(drain_timeout_s=7)
        first = door.post(CHAT, chat_body(model="fake", stream=True))
        await door.turn(3)
        assert first.status == 200 and door.serving.num_open == 1
        door.serving.begin_drain()
        late = await door.answer(door.post(CHAT, chat_body(model="fake")))
        assert (late.status, envelope(late)["code"]) == (503, "server_draining")
        assert late.header("retry-after") == "7"
        await door.answer(first)
        assert frames(first.body)[-1].data == "[DONE]"
        door.assert_nothing_is_held()

    run(play)


def test_an_engine_that_is_full() -> None:
    async def play() -> None:
        from support.asgi import engine_saying

        door = Door(engine_saying("Hello.", max_pending=1))
        first = door.post(CHAT, chat_body(model="fake"))
        await settle()
        second = await door.answer(door.post(CHAT, chat_body(model="fake")))
        assert (second.status, envelope(second)["code"]) == (503, "engine_overloaded")
        assert int(second.header("retry-after") or 0) >= 1
        await door.answer(first)
        assert first.status == 200
        door.assert_nothing_is_held()

    run(play)


def test_an_engine_that_is_closed() -> None:
    async def play() -> None:
        door = Door()
        door.engine.close()
        call = await door.answer(door.post(CHAT, chat_body(model="fake")))
        assert (call.status, envelope(call)["code"]) == (503, "engine_closed")
        assert door.serving.num_open == 0

    run(play)
