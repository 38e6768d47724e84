import json
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.wire.json_bytes import body, compact, quoted

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_what_could_end_a_script_is_escaped() -> None:
    assert compact({"a<b": "c>d & \u2028\u2029\u2018é"}) == (
        b'{"a\\u003cb":"c\\u003ed \\u0026 \\u2028\\u2029\xe2\x80\x98\xc3\xa9"}'
    )


def test_a_body_ends_with_a_line_end() -> None:
    assert body({"a": [1, None, True]}) == b'{"a":[1,null,true]}\n'


@given(st.text())
def test_quoted_is_compact_for_text(text: str) -> None:
    assert quoted(text) == compact(text)
    assert json.loads(quoted(text)) == text


def test_halves_of_surrogate_pairs_become_replacement_characters() -> None:
    assert json.loads(quoted("a\ud83d<b")) == "a\ufffd<b"
    assert json.loads(compact({"\udc00": ["x\ud800", ("é", 1.5)]})) == {
        "\ufffd": ["x\ufffd", ["é", 1.5]]
    }


def test_numbers_that_the_fast_encoder_refuses() -> None:
    assert compact([2**70, float("inf"), float("nan")]) == b"[1180591620717411303424,null,null]"


@given(JSON_VALUES)
def test_values_come_back(value: object) -> None:
    data = compact(value)
    # The fast path has no word for infinities either.
    expected = json.loads(
        json.dumps(value).replace("-Infinity", "null").replace("Infinity", "null")
    )
    if "Infinity" not in json.dumps(value):
        assert json.loads(data) == expected
    assert not set(b"<>&\n") & set(data)


def test_any_mapping_is_an_object() -> None:
    assert compact(MappingProxyType({"a": MappingProxyType({})})) == b'{"a":{}}'


def test_other_things_are_mistakes() -> None:
    with pytest.raises(TypeError):
        compact({"a": object()})
