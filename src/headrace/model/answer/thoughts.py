"""Parts a model's thoughts from what it says, as text arrives.

Thoughts stand at the beginning of an answer, between two markers. White space around either marker
belongs to nobody.
"""

from __future__ import annotations

from headrace.model.answer.formats import ThinkMarkers
from headrace.model.answer.parts import held_from


class ThoughtReader:
    """Push text, then finish; join the results."""

    def __init__(self, markers: ThinkMarkers, *, is_open: bool) -> None:
        """`is_open`: the prompt ends with the opening marker."""
        self._markers = markers
        self._text = ""
        self._read = self._thinking if is_open else self._before
        self._has_thought = False
        """Something other than white space was thought: white space counts from here on."""

    def push(self, text: str) -> tuple[str, str]:
        """The thoughts and the speech that are sure now."""
        self._text += text
        return self._read(False)

    def finish(self) -> tuple[str, str]:
        """What was held back."""
        return self._read(True)

    @property
    def is_thinking(self) -> bool:
        """Whether the text so far ends inside the thoughts."""
        return self._read == self._thinking

    def _before(self, is_end: bool) -> tuple[str, str]:
        begun = self._text.lstrip()
        if begun.startswith(self._markers.opening):
            self._text = begun[len(self._markers.opening) :]
            self._read = self._thinking
        elif is_end or not self._markers.opening.startswith(begun):
            self._read = self._speaking
        else:
            return "", ""
        return self._read(is_end)

    def _thinking(self, is_end: bool) -> tuple[str, str]:
        if not self._has_thought:
            self._text = self._text.lstrip()
        end = self._text.find(self._markers.closing)
        if end >= 0:
            thought = self._text[:end].rstrip()
            self._text = self._text[end + len(self._markers.closing) :]
            self._read = self._between
            return thought, self._between(is_end)[1]
        kept = len(self._text) if is_end else held_from(self._text, self._markers.closing)
        thought = self._text[:kept].rstrip()
        self._text = "" if is_end else self._text[len(thought) :]
        self._has_thought = self._has_thought or bool(thought)
        return thought, ""

    def _between(self, is_end: bool) -> tuple[str, str]:
        self._text = self._text.lstrip()
        if self._text:
            self._read = self._speaking
        return self._read(is_end) if self._text else ("", "")

    def _speaking(self, is_end: bool) -> tuple[str, str]:
        text, self._text = self._text, ""
        return "", text
