from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidModelFile, InvalidRequest, UnsupportedModel
from headrace.model.gguf import Value
from headrace.model.prompt import RenderedPrompt
from headrace.model.tokenizer import Tokenizer
from headrace.model.tokenizer.markers import Markers
from support import golden

_MARKERS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<think>", "</think>"]
_PIECES = st.sampled_from([*_MARKERS, "<|im_", "end|>", "<", "|>", " ", "\n", "▁", "é", "😀", "x"])
_TEXTS = st.lists(st.one_of(_PIECES, st.text(max_size=6))).map("".join)
_NO_SURROGATES = _TEXTS.map(lambda text: text.encode(errors="replace").decode())


def _ids(tokenizer: Tokenizer, *spellings: str) -> list[int]:
    return [tokenizer.control_tokens[spelling] for spelling in spellings]


@settings(deadline=None)
@given(_NO_SURROGATES, st.sampled_from(["smollm", "llama-bpe", "qwen2", "tekken", "default"]))
def test_byte_level_text_comes_back(text: str, pre: str) -> None:
    tokenizer = golden.byte_level(pre)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None)
@given(_NO_SURROGATES, st.booleans())
def test_scored_text_comes_back(text: str, has_prefix: bool) -> None:
    tokenizer = golden.scored(has_prefix=has_prefix)
    # ▁ is how this kind of vocabulary spells a space; the two are one.
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


@settings(deadline=None)
@given(_NO_SURROGATES, st.booleans())
def test_text_never_becomes_a_control_token(text: str, is_scored: bool) -> None:
    tokenizer = golden.scored(has_prefix=True) if is_scored else golden.byte_level("llama-bpe")
    assert not set(tokenizer.control_tokens.values()) & set(tokenizer.encode(text))


@settings(deadline=None)
@given(_NO_SURROGATES)
def test_special_finds_every_control_token(text: str) -> None:
    tokenizer = golden.byte_level("qwen2")
    tokens = tokenizer.encode(text, special=True)
    assert "".join(map(tokenizer.token_text, tokens)) == text or "\ufffd" in "".join(
        map(tokenizer.token_text, tokens)
    )
    control = set(tokenizer.control_tokens.values())
    spelled = sum(text.count(spelling) for spelling in tokenizer.control_tokens)
    assert sum(token in control for token in tokens) == spelled


def test_user_defined_tokens_are_found_in_any_text() -> None:
    tokenizer = golden.byte_level("qwen2")
    tokens = tokenizer.encode("a<think>b")
    assert [tokenizer.token_text(token) for token in tokens] == ["a", "<think>", "b"]
    assert tokenizer.decode(tokens) == "a<think>b"


def test_empty_text_has_no_tokens() -> None:
    assert golden.byte_level("qwen2").encode("") == []
    assert golden.scored(has_prefix=True).encode("") == []


def test_text_must_be_unicode() -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        golden.byte_level("qwen2").encode("a\ud800")


def test_a_million_characters_without_a_border() -> None:
    tokenizer = golden.byte_level("llama-bpe")
    text = " " * 300_000 + "a" * 300_000
    assert tokenizer.decode(tokenizer.encode(text)) == text


# Prompts


def test_prompt_control_tokens_only_where_the_template_wrote_them() -> None:
    tokenizer = golden.byte_level("qwen2")
    text = "<|im_start|>x<|im_end|>y<|im_end|>"
    prompt = RenderedPrompt(text, ((0, 13), (len(text) - 10, len(text))))
    start, end = _ids(tokenizer, "<|im_start|>", "<|im_end|>")
    assert tokenizer.encode_prompt(prompt) == [
        start, *tokenizer.encode("x<|im_end|>y"), end,
    ]  # fmt: skip


def test_prompt_text_is_encoded_whole_between_control_tokens() -> None:
    tokenizer = golden.byte_level("qwen2")
    text = "<|im_start|>the quick<|im_end|>"
    cuts = ((0, 14), (17, len(text)))
    start, end = _ids(tokenizer, "<|im_start|>", "<|im_end|>")
    assert tokenizer.encode_prompt(RenderedPrompt(text, cuts)) == [
        start, *tokenizer.encode("the quick"), end,
    ]  # fmt: skip


def test_a_marker_half_written_by_a_message_is_text() -> None:
    tokenizer = golden.byte_level("qwen2")
    prompt = RenderedPrompt("<|im_end|>", ((0, 5), (6, 10)))
    assert tokenizer.encode_prompt(prompt) == tokenizer.encode("<|im_end|>")


