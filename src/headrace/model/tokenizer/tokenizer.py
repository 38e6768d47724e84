"""Text to token ids and back, as the model's own tokenizer does it.

In: text, or a prompt that a chat template rendered. Out: token ids; and bytes for token ids.
Thread: any; nothing observable changes after construction.
Next: `engine/sequence.py` takes the ids, `engine/text.py` the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set

import tokenizers

from headrace.errors import InvalidModelFile, InvalidRequest, UnsupportedModel
from headrace.model.gguf import Value
from headrace.model.prompt import RenderedPrompt
from headrace.model.tokenizer.byte_level import byte_level, byte_level_bytes
from headrace.model.tokenizer.markers import Markers
from headrace.model.tokenizer.sentencepiece import (
    byte_token_bytes,
    sentencepiece,
    sentencepiece_bytes,
)
from headrace.model.tokenizer.vocabulary import Kind, Vocabulary, optional

_LONGEST_MARKER = 100
_BETWEEN_RUNS = (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED)
_WITHOUT_TEXT = (Kind.CONTROL, Kind.UNKNOWN, Kind.UNUSED)


class Tokenizer:
    """One model's vocabulary and its way to cut text into it. Make it with `from_metadata`."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        encoder: tokenizers.Tokenizer,
        ordinary_bytes: Callable[[str], bytes],
        *,
        adds_bos: bool,
        has_space_prefix: bool,
    ) -> None:
        self._vocabulary = vocabulary
        self._encoder = encoder
        self._ordinary_bytes = ordinary_bytes
        self._control = vocabulary.control
        self._markers = Markers(vocabulary.control)
        self._marker_ids = frozenset(
            (*vocabulary.control.values(), *vocabulary.user_defined.values())
        )
        self._has_space_prefix = has_space_prefix
        self._bytes: dict[int, bytes] = {}
        self.adds_bos = adds_bos
        """Whether every prompt begins with `bos_id`."""

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Value]) -> Tokenizer:
        """Build from a GGUF's metadata.

        Raises `InvalidModelFile` for missing or senseless keys and `UnsupportedModel` for a kind
        of vocabulary, or a pre-tokenizer, that is not known.
        """
        model = optional(metadata, "model", "", str)
        if model not in ("gpt2", "llama"):
            raise UnsupportedModel(
                f"tokenizer.ggml.model is {model!r:.80}; known: 'gpt2' (byte-level BPE), 'llama' "
                "(SentencePiece with scores)"
            )
        vocabulary = Vocabulary.from_metadata(metadata)
        _check_markers(vocabulary)
        return (
            _byte_level(metadata, vocabulary) if model == "gpt2" else _llama(metadata, vocabulary)
        )

    @property
    def vocab_size(self) -> int:
        return len(self._vocabulary.spellings)

    @property
    def bos_id(self) -> int | None:
        return self._vocabulary.bos_id

    @property
    def eog_ids(self) -> frozenset[int]:
        """Tokens that end a generation."""
        return self._vocabulary.end_ids

    @property
    def eos_id(self) -> int | None:
        return self._vocabulary.eos_id

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Spelling → id of the tokens that only templates and the model write."""
        return self._control

    @property
    def marker_ids(self) -> Set[int]:
        """Tokens that stand for themselves, whatever is written around them: control tokens and
        those that are found in a text before it is cut."""
        return self._marker_ids

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`, without BOS.

        Spellings of control tokens stay text unless `special`, which is for prompts that the
        caller wrote whole and trusts. Raises `InvalidRequest` for text that is not Unicode.
        """
        return self._encode_spans(text, ((0, len(text)),) if special else ())

    def encode_prompt(self, prompt: RenderedPrompt) -> list[int]:
        """Token ids of a rendered prompt, with one BOS where the model wants it.

        Control tokens are found only where the template wrote them; the text between two of them
        is encoded whole. Raises `InvalidRequest` for text that is not Unicode.
        """
        tokens = self._encode_spans(prompt.text, prompt.template_spans)
        if self.adds_bos and self.bos_id is not None and tokens[:1] != [self.bos_id]:
            tokens.insert(0, self.bos_id)
        return tokens

    def token_bytes(self, token: int) -> bytes:
        """What `token` adds to the output; nothing for control tokens. Raises `IndexError`."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._spell(token)
        return known

    def token_text(self, token: int) -> str:
        """`token` for people to read: control tokens by their spelling, broken UTF-8 as U+FFFD."""
        if self._vocabulary.kinds[token] in _WITHOUT_TEXT:
            return self._vocabulary.spellings[token]
        return self.token_bytes(token).decode(errors="replace")

    def decode(self, tokens: Iterable[int]) -> str:
        """The text that `tokens` stand for, so that `decode(encode(text))` is `text` again.

        Where encoding puts a space before each run of text, it is taken away again; `token_bytes`
        keeps it.
        """
        if self._has_space_prefix:
            return b"".join(self._runs_without_prefix(tokens)).decode(errors="replace")
        return b"".join(map(self.token_bytes, tokens)).decode(errors="replace")

    def _runs_without_prefix(self, tokens: Iterable[int]) -> Iterator[bytes]:
        is_run_start = True
        for token in tokens:
            data = self.token_bytes(token)
            is_text = self._vocabulary.kinds[token] not in _BETWEEN_RUNS
            yield data.removeprefix(b" ") if is_run_start and is_text else data
            is_run_start = not is_text

    def _encode_spans(self, text: str, spans: Iterable[tuple[int, int]]) -> list[int]:
        tokens: list[int] = []
        position = 0
        for span in spans:
            for start, end in self._markers.find(text, *span):
                tokens += self._encode_run(text[position:start])
                tokens.append(self._control[text[start:end]])
                position = end
        return tokens + self._encode_run(text[position:])

    def _encode_run(self, text: str) -> list[int]:
        if not text:
            return []
        try:
            return self._encoder.encode(text, add_special_tokens=False).ids
        except TypeError:
            raise InvalidRequest(
                "text has half of a surrogate pair (U+D800 to U+DFFF), which is not a character; "
                "send valid Unicode"
            ) from None

    def _spell(self, token: int) -> bytes:
        if token < 0:
            raise IndexError(f"token {token} is negative")
        kind, spelling = self._vocabulary.kinds[token], self._vocabulary.spellings[token]
        if kind in _WITHOUT_TEXT:
            return b""
        if kind == Kind.USER_DEFINED:
            return spelling.encode()
        return byte_token_bytes(spelling) if kind == Kind.BYTE else self._ordinary_bytes(spelling)


def _byte_level(metadata: Mapping[str, Value], vocabulary: Vocabulary) -> Tokenizer:
    encoder, adds_bos = byte_level(metadata, vocabulary)
    _find_everywhere(encoder, vocabulary)
    return Tokenizer(
        vocabulary,
        encoder,
        byte_level_bytes,
        adds_bos=optional(metadata, "add_bos_token", adds_bos, bool),
        has_space_prefix=False,
    )


def _llama(metadata: Mapping[str, Value], vocabulary: Vocabulary) -> Tokenizer:
    has_space_prefix = optional(metadata, "add_space_prefix", True, bool)
    encoder = sentencepiece(metadata, vocabulary, add_space_prefix=has_space_prefix)
    _find_everywhere(encoder, vocabulary)
    return Tokenizer(
        vocabulary,
        encoder,
        sentencepiece_bytes,
        adds_bos=optional(metadata, "add_bos_token", True, bool),
        has_space_prefix=has_space_prefix,
    )


def _find_everywhere(encoder: tokenizers.Tokenizer, vocabulary: Vocabulary) -> None:
    """User-defined tokens are found in any text, before it is cut."""
    encoder.add_tokens(
        [
            tokenizers.AddedToken(spelling, normalized=False)
            for spelling in vocabulary.user_defined
            if spelling
        ]
    )


def _check_markers(vocabulary: Vocabulary) -> None:
    for spelling in vocabulary.control:
        if len(spelling) > _LONGEST_MARKER:
            raise InvalidModelFile(
                f"tokenizer.ggml.tokens has a control token of {len(spelling)} characters, "
                f"{spelling!r:.80}…; at most {_LONGEST_MARKER} make sense"
            )
