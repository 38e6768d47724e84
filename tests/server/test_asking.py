"""From a question to a running generation: what is refused, reserved, and given back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.engine.request import Request
from headrace.errors import InvalidRequest
from headrace.testing import ManualEngine
from headrace.testing.asgi import Call
from support.asgi import CHAT, COMPLETIONS, RESPONSES, Door, engine_saying, run, settle
from support.bodies import chat_body

ANSWER = "Hello."
PROMPT = "Why is the sky blue?"
NUM_PROMPT = len(PROMPT)
"""Tokens of a raw prompt: a token a byte."""
NUM_SAID = len(ANSWER) + 1
CONTEXT = 256


def asking(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "prompt": PROMPT, **fields}


def error(call: Call) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call.body)["error"]
    return found


def left_of(call: Call) -> dict[str, str]:
    """The rate-limit headers, by the end of their names."""
    start = "x-ratelimit-"
    return {name.removeprefix(start): v for name, v in call.headers if name.startswith(start)}


@pytest.fixture
def limits(tmp_path: Path) -> str:
    """100 tokens a minute, 5 requests a day."""
    path = tmp_path / "limits.toml"
    path.write_text("[default]\ntpm = 100\nrpd = 5\n")
    return str(path)


# --- what cannot fit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        (CHAT, chat_body(model="fake", max_tokens=CONTEXT + 1), "max_completion_tokens"),
        (CHAT, chat_body(model="fake", max_completion_tokens=10**9), "max_completion_tokens"),
        (COMPLETIONS, asking(max_tokens=CONTEXT + 1), "max_tokens"),
        (
            RESPONSES,
            {"model": "fake", "input": "Hi", "max_output_tokens": CONTEXT + 1},
            "max_output_tokens",
        ),
    ],
)
def test_more_than_the_model_can_say(path: str, body: dict[str, Any], name: str) -> None:
    async def play() -> None:
        door = Door()
        call = await door.answer(door.post(path, body))
        assert call.status == 400
        assert error(call) == {
            "message": f"`{name}` must be less than or equal to `{CONTEXT}`, the maximum value for "
            f"`{name}` is less than the `context_window` for this model",
            "type": "invalid_request_error",
            "param": name,
        }
        door.assert_nothing_is_held()

    run(play)


def test_an_explicit_limit_must_fit_and_the_default_is_capped() -> None:
    async def play() -> None:
        # Says what it is told to for ever.
        door = Door(ManualEngine())
        room = CONTEXT - NUM_PROMPT
        fits = await door.answer(door.post(COMPLETIONS, asking(max_tokens=room, ignore_eos=True)))
        assert fits.status == 200
        over = await door.answer(door.post(COMPLETIONS, asking(max_tokens=room + 1)))
        assert (over.status, error(over)["code"]) == (400, "context_length_exceeded")
        assert "Please reduce the length of the messages or completion." in error(over)["message"]
        assert f"has {NUM_PROMPT} tokens" in error(over)["message"]
        capped = await door.answer(door.post(COMPLETIONS, asking(ignore_eos=True)))
        (choice,) = json.loads(capped.body)["choices"]
        usage = json.loads(capped.body)["usage"]
        assert (choice["finish_reason"], usage["completion_tokens"]) == ("length", room)
        door.assert_nothing_is_held()

    run(play)


@pytest.mark.parametrize("num_chars", [CONTEXT, 20_000])
def test_a_prompt_that_does_not_fit(num_chars: int) -> None:
    async def play() -> None:
        door = Door()
        call = await door.answer(door.post(COMPLETIONS, asking(prompt="x" * num_chars)))
        assert (call.status, error(call)["code"]) == (400, "context_length_exceeded")
        assert "None" not in error(call)["message"]
        door.assert_nothing_is_held()

    run(play)


def test_long_prompts_are_prepared_beside_the_loop() -> None:
    """While one is prepared, the loop turns; what comes of it is the same."""

    async def play() -> None:
        door = Door(engine_saying(ANSWER, context_length=None))
        raw = chat_body({"role": "user", "content": "x" * 20_000}, model="fake")
        call = await door.answer(door.post(CHAT, raw))
        assert (call.status, error(call)["param"]) == (400, "messages")
        door.assert_nothing_is_held()

    run(play)


def test_of_several_prompts_one_that_is_refused_refuses_all() -> None:
    async def play() -> None:
        door = Door()
        call = await door.answer(door.post(COMPLETIONS, asking(prompt=["a", "x" * 300])))
        assert (call.status, error(call)["code"]) == (400, "context_length_exceeded")
        door.assert_nothing_is_held()

    run(play)


@pytest.mark.parametrize("bias", [{"260": 1}, {"100000": -5}])
def test_what_only_the_engine_knows_is_refused_as_well(bias: dict[str, int]) -> None:
    async def play() -> None:
        door = Door()
        call = await door.answer(door.post(COMPLETIONS, asking(logit_bias=bias)))
        assert (call.status, error(call)["param"]) == (400, "logit_bias")
        door.assert_nothing_is_held()

    run(play)


def test_a_bug_below_gives_all_back(limits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        door = Door(limits=limits)

        def broken(*args: Any) -> Any:
            raise RuntimeError("secret")

        with monkeypatch.context() as patch:
            patch.setattr(door.engine, "submit", broken)
            call = await door.answer(door.post(COMPLETIONS, asking()))
        assert call.status == 500 and b"secret" not in call.body
        assert left_of(call)["remaining-tokens"] == "100"
        door.assert_nothing_is_held()

    run(play)


# --- flex -----------------------------------------------------------------------------------------


def test_flex_is_answered_where_there_is_room() -> None:
    async def play() -> None:
        door = Door()
        call = await door.answer(door.post(CHAT, chat_body(model="fake", service_tier="flex")))
        assert (call.status, json.loads(call.body)["service_tier"]) == (200, "flex")

    run(play)


def test_flex_does_not_wait(limits: str) -> None:
    async def play() -> None:
        door = Door(engine_saying(ANSWER, max_running=1), limits=limits)
        running = door.post(COMPLETIONS, asking(max_tokens=10))
        await settle()
        flex = await door.answer(door.post(CHAT, chat_body(model="fake", service_tier="flex")))
        assert flex.status == 498
        assert error(flex) == {
            "message": "No capacity for flex requests now. Try again later, or use `on_demand`, "
            "which waits.",
            "type": "invalid_request_error",
            "code": "capacity_exceeded",
        }
        # It took nothing of the limits.
        assert left_of(flex)["remaining-tokens"] == str(100 - NUM_PROMPT - 10)
        assert left_of(flex)["remaining-requests"] == "4"
        assert (await door.answer(running)).status == 200
        door.assert_nothing_is_held()

    run(play)


# --- limits ---------------------------------------------------------------------------------------


def test_what_was_used_counts_and_no_more(limits: str) -> None:
    async def play() -> None:
        door = Door(limits=limits)
        call = door.post(COMPLETIONS, asking(max_tokens=50, stream=True))
        await door.turn()
        # Reserved: prompt and `max_tokens`.
        assert left_of(call) == {
            "limit-requests": "5",
            "limit-tokens": "100",
            "remaining-requests": "4",
            "remaining-tokens": str(100 - NUM_PROMPT - 50),
            "reset-requests": "4h48m0s",
            "reset-tokens": "42s",
        }
        await door.answer(call)
        after = await door.answer(door.post(COMPLETIONS, asking(max_tokens=1, prompt="x")))
        used = NUM_PROMPT + NUM_SAID
        assert left_of(after)["remaining-tokens"] == str(100 - used - 2)

    run(play)


def test_tokens_from_the_cache_are_free(limits: str) -> None:
    async def play() -> None:
        door = Door(limits=limits)
        for num_computed in (32, 1, 1):
            # All but the last one, whose logits are needed.
            before = door.serving.limit_headers("local", "fake")
            call = await door.answer(door.post(COMPLETIONS, asking(prompt="a" * 32, max_tokens=1)))
            assert call.status == 200
            assert _left(before) - _left(door.serving.limit_headers("local", "fake")) == (
                num_computed + 1
            )

    run(play)


def _left(headers: list[tuple[bytes, bytes]]) -> int:
    return int(dict(headers)[b"x-ratelimit-remaining-tokens"])


def test_choices_of_one_prompt_pay_for_it_once(limits: str) -> None:
    async def play() -> None:
        door = Door(limits=limits)
        for body in (asking(n=3), asking(prompt=[PROMPT, "y" * 5])):
            before = _left(door.serving.limit_headers("local", "fake"))
            call = await door.answer(door.post(COMPLETIONS, body))
            assert call.status == 200
            usage = json.loads(call.body)["usage"]
            cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
            used = before - _left(door.serving.limit_headers("local", "fake"))
            assert used == usage["total_tokens"] - cached

    run(play)


def test_a_limit_that_is_used_up(limits: str) -> None:
    async def play() -> None:
        door = Door(limits=limits)
        assert (await door.answer(door.post(COMPLETIONS, asking(max_tokens=70)))).status == 200
        for stream in (False, True):
            call = await door.answer(door.post(COMPLETIONS, asking(max_tokens=70, stream=stream)))
            assert call.status == 429
            assert list(error(call)) == ["message", "type", "code"]
            assert (error(call)["type"], error(call)["code"]) == ("tokens", "rate_limit_exceeded")
            assert (
                "Rate limit reached for model `fake` in organization `org_local` service tier "
                f"`on_demand` on tokens per minute (TPM): Limit 100, Used {NUM_PROMPT + NUM_SAID}, "
                f"Requested {NUM_PROMPT + 70}. Please try again in "
            ) in error(call)["message"]
            assert int(call.header("retry-after") or 0) in (10, 11)
            assert len(left_of(call)) == 6
        assert [(hit.model, hit.limit) for hit in door.limit_hits] == [("fake", "TPM")] * 2
        door.assert_nothing_is_held()

    run(play)


def test_a_request_that_no_waiting_helps(limits: str) -> None:
    async def play() -> None:
        door = Door(limits=limits)
        call = await door.answer(door.post(COMPLETIONS, asking(max_tokens=81)))
        assert (call.status, error(call)["code"]) == (413, "rate_limit_exceeded")
        assert "Limit 100, Requested 101, please reduce" in error(call)["message"]
        assert call.header("retry-after") is None
        assert left_of(call)["remaining-tokens"] == "100"

    run(play)


def test_refusals_that_have_nothing_to_do_with_limits_do_not_tell_them(limits: str) -> None:
    async def play() -> None:
        door = Door(limits=limits)
        for path, body, status in (
            (COMPLETIONS, asking(temperature=9), 400),
            (COMPLETIONS, asking(max_tokens=CONTEXT), 400),
            (COMPLETIONS, asking(max_tokens=CONTEXT + 1), 400),
            (COMPLETIONS, asking(prompt="x" * 300), 400),
            (COMPLETIONS, asking(model="nobody"), 404),
            ("/v1/nothing", asking(), 404),
            (COMPLETIONS, {"x": "y" * 5_000_000}, 413),
        ):
            call = await door.answer(door.post(path, body))
            assert (call.status, left_of(call)) == (status, {})

    run(play)


def test_an_engine_that_refuses_gives_the_share_back(limits: str) -> None:
    async def play() -> None:
        door = Door(engine_saying(ANSWER, max_pending=1), limits=limits)
        first = door.post(COMPLETIONS, asking(max_tokens=10))
        await settle()
        second = await door.answer(door.post(COMPLETIONS, asking(max_tokens=10)))
        assert second.status == 503
        assert left_of(second)["remaining-requests"] == "4"
        assert left_of(second)["remaining-tokens"] == str(100 - NUM_PROMPT - 10)
        await door.answer(first)
        assert _left(door.serving.limit_headers("local", "fake")) == 100 - NUM_PROMPT - NUM_SAID

    run(play)


@pytest.mark.parametrize("num_steps", [0, 1, 4])
def test_who_leaves_pays_for_what_was_computed(limits: str, num_steps: int) -> None:
    async def play() -> None:
        door = Door(ManualEngine(), limits=limits)
        call = door.post(COMPLETIONS, asking(max_tokens=70, ignore_eos=True, stream=True))
        await settle()
        await door.turn(num_steps)
        call.leave()
        await settle()
        await door.turn(2)
        await call.ended()
        used = NUM_PROMPT + num_steps if num_steps else 0
        assert _left(door.serving.limit_headers("local", "fake")) == 100 - used
        door.assert_nothing_is_held()

    run(play)


def test_limits_are_per_name_as_asked_for(limits: str) -> None:
    async def play() -> None:
        door = Door(limits=limits)
        for model in ("fake", "llama-3.1-8b-instant"):
            call = await door.answer(door.post(COMPLETIONS, asking(model=model, max_tokens=70)))
            assert call.status == 200 and call.header("x-headrace-model") == "fake"
            assert left_of(call)["remaining-requests"] == "4"

    run(play)


def test_who_invents_names_has_no_limits_of_their_own(limits: str) -> None:
    async def play() -> None:
        door = Door(limits=limits, aliases={"*": "fake", "mine": "fake"})
        for model, num_left in (("fake", 4), ("x1", 3), ("x2", 2), ("mine", 4)):
            call = await door.answer(door.post(COMPLETIONS, asking(model=model, max_tokens=1)))
            assert (call.status, left_of(call)["remaining-requests"]) == (200, str(num_left))

    run(play)


# --- what reaches the engine ----------------------------------------------------------------------


def test_every_field_reaches_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Request] = []
    fields: dict[str, Any] = {
        "max_tokens": 3,
        "stop": ["x", "y"],
        "n": 2,
        "ignore_eos": True,
        "temperature": 0.25,
        "top_p": 0.5,
        "top_k": 4,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "frequency_penalty": 0.75,
        "presence_penalty": -0.5,
        "logit_bias": {"7": 2},
        "seed": 11,
        "logprobs": True,
        "top_logprobs": 2,
    }

    async def play() -> None:
        door = Door()
        prepare = door.engine.prepare

        def listening(request: Request) -> Any:
            heard.append(request)
            return prepare(request)

        monkeypatch.setattr(door.engine, "prepare", listening)
        call = await door.answer(door.post(CHAT, chat_body(model="fake", **fields)))
        assert call.status == 200

    run(play)
    (request,) = heard
    assert request.tenant == "local"
    assert request.logit_bias == {7: 2}
    for name, value in fields.items():
        if name != "logit_bias":
            found = getattr(request, name)
            assert (list(found) if isinstance(found, tuple) else found) == value, name


def test_the_engine_s_checks_name_fields_of_the_wire() -> None:
    """Where the wire lets something pass that the engine refuses, it is still a 400."""

    async def play() -> None:
        door = Door()

        def refusing(request: Request) -> Any:
            raise InvalidRequest("`top_k` is wrong", param="top_k")

        door.engine.prepare = refusing  # type: ignore[method-assign]
        call = await door.answer(door.post(COMPLETIONS, asking()))
        assert (call.status, error(call)["param"]) == (400, "top_k")

    run(play)