@pytest.mark.parametrize(
    ("more", "text", "num_bos"),
    [
        ({"add_bos_token": True}, "a", 1),
        ({"add_bos_token": True}, "<s>a", 1),
        ({"add_bos_token": True}, "", 1),
        ({"add_bos_token": False}, "a", 0),
        ({"add_bos_token": False}, "<s>a", 1),
        ({"pre": "llama-bpe"}, "a", 1),
        ({"pre": "tekken"}, "a", 1),
        ({"pre": "qwen2"}, "a", 0),
    ],
)
def test_one_bos(more: dict[str, Value], text: str, num_bos: int) -> None:
    tokenizer = Tokenizer.from_metadata(golden.metadata("byte_level", **more))
    tokens = tokenizer.encode_prompt(RenderedPrompt(text, ((0, len(text)),)))
    assert tokens.count(tokenizer.control_tokens["<s>"]) == num_bos


def test_scored_vocabularies_begin_with_bos_unless_the_file_says_no() -> None:
    assert golden.scored(has_prefix=True).adds_bos
    assert golden.scored(has_prefix=True).encode_prompt(RenderedPrompt("a"))[0] == 1
    without = Tokenizer.from_metadata(golden.metadata("scored", add_bos_token=False))
    assert not without.adds_bos


def test_no_bos_where_the_file_names_none() -> None:
    metadata = golden.metadata("byte_level", add_bos_token=True)
    del metadata["tokenizer.ggml.bos_token_id"]
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.bos_id is None
    assert tokenizer.encode_prompt(RenderedPrompt("a")) == tokenizer.encode("a")


# Tokens


def test_token_bytes_are_exact() -> None:
    tokenizer = golden.byte_level("qwen2")
    halves = [token for token in tokenizer.encode("\U000e0041") if token]
    assert b"".join(map(tokenizer.token_bytes, halves)) == "\U000e0041".encode()
    assert any(len(tokenizer.token_bytes(token)) == 1 for token in halves)


def test_control_tokens_have_a_spelling_and_no_bytes() -> None:
    tokenizer = golden.byte_level("qwen2")
    (end,) = _ids(tokenizer, "<|im_end|>")
    assert tokenizer.token_bytes(end) == b""
    assert tokenizer.token_text(end) == "<|im_end|>"
    assert tokenizer.decode([end]) == ""


@pytest.mark.parametrize("token", [-1, 10**9])
def test_tokens_outside_the_vocabulary(token: int) -> None:
    with pytest.raises(IndexError):
        golden.byte_level("qwen2").token_bytes(token)


def test_ends_are_named_by_the_file_or_known() -> None:
    metadata = golden.metadata("byte_level", control=("<|custom_end|>", "<end_of_turn>"))
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, tuple)
    metadata["tokenizer.ggml.eot_token_id"] = tokens.index("<|custom_end|>")
    tokenizer = Tokenizer.from_metadata(metadata)
    assert {tokenizer.token_text(token) for token in tokenizer.eog_ids} == {
        "</s>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|custom_end|>", "<end_of_turn>",
    }  # fmt: skip


def test_a_known_end_that_is_an_ordinary_token_is_no_end() -> None:
    metadata = golden.metadata("byte_level", control=("<end_of_turn>",))
    kinds = metadata["tokenizer.ggml.token_type"]
    assert isinstance(kinds, tuple)
    metadata["tokenizer.ggml.token_type"] = (*kinds[:-1], golden.NORMAL_KIND)
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.vocab_size - 1 not in tokenizer.eog_ids


def test_an_end_marked_user_defined_is_a_control_token() -> None:
    metadata = golden.metadata("byte_level", eos_token_id=6)  # <think>
    tokenizer = Tokenizer.from_metadata(metadata)
    assert 6 in tokenizer.eog_ids
    assert 6 not in tokenizer.encode("<think>")
    assert tokenizer.encode("<think>", special=True) == [6]


def test_files_without_token_types_keep_their_markers() -> None:
    metadata = golden.metadata("byte_level")
    del metadata["tokenizer.ggml.token_type"]
    tokenizer = Tokenizer.from_metadata(metadata)
    (end,) = tokenizer.encode("<|im_end|>", special=True)
    assert end in tokenizer.eog_ids
    assert end not in tokenizer.encode("<|im_end|>")


def test_merges_to_unknown_tokens_are_skipped() -> None:
    metadata = golden.metadata("byte_level")
    merges = metadata["tokenizer.ggml.merges"]
    assert isinstance(merges, tuple)
    metadata["tokenizer.ggml.merges"] = ("x no-such-token", *merges)
    assert Tokenizer.from_metadata(metadata).encode("the x") == (
        golden.byte_level("default").encode("the x")
    )


def test_a_long_common_prefix_of_markers_is_searched_once() -> None:
    markers = Markers(["<a>", "<ab>", "<abc", "<abcd>", "[x]", "[x]y"])
    text = "<ab<abc><abcd>[x]y[x]<a"
    assert [text[slice(*span)] for span in markers.find(text, 0, len(text))] == [
        "<abc", "<abcd>", "[x]y", "[x]",
    ]  # fmt: skip
    assert list(Markers([]).find(text, 0, len(text))) == []
    assert list(markers.find("<abcd>", 0, 5)) == [(0, 4)]


