"""JSON schemas and rules become grammars, within bounds: a hostile one is refused, quickly.

In: rules in the library's Lark dialect, with JSON schemas in them. Out: a `CompiledGrammar`.
Thread: any but the event loop's: 2 ms are usual, a third of a second is the worst that was met.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from llguidance import LLMatcher, LLParserLimits

from headrace.errors import InvalidRequest, Unavailable
from headrace.model.grammar.compiled import CompiledGrammar
from headrace.model.grammar.schema import Schema, closed
from headrace.model.grammar.vocabulary import Vocabulary

MAX_SECONDS = 2.0
MAX_CHARS = 1 << 19
_MAX_KEPT_CHARS = 1 << 19
"""A compiled grammar takes about a hundred bytes for each character of its rules."""

_SPACE = r" {1,2}|\n[ \t]{0,24}"
"""White space inside JSON: bounded, or a model that likes to indent never comes to an end."""
_OPTIONS: dict[str, Any] = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "whitespace_pattern": _SPACE,
    "coerce_one_of": True,
}
_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,  # about 20 ms
    step_lexer_fuel=100_000,  # about 7 ms a mask
    step_max_items=50_000,  # about 2.5 ms a mask
    max_items_in_row=50_000,  # objects of thousands of optional properties
    max_lexer_states=20_000,  # about 30 MB
    max_grammar_size=200_000,
    precompute_large_lexemes=False,
    verbose_errors=False,
)


class GrammarCompiler:
    """One model's grammars; the latest are kept, by what they say and whose field they are."""

    def __init__(self, vocabulary: Vocabulary, max_s: float = MAX_SECONDS) -> None:
        """`max_s`: the longest that anybody waits for a grammar."""
        self._vocabulary = vocabulary
        self._max_s = max_s
        self._turn = threading.Semaphore()
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], CompiledGrammar] = OrderedDict()

    def warm_up(self) -> None:
        """Make the vocabulary, so that the first grammar does not wait for it."""
        _ = self._vocabulary.tokenizer

    def compile(self, rules: str, param: str) -> CompiledGrammar:
        """`rules` with JSON schemas written into them by `as_rule`. Raises `InvalidRequest`, naming
        `param`, where they cannot be followed, or not at a sane price; `Unavailable` where another
        grammar is being compiled and does not come to an end."""
        with self._lock:
            known = self._kept.get((rules, param))
            if known is not None:
                self._kept.move_to_end((rules, param))
                return known
        if len(rules) > MAX_CHARS:
            raise InvalidRequest(
                f"`{param}` is too large; its schemas may have {MAX_CHARS:,} characters in all",
                param=param,
            )
        made = CompiledGrammar(self._vocabulary, self._matcher(rules, param), param)
        self._keep(rules, made, param)
        return made

    def _keep(self, rules: str, made: CompiledGrammar, param: str) -> None:
        with self._lock:
            self._kept[rules, param] = made
            while len(self._kept) > 1 and sum(len(r) for r, _ in self._kept) > _MAX_KEPT_CHARS:
                self._kept.popitem(last=False)

    def _matcher(self, rules: str, param: str) -> LLMatcher:
        matcher = self._in_time(lambda: self._compiled(rules), param)
        if matcher.is_error():
            reason = _reason(matcher.get_error())
            raise InvalidRequest(f"`{param}` cannot be followed: {reason}", param=param)
        first = matcher.deep_copy()
        first.compute_bitmask()
        if first.is_error():
            raise InvalidRequest(f"`{param}` cannot be followed: nothing satisfies it", param=param)
        return matcher

    def _compiled(self, rules: str) -> LLMatcher:
        grammar = LLMatcher.grammar_from_lark(rules)
        return LLMatcher(self._vocabulary.tokenizer, grammar, log_level=0, limits=_LIMITS)

    def _in_time(self, work: Callable[[], LLMatcher], param: str) -> LLMatcher:
        """The result of `work`, done by one thread at a time. Work that takes too long cannot be
        stopped, only left alone; until it ends nobody else's is begun."""
        if not self._turn.acquire(timeout=self._max_s):
            raise Unavailable("a grammar is being compiled and takes long; try again later")
        results: list[LLMatcher] = []

        def run() -> None:
            try:
                results.append(work())
            finally:
                self._turn.release()

        thread = threading.Thread(target=run, name="headrace-grammar", daemon=True)
        thread.start()
        thread.join(self._max_s)
        if not results:
            raise InvalidRequest(
                f"`{param}` takes too much work to follow; make it simpler", param=param
            )
        return results[0]


def as_rule(schema: Schema, *, is_lenient: bool) -> str:
    """`schema` for use inside rules. Lenient: what the library does not know is left out, and must
    be checked afterwards."""
    options = {**_OPTIONS, "lenient": is_lenient}
    return f"%json {json.dumps({**closed(schema), 'x-guidance': options})}"


def _reason(error: str) -> str:
    line, _, rest = error.strip().partition("\n")
    # What is wrong with a pattern stands below the pattern.
    below = re.search(r"^error: (.+)$", rest, re.MULTILINE)
    line = line.rpartition("failed to compile JSON schema: ")[2]
    return f"{line.rstrip(':')}: {below[1]}"[:300] if below else line[:300]
