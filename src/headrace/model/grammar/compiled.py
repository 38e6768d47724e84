"""A compiled grammar, and where one choice stands in it.

In: tokens as they are chosen. Out: bit masks for the sampler. Thread: engine, but for `after`.
Next: `engine/sampler.py`. Implements the seam in `engine/grammar.py`, without knowing it.
"""

from __future__ import annotations

import threading
from array import array

from llguidance import LLMatcher

from headrace.errors import GenerationFailed, InvalidRequest
from headrace.model.grammar.vocabulary import Vocabulary

_WRONG_TOKEN = "doesn't satisfy the grammar"
"""In the library's message where a token is to blame, and not a limit that was met."""


class CompiledGrammar:
    """A grammar at its beginning, shared by all who ask for it."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        matcher: LLMatcher,
        param: str,
        *,
        origin: CompiledGrammar | None = None,
        said: str = "",
    ) -> None:
        """`matcher` stands at the beginning, or where `origin` stands after `said`; nobody else may
        use it. `param` is the field that asked for it."""
        self._vocabulary = vocabulary
        self._matcher = matcher
        self._param = param
        self._origin = origin
        self._said = said
        self._lock = threading.Lock()

    def start(self, vocab_size: int) -> GrammarState:
        """A state at the beginning, for masks of `vocab_size` bits."""
        num_known = self._vocabulary.tokenizer.vocab_size
        return GrammarState(self._copy(), self._param, vocab_size, num_known)

    def after(self, text: str) -> CompiledGrammar | None:
        """The same grammar where `text` has been said already; None where it cannot be."""
        matcher = self._copy()
        tokens = self._vocabulary.encode(text)
        if matcher.try_consume_tokens(tokens) != len(tokens) or matcher.is_error():
            return None
        return CompiledGrammar(self._vocabulary, matcher, self._param, origin=self, said=text)

    def unsaid(self, end: bytes) -> CompiledGrammar | None:
        """The same grammar where `end`, the end of what has been said, is not said yet; None where
        that ends otherwise, or where it would leave a part of a character."""
        said = self._said.encode()
        if self._origin is None or not said.endswith(end):
            return None
        try:
            return self._origin.after(said.removesuffix(end).decode())
        except UnicodeDecodeError:
            return None

    def _copy(self) -> LLMatcher:
        with self._lock:
            return self._matcher.deep_copy()


class GrammarState:
    """One choice's place in its grammar."""

    __slots__ = ("_address", "_mask", "_matcher", "_num_bytes", "_param", "_view")

    def __init__(self, matcher: LLMatcher, param: str, vocab_size: int, num_known: int) -> None:
        """Masks have `vocab_size` bits, of which the grammar knows the first `num_known`; a model's
        further rows are padding and never allowed."""
        self._matcher = matcher
        self._param = param
        num_words = (max(vocab_size, num_known) + 31) // 32
        self._mask = array("I", bytes(4 * num_words))
        self._view = memoryview(self._mask)
        self._address = self._mask.buffer_info()[0]
        self._num_bytes = 4 * ((num_known + 31) // 32)

    def mask(self) -> memoryview:
        """The tokens allowed next; good until the next call. Raises `InvalidRequest` where the
        grammar is too much work at this place."""
        self._matcher.unsafe_compute_mask_ptr(self._address, self._num_bytes)
        self._check()
        return self._view

    def accept(self, token: int) -> None:
        """Raises `GenerationFailed` where `token` cannot come here, and `InvalidRequest` where the
        grammar is too much work."""
        if not self._matcher.consume_token(token):
            self._check()
            raise GenerationFailed(f"the grammar does not allow token {token} here")

    @property
    def is_complete(self) -> bool:
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().partition("\n")[0]
            if _WRONG_TOKEN in reason:
                raise GenerationFailed(f"the answer's grammar cannot go on: {reason:.200}")
            raise InvalidRequest(
                f"`{self._param}` takes too much work to follow, here: {reason:.200}; make it "
                "simpler",
                param=self._param,
            )