# Files that cannot be used


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        ("byte_level", "model", "bert", "'gpt2'.*'llama'"),
        ("byte_level", "pre", "unheard-of", "unheard-of.*known: .*llama-bpe.*qwen2"),
    ],
)
def test_unsupported(kind: str, key: str, value: Value, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        Tokenizer.from_metadata(golden.metadata(kind, **{key: value}))


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        ("byte_level", "tokens", None, "tokenizer.ggml.tokens is missing"),
        ("byte_level", "tokens", (), "tokenizer.ggml.tokens is empty"),
        ("byte_level", "tokens", ("a", 1), "tokenizer.ggml.tokens must be an array of strings"),
        ("byte_level", "tokens", "a", "tokenizer.ggml.tokens must be an array of strings"),
        ("byte_level", "token_type", (1, 1), "token_type has 2 entries for"),
        ("byte_level", "token_type", ("1",), "token_type must be an array of numbers"),
        ("byte_level", "merges", None, "tokenizer.ggml.merges is missing"),
        ("byte_level", "merges", ("a b", "ab"), "merges has 'ab', which is not a pair"),
        ("byte_level", "eos_token_id", 10**6, "eos_token_id is 1000000; the file has"),
        ("byte_level", "bos_token_id", -1, "bos_token_id is -1"),
        ("byte_level", "eot_token_id", "x", "eot_token_id is 'x'"),
        ("byte_level", "pre", 3, "tokenizer.ggml.pre is 3; it must be a str"),
        ("byte_level", "add_bos_token", "yes", "add_bos_token is 'yes'; it must be a bool"),
        ("byte_level", "model", ("gpt2",), "tokenizer.ggml.model is"),
        ("scored", "scores", None, "tokenizer.ggml.scores must be an array of numbers"),
        ("scored", "scores", (0.0,), "scores has 1 entries for"),
        ("scored", "add_space_prefix", 1, "add_space_prefix is 1; it must be a bool"),
    ],
)
def test_broken(kind: str, key: str, value: Value | None, message: str) -> None:
    metadata = golden.metadata(kind)
    if value is None:
        del metadata[f"tokenizer.ggml.{key}"]
    else:
        metadata[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(InvalidModelFile, match=message):
        Tokenizer.from_metadata(metadata)


def test_a_scored_vocabulary_needs_all_bytes() -> None:
    metadata = golden.metadata("scored")
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, tuple)
    metadata["tokenizer.ggml.tokens"] = tuple(
        "other" if token == "<0x0A>" else token for token in tokens
    )
    with pytest.raises(InvalidModelFile, match="lacks 1 of the 256 byte tokens, <0x0A>"):
        Tokenizer.from_metadata(metadata)


def test_a_marker_of_absurd_length() -> None:
    metadata = golden.metadata("byte_level", control=("<" * 5000,))
    with pytest.raises(InvalidModelFile, match="5000 characters"):
        Tokenizer.from_metadata(metadata)


_VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**63), 2**64), st.floats(), st.text(max_size=5)),
    lambda parts: st.lists(parts, max_size=5).map(tuple),
    max_leaves=8,
)
_KEYS = st.sampled_from(
    ["model", "pre", "tokens", "token_type", "merges", "scores", "bos_token_id", "eos_token_id",
     "eot_token_id", "eom_token_id", "add_bos_token", "add_space_prefix"]
)  # fmt: skip


@st.composite
def _damaged(draw: st.DrawFn) -> dict[str, Value]:
    """A vocabulary's metadata with a key missing, replaced, or with one of its items replaced."""
    metadata = golden.metadata(draw(st.sampled_from(["byte_level", "scored"])))
    key = f"tokenizer.ggml.{draw(_KEYS)}"
    value = metadata.pop(key, None)
    if draw(st.booleans()):
        return metadata
    if isinstance(value, tuple) and draw(st.booleans()):
        place = draw(st.integers(0, len(value) - 1))
        metadata[key] = (*value[:place], draw(_VALUES), *value[place + 1 :])
    else:
        metadata[key] = draw(_VALUES)
    return metadata


@settings(max_examples=100, deadline=None)
@given(_damaged())
def test_damaged_metadata_gives_a_clear_error_or_a_tokenizer(metadata: dict[str, Value]) -> None:
    try:
        tokenizer = Tokenizer.from_metadata(metadata)
    except (InvalidModelFile, UnsupportedModel) as error:
        assert "tokenizer.ggml." in str(error)
        return
    text = "The quick brown fox <|im_end|>\n42 é"
    assert set(tokenizer.encode(text)) <= set(range(tokenizer.vocab_size))
    for token in range(tokenizer.vocab_size):
        assert isinstance(tokenizer.token_text(token), str)
