"""Tokens to text: whole characters only, and never a character of a stop string.

In: token ids of one sequence, in order. Out: text deltas, and whether a stop string has come.
Thread: the engine thread. Next: `engine/mailbox.py`.

A byte sequence is decoded as UTF-8 however tokens cut it; bytes that are no UTF-8 become U+FFFD as
soon as that is sure. Of several stop strings the one that is complete first ends the text, and of
several complete at the same character the longest; the text ends before it. So what a sequence
says does not depend on how its bytes are cut into tokens.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections import deque
from collections.abc import Callable

from headrace.errors import InvalidRequest


class TextStream:
    """One sequence's text. Push every token, then finish; join the results.

    Characters are held back while they may be the beginning of a stop string, bytes while they may
    be the beginning of a character.
    """

    __slots__ = (
        "_bytes",
        "_held",
        "_num_decoded",
        "_num_emitted",
        "_num_given_bytes",
        "_stops",
        "_token_bytes",
        "_uncovered",
        "num_given_tokens",
        "num_tokens",
        "stopped",
    )

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        stop: tuple[str, ...] = (),
        *,
        num_given_bytes: int = 0,
    ) -> None:
        """`token_bytes` gives the exact bytes of a token. The first `num_given_bytes` of all are no
        part of the text: whoever reads it has them. Raises `InvalidRequest` for an empty stop
        string."""
        if "" in stop:
            raise InvalidRequest("a stop string must not be empty", param="stop")
        self._token_bytes = token_bytes
        self._stops = stop
        self._bytes = b""
        self._held = ""
        self._num_decoded = 0
        self._num_emitted = 0
        self._uncovered: deque[int] = deque()
        self.stopped: str | None = None
        """The stop string that ended the text; after it nothing is ever emitted."""
        self.num_tokens = 0
        """Tokens pushed."""
        self._num_given_bytes = num_given_bytes
        self.num_given_tokens = 0
        """Tokens, from the first on, that say nothing but what was given."""

    @property
    def num_covered(self) -> int:
        """Tokens, from the first on, whose text has been emitted whole."""
        return self.num_tokens - len(self._uncovered)

    def push(self, token: int) -> str:
        """The text that is sure now that `token` has come; often its own, sometimes none."""
        self.num_tokens += 1
        data = self._token_bytes(token)
        if self._num_given_bytes:
            data = self._without_given(data)
        if self._bytes:
            data = self._bytes + data
        text, num_used = utf_8_decode(data, "replace", False)
        self._bytes = data[num_used:]
        if len(self._bytes) == 2 and self._bytes[0] == 0xED and self._bytes[1] >= 0xA0:
            # The decoder waits for the third byte of what would be half of a surrogate pair.
            text += "\ufffd\ufffd"
            self._bytes = b""
        if not self._stops and not self._bytes and not self._uncovered:
            return text
        return self._sift(text)

    def finish(self) -> str:
        """What was held back; call it once, after the last token."""
        text, _ = utf_8_decode(self._bytes, "replace", True)
        self._bytes = b""
        text = self._until_stop(self._held + text)
        self._held = ""
        return self._emit(text)

    def _without_given(self, data: bytes) -> bytes:
        num_given = min(self._num_given_bytes, len(data))
        self._num_given_bytes -= num_given
        if num_given == len(data):
            self.num_given_tokens += 1
        return data[num_given:]

    def _sift(self, text: str) -> str:
        """The sure part of what was held and `text`; holds the rest."""
        # Bytes held back become exactly one character, whatever comes next.
        self._num_decoded += len(text)
        self._uncovered.append(self._num_decoded + (1 if self._bytes else 0))
        text = self._until_stop(self._held + text)
        held_from = len(text) if self.stopped else self._doubtful_from(text)
        self._held = text[held_from:]
        return self._emit(text[:held_from])

    def _until_stop(self, text: str) -> str:
        """`text` up to the first stop string, noting it; nothing after one was noted before."""
        if self.stopped:
            return ""
        matches = []
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0:
                matches.append((start + len(stop), start, stop))
        if not matches:
            return text
        _, start, self.stopped = min(matches)
        return text[:start]

    def _doubtful_from(self, text: str) -> int:
        """Where the longest end of `text` begins that a stop string begins with."""
        doubtful = len(text)
        for stop in self._stops:
            start = text.find(stop[0], max(0, len(text) - len(stop) + 1), doubtful)
            while start >= 0 and not stop.startswith(text[start:]):
                start = text.find(stop[0], start + 1, doubtful)
            if start >= 0:
                doubtful = start
        return doubtful

    def _emit(self, text: str) -> str:
        self._num_emitted += len(text)
        while self._uncovered and self._uncovered[0] <= self._num_emitted:
            self._uncovered.popleft()
        return text
