"""What every response carries, and the one fact that is said of every request."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from headrace.observe.observer import Fact, RequestEnded
from headrace.server.exchange import Exchanges, exchange_of
from headrace.server.express import EXTENSION
from headrace.testing import ManualEngine
from headrace.testing.asgi import Call
from support.asgi import CHAT, COMPLETIONS, Door, engine_saying, frames, run, settle
from support.bodies import chat_body

ASK = chat_body(model="fake")
HOST = [("host", "localhost")]


class Facts:
    def __init__(self) -> None:
        self.facts: list[Fact] = []

    def observe(self, fact: Fact) -> None:
        self.facts.append(fact)


def test_the_id_is_the_answer_s() -> None:
    async def play() -> None:
        door = Door()
        whole = await door.answer(door.post(CHAT, ASK))
        assert json.loads(whole.body)["x_groq"]["id"] == whole.header("x-request-id")
        stream = await door.answer(door.post(CHAT, {**ASK, "stream": True}))
        chunks = [json.loads(frame.data) for frame in frames(stream.body)[:-1]]
        ids = [chunk["x_groq"]["id"] for chunk in chunks if "x_groq" in chunk]
        assert ids == [stream.header("x-request-id")] * 2
        assert [fact.request_id for fact in door.ended] == [
            call.header("x-request-id") for call in (whole, stream)
        ]
        assert len({fact.request_id for fact in door.ended}) == 2

    run(play)


@pytest.mark.parametrize(
    ("given", "echoed"),
    [
        ({}, None),
        ({"x-client-request-id": "abc-1"}, "abc-1"),
        ({"x-request-id": "mine"}, "mine"),
        ({"x-request-id": "b", "x-client-request-id": "a"}, "a"),
        ({"x-request-id": "b", "x-client-request-id": ""}, "b"),
        ({"x-client-request-id": "a" * 128}, "a" * 128),
        ({"x-client-request-id": "a" * 129}, None),
        ({"x-client-request-id": "a b"}, None),
        ({"x-client-request-id": "a\tb"}, None),
        ({"x-client-request-id": "é"}, None),
        ({"x-client-request-id": "a\r\nset-cookie: x=1"}, None),
    ],
)
def test_a_client_s_own_id_comes_back_if_it_is_harmless(
    given: dict[str, str], echoed: str | None
) -> None:
    async def play() -> None:
        door = Door()
        for call in (
            await door.answer(door.post(CHAT, ASK, given)),
            await door.call("GET", "/nothing", headers=given).ended(),
        ):
            assert call.header("x-client-request-id") == echoed
            assert (call.header("x-request-id") or "").startswith("req_")
        assert [fact.client_request_id for fact in door.ended] == [echoed] * 2

    run(play)


def test_what_had_no_effect_is_named() -> None:
    async def play() -> None:
        door = Door()
        odd = {"role": "user", "content": "Hi", "mood": 1}
        fields: dict[str, Any] = {"store": True, 'a"\n\x7fé\u2028': 1, "x" * 3000: 1}
        call = await door.answer(door.post(CHAT, chat_body(odd, model="fake", **fields)))
        ignored = call.header("x-headrace-ignored")
        assert call.status == 200 and ignored is not None
        assert "store" in ignored and "messages[0].mood" in ignored
        assert re.fullmatch("[ -~]{1,2048}", ignored)
        call = await door.answer(door.post(CHAT, ASK))
        assert call.header("x-headrace-ignored") is None
        many = {f"field_{i:04}": 1 for i in range(1000)}
        call = await door.answer(door.post(CHAT, chat_body(model="fake", **many)))
        assert len(call.header("x-headrace-ignored") or "") == 2048

    run(play)


def test_who_served_is_named() -> None:
    async def play() -> None:
        door = Door(aliases={"*": "fake", "gpt": "fake"})
        for model in ("fake", "gpt", "anything at all", "é"):
            for stream in (False, True):
                asked = chat_body(model=model, stream=stream)
                call = await door.answer(door.post(CHAT, asked))
                assert call.header("x-headrace-model") == "fake"
                first = frames(call.body)[0].data if stream else call.body
                assert json.loads(first)["model"] == model

    run(play)


def test_the_fact_of_an_answer() -> None:
    async def play() -> None:
        door = Door(engine_saying("Hello."))
        engine = door.engine
        assert isinstance(engine, ManualEngine)
        call = door.post(CHAT, chat_body(model="llama-3.1-8b-instant", n=2, stream=True))
        await settle()
        for _ in range(12):
            engine.clock.advance(0.5)
            await door.turn()
        await call.ended()
        (fact,) = door.ended
        assert fact.status == 200 and fact.is_streamed
        assert (fact.endpoint, fact.tenant) == ("/chat/completions", "local")
        assert (fact.model, fact.served_by) == ("llama-3.1-8b-instant", "fake")
        assert fact.finish_reasons == ("stop", "stop")
        assert fact.num_prompt_tokens == 38 and fact.num_completion_tokens == 14
        assert (fact.error_code, fact.error_message) == (None, None)
        # The second choice waits for the first one's banks.
        assert fact.queued_s == 1.0 and fact.decode_s == 3.0
        assert fact.ttft_s is not None and 0 < fact.ttft_s <= fact.total_s
        assert len(fact.gaps_s) == 12

    run(play)


def test_the_fact_of_several_prompts_is_their_sum() -> None:
    async def play() -> None:
        door = Door(engine_saying("!"))
        asked = {"model": "fake", "prompt": ["a" * 20, "b" * 30], "n": 2}
        call = await door.answer(door.post(COMPLETIONS, asked))
        assert call.status == 200
        (fact,) = door.ended
        assert (fact.num_prompt_tokens, fact.num_completion_tokens) == (50, 8)
        # The second choice of each took the first one's banks; the prompts themselves were new.
        assert fact.num_cached_tokens == 0

    run(play)


def test_what_was_said_is_let_go_when_all_is_told() -> None:
    """Not when the connection closes, which may be much later."""

    async def play() -> None:
        door = Door()
        seen: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope)
            await door.app(scope, receive, send)

        call = await door.answer(Call(app, "POST", CHAT, json.dumps(ASK).encode(), HOST))
        assert call.status == 200
        assert exchange_of(seen[0]).pump is None

    run(play)


def test_the_fact_of_a_refusal() -> None:
    async def play() -> None:
        door = Door()
        await door.answer(door.post(CHAT, chat_body(model="nobody")))
        await door.answer(door.post(CHAT, chat_body(model="fake", temperature=9)))
        first, second = door.ended
        assert (first.status, first.error_code, first.model) == (404, "model_not_found", "nobody")
        assert (first.served_by, first.finish_reasons, first.ttft_s) == (None, (), None)
        assert (second.status, second.error_code) == (400, None)
        assert "`temperature`" in (second.error_message or "")

    run(play)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("num_steps", [0, 3])
def test_the_fact_of_who_left(stream: bool, num_steps: int) -> None:
    async def play() -> None:
        door = Door(ManualEngine())
        asked = {"model": "fake", "prompt": "x", "stream": stream, "ignore_eos": True}
        call = door.post(COMPLETIONS, asked)
        await door.turn(num_steps)
        call.leave()
        await settle()
        await door.turn(2)
        await call.ended()
        (fact,) = door.ended
        assert (fact.status, fact.finish_reasons) == (499, ("cancelled",))
        assert fact.num_completion_tokens == num_steps

    run(play)


def test_each_request_is_one_fact_whatever_happens() -> None:
    async def play() -> None:
        heard = Facts()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            match scope["path"]:
                case "/raises":
                    raise RuntimeError("a bug")
                case "/cut":
                    await send({"type": "http.response.start", "status": 200, "headers": []})
                    await send({"type": "http.response.body", "body": b"a", "more_body": True})
                    raise RuntimeError("a bug")
                case "/silent":
                    return
                case _:
                    await send({"type": "http.response.start", "status": 202, "headers": []})
                    await send({"type": "http.response.body"})

        exchanges = Exchanges(app, heard)
        for path in ("/raises", "/cut"):
            with pytest.raises(RuntimeError):
                await Call(exchanges, "GET", path).ended()
        for path in ("/silent", "/whole"):
            await Call(exchanges, "GET", path).ended()
        statuses = [fact.status for fact in heard.facts if isinstance(fact, RequestEnded)]
        assert statuses == [500, 500, 499, 202]

    run(play)


@pytest.mark.parametrize("is_gone", [False, True])
def test_what_ends_when_its_client_has_gone_was_not_heard(is_gone: bool) -> None:
    """Also where the answer's end comes before anybody was told that the client went."""

    class Transport:
        def is_closing(self) -> bool:
            return is_gone

    async def play() -> None:
        heard = Facts()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x"})

        await Call(Exchanges(app, heard), "GET", "/", extensions={EXTENSION: Transport()}).ended()
        (fact,) = heard.facts
        assert isinstance(fact, RequestEnded) and fact.status == (499 if is_gone else 200)

    run(play)


def test_headers_that_an_application_sends_stay() -> None:
    async def play() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            headers = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"x"})

        call = await Call(Exchanges(app, Facts()), "GET", "/").ended()
        assert [name for name, _ in call.headers] == ["content-type", "x-request-id"]

    run(play)


@pytest.mark.parametrize("log_prompts", [True, False])
def test_what_was_said_is_told_only_where_the_settings_say_so(log_prompts: bool) -> None:
    async def play() -> None:
        door = Door(engine_saying("Hello."), log_prompts=log_prompts)
        await door.answer(door.post(CHAT, {**ASK, "n": 2}))
        await door.answer(door.post(COMPLETIONS, {"model": "fake", "prompt": ["a", "b"]}))
        chat, completion = door.ended
        if not log_prompts:
            assert (chat.prompts, chat.answers, completion.prompts) == ((), (), ())
            return
        assert json.loads(chat.prompts[0]) == ASK["messages"]
        assert completion.prompts == ("a", "b")
        assert chat.answers == completion.answers == ("Hello.", "Hello.")

    run(play)
