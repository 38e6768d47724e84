"""Reads tool calls in an answer's text, as it arrives.

In: text. Out: what is said, and whole calls. A call's end is found by its JSON, so a closing marker
inside an argument is just text. White space next to a call belongs to nobody.

Of an answer that is cut inside a call, what was said before the call is all, and its end says
`length`. A call is one whole chunk on Groq's wire, so half of one has no place there (OpenAI would
send the arguments as far as they came, which no client can use); its markup is nobody's text.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn

from headrace.model.answer.formats import ToolFormat
from headrace.model.answer.json_scan import JSONScan
from headrace.model.answer.parts import Broken, Call, Content, Part, held_from

_MAX_DIGITS = 1_000
_FIRST_KEY = '"name"'
_SEPARATORS = " \t\r\n;,"
"""What models write between two bare calls."""


class CallReader:
    """Push text, then finish; join the parts.

    Each state is a method that reads what it can from the text at hand and names the next state.
    """

    def __init__(self, form: ToolFormat) -> None:
        self._format = form
        self._text = ""
        """Not read yet; inside a call it begins where the call begins."""
        self._json_start = 0
        self._scan = JSONScan()
        self._is_after_call = False
        """Nothing but white space since the last call."""
        self._is_cut = False
        self._next = self._saying if form.needs_opening else self._beginning
        self._read = self._next

    def push(self, text: str) -> list[Part]:
        """The parts that are sure now."""
        self._text += text
        return self._take(is_end=False)

    def finish(self, *, is_cut: bool = False) -> list[Part]:
        """What was held back. `is_cut`: the answer would have gone on."""
        self._is_cut = is_cut
        return self._take(is_end=True)

    def _take(self, *, is_end: bool) -> list[Part]:
        parts: list[Part] = []
        read = None
        while read != self._read:
            read = self._read
            parts += read(is_end)
        return parts

    def _beginning(self, is_end: bool) -> list[Part]:
        """Where JSON without a marker may be a call."""
        begun = self._text.lstrip(_SEPARATORS if self._is_after_call else None)
        if begun.startswith("{"):
            self._open_json(begun)
        elif begun or is_end:
            self._read = self._saying
        return []

    def _saying(self, is_end: bool) -> list[Part]:
        opening = self._format.opening
        start = self._text.find(opening)
        if start >= 0:
            said = self._text[:start].rstrip()
            self._text = self._text[start:]
            self._read = self._opened
        elif is_end:
            said, self._text = self._text[: self._said_until()], ""
        else:
            said = self._text[: held_from(self._text, opening)].rstrip()
            self._text = self._text[len(said) :]
        if self._is_after_call:
            said = said.lstrip()
        if not said:
            return []
        self._is_after_call = False
        return [Content(said)]

    def _said_until(self) -> int:
        """Where the last text ends: before a marker of which a cut left the greater part."""
        held = held_from(self._text, self._format.opening)
        is_marker = 2 * (len(self._text) - held) > len(self._format.opening)
        return held if self._is_cut and is_marker else len(self._text)

    def _opened(self, is_end: bool) -> list[Part]:
        begun = self._text[len(self._format.opening) :].lstrip()
        if begun.startswith(("{", "[")):
            self._open_json(begun)
        elif begun:
            self._read = self._garbled
        elif is_end:
            return self._broken(len(self._text), is_cut=True)
        return []

    def _open_json(self, begun: str) -> None:
        self._json_start = len(self._text) - len(begun)
        self._scan = JSONScan(self._json_start)
        self._read = self._calling

    def _calling(self, is_end: bool) -> list[Part]:
        end = self._scan.end(self._text)
        if end is None:
            return self._broken(len(self._text), is_cut=True) if is_end else []
        calls = _calls(self._text[self._json_start : end])
        said, self._text = self._text[:end], self._text[end:]
        if calls is not None or said.startswith(self._format.opening):
            self._is_after_call = True
            self._read = self._called
            return [*calls] if calls else [Broken(said, is_cut=False)]
        self._read = self._saying
        return [Content(said.lstrip(_SEPARATORS) if self._is_after_call else said)]

    def _called(self, is_end: bool) -> list[Part]:
        """After a call's JSON: its closing marker, which models forget at times."""
        closing = self._format.closing
        rest = self._text.lstrip()
        if rest.startswith(closing):
            self._text = rest[len(closing) :]
        elif closing.startswith(rest) and not is_end:
            return []
        self._read = self._next
        return []

    def _garbled(self, is_end: bool) -> list[Part]:
        closing = self._format.closing
        start = self._text.find(closing) if closing else -1
        if start >= 0:
            return self._broken(start + len(closing), is_cut=False)
        return self._broken(len(self._text), is_cut=True) if is_end else []

    def _broken(self, end: int, *, is_cut: bool) -> list[Part]:
        text, self._text = self._text[:end], self._text[end:]
        self._read = self._saying
        if not (is_cut and self._is_cut):
            return [Broken(text, is_cut)]
        is_call = text.startswith(self._format.opening) or _may_be_call(text[self._json_start :])
        return [] if is_call else [Content(text)]


def _may_be_call(json_begun: str) -> bool:
    """Whether a beginning of a JSON object could go on as a call."""
    first = json_begun[1:].lstrip()
    return first.startswith(_FIRST_KEY) or _FIRST_KEY.startswith(first)


def _calls(text: str) -> list[Call] | None:
    """The calls that a JSON text makes; None where it makes none, or is no JSON."""
    try:
        value = _read_json(text)
        values = value if isinstance(value, list) else [value]
        return [_call(item) for item in values] or None
    except (ValueError, RecursionError):
        return None


def _call(value: Any) -> Call:
    """Raises `ValueError` where `value` is no call."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError("a call needs a name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _read_json(arguments)
    if not isinstance(arguments, dict):
        raise ValueError("arguments must be an object")
    text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    return Call(value["name"], text)


def _read_json(text: str) -> Any:
    """Numbers beyond every float become the largest one: all that is read can be written again."""
    return json.loads(text, parse_float=_finite, parse_int=_whole, parse_constant=_refuse)


def _finite(number: str) -> float:
    return max(-sys.float_info.max, min(sys.float_info.max, float(number)))


def _whole(number: str) -> int | float:
    return int(number) if len(number) < _MAX_DIGITS else _finite(number)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
