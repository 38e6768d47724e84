from __future__ import annotations

import base64
from typing import Any

import numpy as np
import orjson
import pytest

from headrace.errors import InvalidRequest
from headrace.wire.body import BodyLimits
from headrace.wire.embedding_answer import embedding_body
from headrace.wire.embedding_request import EMBEDDING, EmbeddingAsk, parse_embedding

LIMITS = BodyLimits()


def parse(strict: bool = False, **body: Any) -> EmbeddingAsk:
    return parse_embedding({"model": "m", "input": "x"} | body, LIMITS, strict=strict)


def test_one_text_and_several() -> None:
    assert parse(input="a text") == EmbeddingAsk("m", ("a text",))
    assert parse(input=["a", "b"]).texts == ("a", "b")
    assert parse(encoding_format="base64").is_base64
    assert not parse(encoding_format="float").is_base64
    assert parse(dimensions=64).dimensions == 64
    assert parse(encoding_format=None, dimensions=None, what=1).ignored == ("what",)


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"input": ""}, "input", "a string that is not empty"),
        ({"input": []}, "input", "1 or more"),
        ({"input": None}, "input", "is missing"),
        ({"input": 5}, "input", "a string or a list of strings"),
        ({"input": ["a", ""]}, "input[1]", "a string that is not empty"),
        ({"input": ["a", 5]}, "input[1]", "a string that is not empty"),
        ({"input": [True]}, "input[0]", "a string that is not empty"),
        ({"input": ["x"] * 2049}, "input", "has 2049 texts; at most 2048"),
        ({"input": [1, 2]}, "input", "token ids.*send texts"),
        ({"input": [[1, 2]]}, "input", "token ids.*check_embedding_ctx_length=False"),
        ({"encoding_format": "int8"}, "encoding_format", "`float` or `base64`"),
        ({"dimensions": 0}, "dimensions", "at least 1"),
        ({"dimensions": "all"}, "dimensions", "whole number"),
        ({"model": None}, "model", "is missing"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as raised:
        parse(**body)
    assert raised.value.param == param


def test_strictly_only_what_groq_has() -> None:
    with pytest.raises(InvalidRequest, match="property 'dimensions' is unsupported"):
        parse(strict=True, dimensions=5)
    assert parse(strict=True, encoding_format="float", user="me").texts == ("x",)


def test_the_schema_says_the_limits() -> None:
    either = EMBEDDING.schema(LIMITS)["properties"]["input"]["anyOf"]
    assert either[0] == {"type": "string", "minLength": 1}
    assert either[1]["maxItems"] == 2048 and either[1]["minItems"] == 1


VECTORS = np.array([[0.6, -0.8], [1.0, 0.1]], np.float32)


def test_vectors_as_numbers_keep_their_bits() -> None:
    body = embedding_body("m", VECTORS, 7, is_base64=False)
    answer = orjson.loads(body)
    assert body.endswith(b"}\n")
    assert list(answer) == ["object", "data", "model", "usage"]
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    got = np.array([item["embedding"] for item in answer["data"]], np.float32)
    assert got.tobytes() == VECTORS.tobytes()


def test_vectors_in_base64_and_what_was_cut() -> None:
    answer = orjson.loads(embedding_body("m", VECTORS, 7, is_base64=True, truncated=[1]))
    raw = b"".join(base64.b64decode(item["embedding"]) for item in answer["data"])
    assert raw == VECTORS.astype("<f4").tobytes()
    assert answer["x_headrace"] == {"truncated": [1]}
