"""Bodies of `/completions`: prompts of four kinds, and what they may ask for."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidRequest
from headrace.wire.ask import Ask
from headrace.wire.body import BodyLimits
from headrace.wire.completion_request import COMPLETION, CompletionAsk, parse_completion
from support.bodies import from_schema, json_values

LIMITS = BodyLimits(max_prompts=6)


def parse(prompt: Any = "Water", *, strict: bool = False, **fields: Any) -> CompletionAsk:
    return parse_completion({"model": "m", "prompt": prompt, **fields}, LIMITS, strict=strict)


def refusal(prompt: Any = "Water", **fields: Any) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as caught:
        parse(prompt, **fields)
    return caught.value.message, caught.value.param


def test_the_least_body_has_the_defaults() -> None:
    assert parse() == CompletionAsk((Ask(model="m", prompt="Water", tool_choice="none"),))


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("", [""]),
        (["a", ""], ["a", ""]),
        ([5, 6.0], [(5, 6)]),
        ([[5, 6], [7]], [(5, 6), (7,)]),
    ],
)
def test_each_prompt_is_an_ask(prompt: Any, prompts: list[Any]) -> None:
    asks = parse(prompt, n=2, temperature=0.5).asks
    assert [ask.token_ids or ask.prompt for ask in asks] == prompts
    assert {(ask.n, ask.temperature, ask.messages) for ask in asks} == {(2, 0.5, None)}


def test_answers_are_numbered_prompt_by_prompt() -> None:
    asked = parse(["a", "b"], n=3)
    assert [asked.index(prompt, choice) for prompt in range(2) for choice in range(3)] == [
        *range(6)
    ]


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        (5, "prompt"),
        ([], "prompt"),
        ([[]], "prompt[0]"),
        ([True], "prompt"),
        ([{}], "prompt"),
        (["a", 5], "prompt[1]"),
        ([5, "a"], "prompt[1]"),
        ([-1], "prompt[0]"),
        ([2**31], "prompt[0]"),
        ([[1], 2], "prompt[1]"),
        (["a"] * 7, "prompt"),
    ],
)
def test_any_other_prompt_is_refused(prompt: Any, param: str) -> None:
    assert refusal(prompt)[1] == param


def test_logprobs_is_a_number() -> None:
    first = parse(logprobs=0).first
    assert (first.logprobs, first.top_logprobs) == (True, 0)
    first = parse(logprobs=5).first
    assert (first.logprobs, first.top_logprobs) == (True, 5)
    assert not parse(logprobs=None).first.logprobs
    assert refusal(logprobs=6)[1] == "logprobs"
    assert refusal(logprobs=True)[1] == "logprobs"


def test_echo_and_the_rest() -> None:
    asked = parse(
        echo=True, stream=True, stream_options={"include_usage": True}, stop="x", top_k=3, foo=1
    )
    assert asked.echo
    first = asked.first
    assert (first.stream, first.include_usage, first.stop, first.top_k) == (True, True, ("x",), 3)
    assert first.ignored == ("foo",)


def test_tokens_are_not_echoed() -> None:
    assert refusal([5, 6], echo=True)[1] == "echo"
    assert parse([5, 6], echo=False).first.token_ids == (5, 6)


def test_best_of_is_n() -> None:
    assert parse(n=3, best_of=3).first.n == 3
    assert refusal(best_of=2)[1] == "best_of"
    assert refusal(n=2, best_of=3)[1] == "best_of"


def test_a_suffix_is_refused() -> None:
    assert parse(suffix="") == parse(suffix=None) == parse()
    assert refusal(suffix="x")[1] == "suffix"


def test_answers_are_bounded() -> None:
    assert len(parse(["a"] * 3, n=2).asks) == 3
    assert refusal(["a"] * 3, n=3)[1] == "n"


def test_strictly_the_unknown_is_an_error() -> None:
    assert refusal(strict=True, foo=1)[0] == "property 'foo' is unsupported"
    assert refusal(strict=True, messages=[])[1] == "messages"


ALLOWED = {row.name: from_schema(row.schema(LIMITS)) for row in COMPLETION.fields}
BODIES = st.fixed_dictionaries(
    {"model": ALLOWED.pop("model"), "prompt": ALLOWED.pop("prompt") | json_values},
    optional={name: values | json_values for name, values in ALLOWED.items()}
    | {"foo": json_values},
)


@settings(max_examples=100)
@given(BODIES, st.booleans())
def test_any_body_is_asks_or_a_refusal(body: dict[str, Any], strict: bool) -> None:
    try:
        asks = parse_completion(body, LIMITS, strict=strict).asks
    except InvalidRequest as error:
        assert error.message
        assert error.param is not None
    else:
        assert all((ask.prompt is None) != (ask.token_ids is None) for ask in asks)
