"""What is known of a prompt before its text is whole."""

from __future__ import annotations

from array import array
from functools import cache

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from headrace.model.prompt import RenderedPrompt
from headrace.model.tokenizer import Tokenizer
from headrace.server.socket.ahead import common, probes
from support import golden

PIECES = st.one_of(
    st.text(),
    st.text(" \t\n\r  ", max_size=4),
    st.sampled_from(
        ["a", "don't", "I'll", "1234567", "3.14", "e\u0301", "\u0301", "你好", "。", "、", "안녕",
         "!!", "...", "😀", "👩‍👩‍👧", "_x_", "<|im_end|>", "#", "##", "x;", "‮", "ﬁ", "ß", "\u3000"]
    ),
)  # fmt: skip
TEXTS = st.lists(PIECES, min_size=1, max_size=12).map("".join)
TOKENIZERS = ["smollm", "llama-bpe", "qwen2", "gpt-4o", "tekken", "deepseek-v3", "scored"]


@cache
def tokenizer(name: str) -> Tokenizer:
    return golden.scored(has_prefix=True) if name == "scored" else golden.byte_level(name)


def prompt(name: str, text: str, *, trims: bool = False) -> array[int]:
    """As a chat template writes it."""
    text = text.strip() if trims else text
    before, after = "user\n", "\nassistant\n"
    start, end = len(before), len(before) + len(text)
    spans = ((0, start), (end, end + len(after)))
    return array("i", tokenizer(name).encode_prompt(RenderedPrompt(before + text + after, spans)))


@pytest.mark.parametrize("trims", [False, True])
@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=TEXTS, more=TEXTS)
@example(text="foo\n ", more="\nbar")
@example(text="one tw", more="o")
@example(text="#", more="#")
@example(text="0", more="#")
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_follows_begins_with_what_is_known(
    name: str, trims: bool, text: str, more: str
) -> None:
    assume((text + more).strip())  # without a text there is no message
    one, other = (prompt(name, each, trims=trims) for each in probes(text))
    known = common(one, other)
    assert prompt(name, text + more, trims=trims)[: len(known)] == known


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_known_is_nearly_all(name: str) -> None:
    text = "The quick brown fox jumps over the lazy dog, and the river runs on to the se"
    one, other = (prompt(name, each) for each in probes(text))
    stem = prompt(name, text.removesuffix(" se"))
    after = len(prompt(name, "")) - len(common(prompt(name, "a"), prompt(name, "b")))
    assert len(common(one, other)) >= len(stem) - after - 3


def test_of_one_word_nothing_is_known() -> None:
    for text in ("", "hel", "  hel", "   ", "#", "##"):
        one, other = probes(text)
        assert one.strip()[:1] != other.strip()[:1]


@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 2), max_size=12))
def test_common(one: list[int], other: list[int]) -> None:
    num = len(common(array("i", one), array("i", other)))
    assert one[:num] == other[:num]
    assert num in (len(one), len(other)) or one[num] != other[num]
