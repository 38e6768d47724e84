from array import array
from typing import Any

import pytest

from headrace.engine.request import MAX_STOPS, Request
from headrace.errors import InvalidRequest


def test_stop_may_be_one_string() -> None:
    assert Request(prompt="a", stop="x").stops == ("x",)
    assert Request(prompt="a", stop=["x", "y"]).stops == ("x", "y")


def test_sampling_carries_every_setting() -> None:
    request = Request(
        prompt="a",
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        repetition_penalty=1.1,
        frequency_penalty=0.2,
        presence_penalty=0.3,
        logit_bias={3: -100},
        logprobs=True,
        top_logprobs=5,
    )
    sampling = request.sampling(choice=2, seed=-1)
    assert sampling.temperature == 0.5
    assert (sampling.top_p, sampling.top_k, sampling.min_p) == (0.9, 40, 0.05)
    assert sampling.repetition_penalty == 1.1
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.2, 0.3)
    assert sampling.logit_bias == ((3, -100),)
    assert (sampling.want_logprob, sampling.num_logprobs) == (True, 5)
    assert (sampling.choice, sampling.seed) == (2, 2**64 - 1)


WRONG: list[tuple[str, Any]] = [
    ("max_tokens", 0),
    ("max_tokens", 1.5),
    ("max_tokens", True),
    ("n", 0),
    ("n", 1000),
    ("n", None),
    ("temperature", -0.1),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("temperature", 10**400),
    ("temperature", "hot"),
    ("temperature", None),
    ("top_p", 1.5),
    ("min_p", -1),
    ("top_k", -1),
    ("top_k", 2.0),
    ("repetition_penalty", 0),
    ("frequency_penalty", 2.5),
    ("presence_penalty", -2.5),
    ("seed", 2**64),
    ("seed", "x"),
    ("logprobs", 1),
    ("ignore_eos", "yes"),
    ("top_logprobs", 21),
    ("stop", [""]),
    ("stop", ["a", 3]),
    ("stop", 3),
    ("stop", ["x"] * (MAX_STOPS + 1)),
    ("logit_bias", {"a": 1.0}),
    ("logit_bias", [1]),
    ("tenant", None),
    ("conversation", ""),
    ("conversation", 7),
    ("conversation", "x" * 129),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda value: repr(value)[:20])
def test_a_wrong_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Request(prompt="a", **{field: value})
    assert caught.value.param == field
    assert f"`{field}" in caught.value.message
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("bias", [float("nan"), float("inf"), "x", True])
def test_a_wrong_bias_names_its_token(bias: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Request(prompt="a", logit_bias={7: bias})
    assert caught.value.param == "logit_bias[7]"


def test_minus_infinity_forbids_a_token() -> None:
    assert Request(prompt="a", logit_bias={7: float("-inf")}).logit_bias[7] == float("-inf")


def test_top_logprobs_need_logprobs() -> None:
    with pytest.raises(InvalidRequest, match="needs `logprobs`"):
        Request(prompt="a", top_logprobs=2)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, "messages"),
        ({"prompt": "a", "token_ids": [1]}, "token_ids"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"content": "hello"}]}, "messages[0].role"),
        ({"token_ids": []}, "token_ids"),
        ({"prompt": b"a"}, "prompt"),
        ({"token_ids": 5}, "token_ids"),
        ({"token_ids": "12"}, "token_ids"),
        ({"token_ids": b"12"}, "token_ids"),
        ({"token_ids": {1: 2}}, "token_ids"),
        ({"token_ids": {1, 2}}, "token_ids"),
        ({"token_ids": (i for i in range(3))}, "token_ids"),
        ({"token_ids": [1, 2.0]}, "token_ids[1]"),
        ({"token_ids": [True]}, "token_ids[0]"),
        ({"token_ids": [1, "2"]}, "token_ids[1]"),
        ({"token_ids": [1, None]}, "token_ids[1]"),
        ({"token_ids": [-1]}, "token_ids[0]"),
        ({"token_ids": [0, 2**31]}, "token_ids[1]"),
    ],
)
def test_exactly_one_usable_prompt(given: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Request(**given)
    assert caught.value.param == param


@pytest.mark.parametrize("token_ids", [[0, 2**31 - 1], (1,), range(3), array("i", [1])])
def test_token_ids_of_any_sequence(token_ids: Any) -> None:
    assert list(Request(token_ids=token_ids).token_ids or ()) == list(token_ids)
