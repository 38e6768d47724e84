"""Text that remembers who wrote each of its characters: the template, or somebody in a message.

A user may send `<|im_end|>`, or `<|im_` in one message and `end|>` in the next, or a text that a
template cuts so that the parts meet. Looking for such spellings beforehand misses some; changing
them beforehand shows in templates that look into messages. So each string that comes from outside
enters the template as a `Traced` string, with one byte of origin beside each character, and every
operation that a template can apply keeps the two together. Afterwards it is plain which parts the
template wrote itself, and only there control tokens are looked for.

Operations that are not worth following exactly give their whole result to the messages: the worst
that can happen is that a marker stays text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

TEMPLATE, MESSAGE, PREFILL = 0, 1, 2
"""Origins. `PREFILL` marks the answer that the model shall continue."""

MAX_INPUT_NESTING = 64
"""Levels of lists and objects in one message or tool; JSON schemas have a dozen."""


class Traced(str):
    """A string with `origins[i]` telling who wrote character `i`. Equal to the bare string."""

    __slots__ = ("origins",)
    origins: bytes

    def __new__(cls, text: str, origins: bytes) -> Traced:
        self = super().__new__(cls, text)
        self.origins = origins
        return self

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        if not isinstance(other, str):
            return NotImplemented
        return Traced(str.__add__(self, other), self.origins + origins_of(other))

    def __radd__(self, other: str) -> str:
        if not isinstance(other, str):
            return NotImplemented
        return Traced(str.__add__(other, self), origins_of(other) + self.origins)

    def __mul__(self, times: SupportsIndex) -> str:
        return Traced(str.__mul__(self, times), self.origins * times)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        return written_by_message(str.__mod__(self, values))

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if isinstance(key, slice):
            return Traced(str.__getitem__(self, key), self.origins[key])
        return Traced(str.__getitem__(self, key), bytes((self.origins[key],)))

    def __iter__(self) -> Iterator[str]:
        return (self[place] for place in range(len(self)))

    def strip(self, chars: str | None = None, /) -> str:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> str:
        text = str.lstrip(self, chars)
        return Traced(text, self.origins[len(self) - len(text) :])

    def rstrip(self, chars: str | None = None, /) -> str:
        text = str.rstrip(self, chars)
        return Traced(text, self.origins[: len(text)])

    def removeprefix(self, prefix: str, /) -> str:
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> str:
        return self[: len(self) - len(suffix)] if self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._locate(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._locate(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines = self._locate(str.splitlines(self, keepends=True), "")
        if keepends:
            return lines
        return [
            line[: len(bare)]
            for line, bare in zip(lines, str.splitlines(self), strict=True)
        ]  # fmt: skip

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        before, middle, after = self._locate(list(str.partition(self, sep)), "")
        return before, middle, after

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        before, middle, after = self._locate(list(str.rpartition(self, sep)), "")
        return before, middle, after

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            return written_by_message(str.replace(self, old, new, count))
        return joined(new, self.split(old, count))

    def join(self, parts: Iterable[str], /) -> str:
        return joined(self, parts)

    def lower(self) -> str:
        return self._recased(str.lower(self))

    def upper(self) -> str:
        return self._recased(str.upper(self))

    def title(self) -> str:
        return self._recased(str.title(self))

    def capitalize(self) -> str:
        return self._recased(str.capitalize(self))

    def _recased(self, text: str) -> str:
        # Case never shortens a character, so an equal length means one for one.
        return Traced(text, self.origins) if len(text) == len(self) else written_by_message(text)

    def _locate(self, parts: list[str], sep: str | None) -> list[str]:
        """`parts` of this string, in order, `sep` (None: white space) apart, with their origins."""
        located: list[str] = []
        position = 0
        for part in parts:
            if sep is None:
                position = self.index(part, position)
            end = position + len(part)
            located.append(Traced(part, self.origins[position:end]))
            position = end + len(sep or "")
        return located


def origins_of(text: str) -> bytes:
    """One origin for each character; bare strings are the template's own."""
    return text.origins if isinstance(text, Traced) else bytes(len(text))


def written_by_message(text: str) -> str:
    """`text` as if all of it came from a message."""
    return Traced(text, bytes((MESSAGE,)) * len(text))


def joined(separator: str, parts: Iterable[str]) -> str:
    """`separator.join(parts)`, tracing."""
    parts = list(parts)
    if not isinstance(separator, Traced) and not any(isinstance(part, Traced) for part in parts):
        return separator.join(parts)
    origins = origins_of(separator).join(map(origins_of, parts))
    return Traced(str.join(separator, parts), origins)


def concatenated(parts: Iterable[str]) -> str:
    """`"".join(parts)`, tracing: what Jinja calls for a block's output."""
    return joined("", parts)


def traced(value: Any, origin: int, num_levels: int = MAX_INPUT_NESTING) -> Any:
    """`value` as a template gets it: plain JSON types, all strings in it from `origin`, keys too.

    Raises `TypeError` for other types than JSON's, `ValueError` for more nesting than `num_levels`.
    """
    if isinstance(value, str):
        return Traced(value, bytes((origin,)) * len(value))
    if value is None or isinstance(value, bool | int | float):
        return value
    if num_levels == 0:
        raise ValueError(f"nested more than {MAX_INPUT_NESTING} levels deep")
    if isinstance(value, Mapping):
        return {
            traced(key, origin, 1): traced(item, origin, num_levels - 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [traced(item, origin, num_levels - 1) for item in value]
    raise TypeError(f"a template cannot be given a {type(value).__name__}")
