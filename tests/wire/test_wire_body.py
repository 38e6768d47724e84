"""Bytes that are a JSON object, and bytes that are none."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidRequest
from headrace.wire.body import BodyLimits, is_deeper, parse_body
from support.bodies import json_values


def test_a_body_is_an_object() -> None:
    assert parse_body(b'{"a":[1,"\xc3\xa4"]}') == {"a": [1, "ä"]}


def test_a_byte_order_mark_is_no_harm() -> None:
    assert parse_body(b'\xef\xbb\xbf{"a":1}') == {"a": 1}


def test_of_a_key_that_is_there_twice_the_last_one_counts() -> None:
    assert parse_body(b'{"n":1,"n":2}') == {"n": 2}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "no body"),
        (b" \n", "no body"),
        (b'{"a":"\xff"}', "not UTF-8: byte 6"),
        ('{"a":1}'.encode("utf-16"), "not UTF-8"),
        (b"{'a':1}", "not valid JSON"),
        (b'{"a":1', "not valid JSON"),
        (b'{"a":NaN}', "not valid JSON"),
        (b'{"a":Infinity}', "not valid JSON"),
        (b'{"a":1}{}', "not valid JSON"),
        (b'{"a":"\\ud800"}', "not valid JSON"),
        (b"model=m&stream=true", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", "more than 64 levels"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "more than 64 levels"),
    ],
)
def test_anything_else_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        parse_body(raw)


def test_depth_counts_what_is_inside_each_other() -> None:
    assert parse_body(b'{"a":' + b"[" * 63 + b"]" * 63 + b"}")
    wide = {"a": [[] for _ in range(1000)]}
    assert parse_body(orjson.dumps(wide)) == wide
    with pytest.raises(InvalidRequest, match="more than 2 levels"):
        parse_body(orjson.dumps(wide), BodyLimits(max_depth=2))


@given(json_values)
def test_depth_is_exact(value: object) -> None:
    def depth(value: object) -> int:
        if isinstance(value, dict):
            value = list(value.values())
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    assert not is_deeper(value, depth(value))
    assert depth(value) == 0 or is_deeper(value, depth(value) - 1)


@settings(max_examples=50)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values))
def test_nothing_is_lost(body: dict[str, object]) -> None:
    assert parse_body(orjson.dumps(body)) == body
