"""In these tests upper-case letters come from the template and everything else from a message, so
that each character itself tells what its origin must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.model.template.origins import (
    MESSAGE,
    PREFILL,
    TEMPLATE,
    Traced,
    concatenated,
    joined,
    origins_of,
    traced,
)


def _origins(text: str) -> bytes:
    return bytes(TEMPLATE if character.isupper() else MESSAGE for character in text)


def _traced(text: str) -> Traced:
    return Traced(text, _origins(text))


_TEXTS = st.text(alphabet="AB ab.\n", max_size=12).map(_traced)
_SEPARATORS = st.sampled_from(["a", "A", " ", "ab", ".", "\n", "Bb"]).map(_traced)
_SMALL = st.integers(min_value=-3, max_value=5)


def _assert_traced(value: Any) -> None:
    if isinstance(value, str):
        assert origins_of(value) == _origins(value)
    else:
        for part in value:
            _assert_traced(part)


_OPERATIONS: dict[str, Callable[[str, str, int], Any]] = {
    "add": lambda text, other, _: text + other,
    "slice": lambda text, _, number: (text[number:], text[:number], text[::-1], text[::2]),
    "index": lambda text, _, number: text[number] if -len(text) <= number < len(text) else "",
    "iterate": lambda text, *_: list(text),
    "repeat": lambda text, _, number: (text * number, number * text),
    "strip": lambda text, *_: (text.strip(), text.lstrip(), text.rstrip()),
    "strip what": lambda text, other, _: (text.strip(other), text.lstrip(other)),
    "affixes": lambda text, other, _: (text.removeprefix(other), text.removesuffix(other)),
    "split": lambda text, other, number: (text.split(other), text.split(other, number)),
    "split space": lambda text, _, number: (text.split(), text.split(None, number)),
    "rsplit": lambda text, other, number: (text.rsplit(other), text.rsplit(other, number)),
    "rsplit space": lambda text, _, number: (text.rsplit(), text.rsplit(None, number)),
    "lines": lambda text, *_: (text.splitlines(), text.splitlines(True)),
    "partition": lambda text, other, _: (text.partition(other), text.rpartition(other)),
    "replace": lambda text, other, number: (
        text.replace(other, other),
        text.replace(other, other * 2, number),
    ),
    "join": lambda text, other, _: text.join([other, text, other]),
    "str": lambda text, *_: str(text),
}


@pytest.mark.parametrize("name", _OPERATIONS)
@settings(deadline=None)
@given(text=_TEXTS, other=_SEPARATORS, number=_SMALL)
def test_operations_give_what_bare_strings_give_and_keep_origins(
    name: str, text: Traced, other: Traced, number: int
) -> None:
    result = _OPERATIONS[name](text, other, number)
    assert result == _OPERATIONS[name](str.__str__(text), str.__str__(other), number)
    _assert_traced(result)


@settings(deadline=None)
@given(text=st.text(), method=st.sampled_from(["lower", "upper", "title", "capitalize"]))
def test_case_keeps_lengths_in_step(text: str, method: str) -> None:
    result = getattr(traced(text, MESSAGE), method)()
    assert result == getattr(text, method)()
    assert origins_of(result) == bytes((MESSAGE,)) * len(result)


def test_bare_strings_are_the_templates() -> None:
    both = "AB" + traced("cd", MESSAGE) + "EF"
    assert both == "ABcdEF"
    assert origins_of(both) == bytes((0, 0, 1, 1, 0, 0))
    assert origins_of("bare") == bytes(4)
    assert not isinstance(concatenated(["bare", "er"]), Traced)


def test_joining_with_a_bare_separator() -> None:
    assert origins_of(joined("--", [traced("a", PREFILL), "B"])) == bytes((2, 0, 0, 0))


def test_untraced_operations_belong_to_the_message() -> None:
    for result in (_traced("A%s") % "B", _traced("AB").replace("", "C")):
        assert origins_of(result) == bytes((MESSAGE,)) * len(result)


def test_whole_values_are_traced() -> None:
    value = traced({"key": ["text", 1, None, True, 2.5, {"deep": "er"}]}, MESSAGE)
    assert value == {"key": ["text", 1, None, True, 2.5, {"deep": "er"}]}
    (key,) = value
    assert all(isinstance(text, Traced) for text in (key, value["key"][0]))
    with pytest.raises(TypeError, match="set"):
        traced({1, 2}, MESSAGE)
