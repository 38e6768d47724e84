"""Token ids against llama.cpp's, recorded by `tests/golden/record.py`."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from golden.texts import texts
from headrace.model import gguf
from headrace.model.tokenizer import Tokenizer
from support import golden

_EXACT = (
    "default", "gpt-2", "smollm", "llama-bpe", "glm4", "dbrx", "qwen2", "qwen35", "seed-coder",
    "deepseek-v3",
)  # fmt: skip


def _has_marks_or_foreign_case(text: str) -> bool:
    categories = {unicodedata.category(character) for character in text if ord(character) > 127}
    return bool(categories & {"Lu", "Ll", "Lt", "Mn", "Mc", "Me"})


def _has_wide_space(text: str) -> bool:
    return "\u3000" in text


# Where llama.cpp's regular expressions only approximate the models' own, which we use.
_APPROXIMATED: dict[str, Callable[[str], bool]] = {
    "tekken": _has_marks_or_foreign_case,
    "gpt-4o": _has_marks_or_foreign_case,
    "deepseek-llm": _has_wide_space,
    "deepseek-coder": _has_wide_space,
}


def _differences(tokenizer: Tokenizer, name: str) -> Iterator[tuple[str, list[int], list[int]]]:
    answers = golden.recorded(f"tokens_{name}")
    for mode in ("plain", "special"):
        for text, expected in zip(texts(), answers[mode], strict=True):
            tokens = tokenizer.encode(text, special=mode == "special")
            if tokens != expected:
                yield text, tokens, expected


def _assert_same_vocabulary(tokenizer: Tokenizer, name: str) -> None:
    answers = golden.recorded(f"tokens_{name}")
    assert sorted(tokenizer.eog_ids) == answers["ends"]
    assert [tokenizer.token_bytes(token).hex() for token in range(len(answers["bytes"]))] == (
        answers["bytes"]
    )


def test_the_default_model(default_model_path: Path) -> None:
    tokenizer = Tokenizer.from_metadata(gguf.read(default_model_path).metadata)
    assert list(_differences(tokenizer, "default_model")) == []
    _assert_same_vocabulary(tokenizer, "default_model")


@pytest.mark.parametrize("pre", _EXACT)
def test_pre_tokenizer(pre: str) -> None:
    tokenizer = golden.byte_level(pre)
    assert list(_differences(tokenizer, pre)) == []
    _assert_same_vocabulary(tokenizer, pre)


@pytest.mark.parametrize("pre", _APPROXIMATED)
def test_pre_tokenizer_that_llama_cpp_approximates(pre: str) -> None:
    differing = [text for text, _, _ in _differences(golden.byte_level(pre), pre)]
    assert all(map(_APPROXIMATED[pre], differing))
    assert len(differing) < 0.05 * 2 * len(texts())


def test_pre_tokenizers_differ_on_these_texts() -> None:
    """Else the files above could not tell a wrong border."""
    answers = {pre: str(golden.recorded(f"tokens_{pre}")["plain"]) for pre in _EXACT}
    same = {("llama-bpe", "glm4")}  # which differ in BOS alone
    for pre, answer in answers.items():
        for other, answer_of_other in answers.items():
            if pre != other and (pre, other) not in same and (other, pre) not in same:
                assert answer != answer_of_other, f"{pre} = {other}"


@pytest.mark.parametrize("prefix", ["with", "without"])
def test_scored(prefix: str) -> None:
    tokenizer = golden.scored(has_prefix=prefix == "with")
    control = set(tokenizer.control_tokens.values())
    for text, _, expected in _differences(tokenizer, f"scored_{prefix}_prefix"):
        # llama.cpp lets merges lead to control tokens: "<" and "|im_end|>" become <|im_end|>.
        assert control & set(expected), text
    _assert_same_vocabulary(tokenizer, f"scored_{prefix}_prefix")
