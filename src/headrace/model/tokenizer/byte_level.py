"""Byte-level BPE ("gpt2" vocabularies): how a text is cut into words before merges apply.

Each pre-tokenizer is the sequence of cuts that the model's own tokenizer makes, each applied to
the pieces that the one before left. The names are those that GGUF files carry; models that cut
alike share an entry. Where llama.cpp approximates an expression (`tekken`, `gpt-4o`: capitals
beyond ASCII), the model's own is used, because the model was trained with it.

No Unicode normalization takes place, also where a model's tokenizer would compose characters
(Qwen's NFC): what a user sent is what the model sees, and decoding gives it back.
"""

# ruff: noqa: RUF001 - the expressions mean exactly these look-alikes.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from headrace.errors import InvalidModelFile, UnsupportedModel
from headrace.model.gguf import Value
from headrace.model.tokenizer.vocabulary import Vocabulary, optional, required_strings

_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAMEL_CASE = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
)
_UP_TO_THREE_DIGITS = r"\p{N}{1,3}"
_DEEPSEEK_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ"
    "-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹ"
    "ℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)


def _llama(digits: str) -> str:
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+"
    signs = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
    return "|".join([_CONTRACTIONS, words, digits, signs, _SPACES])


@dataclass(frozen=True)
class _PreTokenizer:
    names: str
    """As files spell them, parted by spaces."""
    cuts: tuple[str, ...]
    """Regular expressions (Oniguruma); what one matches is a piece, and so is what it leaves."""
    whole_words_first: bool = False
    """A word that is a token becomes that token, whatever the merges say."""
    adds_bos: bool = False
    """Where the file does not say whether texts begin with a BOS token."""


_PRE_TOKENIZERS = (
    _PreTokenizer(
        "default",
        (r"[\p{P}\$\+<=>\^~\|]+", _GPT_2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    ),
    _PreTokenizer(
        "gpt-2 phi-2 mpt olmo jais exaone4 gigachat a.x-4.0 mellum trillion granite-docling",
        (_GPT_2,),
    ),
    _PreTokenizer(
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        (r"\p{N}", _GPT_2),
    ),
    _PreTokenizer(
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
        (_llama(_UP_TO_THREE_DIGITS),),
        whole_words_first=True,
        adds_bos=True,
    ),
    _PreTokenizer(
        "glm4",
        (_llama(_UP_TO_THREE_DIGITS),),
        whole_words_first=True,
    ),
    _PreTokenizer(
        "dbrx smaug-bpe chatglm-bpe",
        (_llama(_UP_TO_THREE_DIGITS),),
    ),
    _PreTokenizer(
        "qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez kormo f2llmv2 solar-open grok-2",
        (_llama(r"\p{N}"),),
    ),
    _PreTokenizer(
        "qwen35",
        (
            rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
        ),
    ),
    _PreTokenizer(
        "tekken",
        (rf"{_CAMEL_CASE % ('', '')}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",),
        whole_words_first=True,
        adds_bos=True,
    ),
    _PreTokenizer(
        "gpt-4o llama4 kanana2 minimax-m2",
        (
            rf"{_CAMEL_CASE % (_CONTRACTIONS + '?', _CONTRACTIONS + '?')}"
            rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
        ),
    ),
    _PreTokenizer(
        "seed-coder",
        (
            rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",
        ),
    ),
    _PreTokenizer(
        "deepseek-llm",
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            r"[一-龥ࠀ-一가-퟿]+",
            r"\p{N}+",
        ),
    ),
    _PreTokenizer(
        "deepseek-coder",
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
    ),
    _PreTokenizer(
        "deepseek-v3 hunyuan-dense",
        (
            r"\p{N}{1,3}",
            r"[一-龥぀-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES,
        ),
    ),
)
_BY_NAME = {name: entry for entry in _PRE_TOKENIZERS for name in entry.names.split()}


def byte_level(metadata: Mapping[str, Value], vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """The encoder, and whether prompts begin with BOS where the file does not say.

    Raises `UnsupportedModel` for an unknown pre-tokenizer, `InvalidModelFile` for bad merges.
    """
    name = optional(metadata, "pre", "default", str)
    entry = _BY_NAME.get(name)
    if entry is None:
        raise UnsupportedModel(
            f"tokenizer.ggml.pre is {name!r:.80}, a way to cut text that is not known here; known: "
            + ", ".join(sorted(_BY_NAME))
        )
    # Control tokens stay outside: no merge and no whole word may ever become one.
    vocab = {**vocabulary.ordinary, **vocabulary.user_defined}
    merges = _merges(required_strings(metadata, "merges"))
    encoder = Tokenizer(_bpe(vocab, merges, entry.whole_words_first))
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(cut), "isolated") for cut in entry.cuts),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return encoder, entry.adds_bos


def _merges(lines: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = [tuple(line.split(" ", 1)) for line in lines]
    if not set(map(len, pairs)) <= {2}:
        line = next(line for line in lines if " " not in line)
        raise InvalidModelFile(f"tokenizer.ggml.merges has {line!r:.80}, which is not a pair")
    return pairs  # type: ignore[return-value]  # checked just above


def _bpe(
    vocab: dict[str, int], merges: list[tuple[str, str]], whole_words_first: bool
) -> models.BPE:
    try:
        return models.BPE(vocab=vocab, merges=merges, ignore_merges=whole_words_first)
    except Exception:
        # The library wants every merge to join tokens into a token; other readers skip the others.
        known = [
            (left, right)
            for left, right in merges
            if left + right in vocab and left in vocab and right in vocab
        ]
        return models.BPE(vocab=vocab, merges=known, ignore_merges=whole_words_first)


# Byte-level vocabularies spell each byte as one printable character.
_PRINTABLE_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHER_BYTES = [byte for byte in range(0x100) if byte not in set(_PRINTABLE_BYTES)]
_BYTE_OF_CHARACTER = {byte: byte for byte in _PRINTABLE_BYTES} | {
    0x100 + index: byte for index, byte in enumerate(_OTHER_BYTES)
}
_ALPHABET = frozenset(map(chr, _BYTE_OF_CHARACTER))


def byte_level_bytes(spelling: str) -> bytes:
    """The bytes that an ordinary token stands for."""
    if _ALPHABET.issuperset(spelling):
        return spelling.translate(_BYTE_OF_CHARACTER).encode("latin-1")
    return spelling.encode()
