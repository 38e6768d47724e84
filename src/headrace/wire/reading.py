"""How a body is read: where in it we are, how strictly, and what is said of what is wrong."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from headrace.errors import InvalidRequest
from headrace.wire.ask import JSON
from headrace.wire.body import BodyLimits

Path: TypeAlias = tuple[str | int, ...]
"""Where a value stands in the body: `("messages", 0, "content")`."""

_PLAIN_KEY = re.compile(r"[\w-]{1,64}", re.ASCII)


def spelled(path: Path) -> str:
    """`messages[0].content`. Printable ASCII only, whatever keys a client made up."""
    text = ""
    for key in path:
        if isinstance(key, str) and _PLAIN_KEY.fullmatch(key):
            text += f".{key}" if text else key
        else:
            text += f"[{key}]" if isinstance(key, int) else f"[{json.dumps(str(key)[:64])}]"
    return text


def shown(value: JSON) -> str:
    """A value as error messages show it: in JSON's words, and short."""
    if isinstance(value, str):
        return json.dumps(value if len(value) <= 40 else value[:39] + "…", ensure_ascii=False)
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, Mapping):
        return "an object"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return repr(value)


def listed(names: Iterable[str]) -> str:
    """`a`, `b` or `c`."""
    *others, last = [f"`{name}`" for name in names]
    return f"{', '.join(others)} or {last}" if others else last


class Reading:
    """One body while it is being read: within which limits, how strictly, what had no effect.

    `strict` answers as Groq's validator does: what it does not know is an error, and errors are in
    its words wherever those are known.
    """

    __slots__ = ("_ignored", "limits", "strict")

    def __init__(self, limits: BodyLimits, *, strict: bool = False) -> None:
        self.limits = limits
        self.strict = strict
        self._ignored: dict[str, None] = {}

    @property
    def ignored(self) -> tuple[str, ...]:
        """Paths of what was sent and has no effect, in order, each once."""
        return tuple(self._ignored)

    def ignore(self, path: Path) -> None:
        self._ignored[spelled(path)] = None

    def wrong(
        self, path: Path, value: JSON, wanted: str, *, said: str | None = None
    ) -> InvalidRequest:
        """The value at `path` is not `wanted`. `said`: Groq's words for that, where known."""
        if self.strict and said is not None:
            return self.in_their_words(path, said, param=path)
        name = spelled(path)
        return InvalidRequest(f"`{name}` must be {wanted}, not {shown(value)}", param=name)

    def missing(self, path: Path) -> InvalidRequest:
        if self.strict:
            return self.in_their_words(path, f"property '{path[-1]}' is missing", param=path)
        return InvalidRequest(f"`{spelled(path)}` is missing; it is required", param=spelled(path))

    def unsupported(self, path: Path, known: Iterable[str]) -> InvalidRequest:
        """No field of that name is known where `known` are."""
        said = f"property '{path[-1]}' is unsupported"
        if near := difflib.get_close_matches(str(path[-1])[:64], list(known), n=1):
            said += f", did you mean '{near[0]}'?"
        return self.in_their_words(path[:-1], said, param=path)

    def check_number(self, path: Path, number: int, plural: str, limit: str) -> None:
        """Refuse more of something than the `BodyLimits` field `limit` allows."""
        most: int = getattr(self.limits, limit)
        if number > most:
            raise InvalidRequest(
                f"`{spelled(path)}` has {number} {plural}; at most {most} are allowed",
                param=spelled(path),
            )

    @staticmethod
    def in_their_words(path: Path, said: str, *, param: Path) -> InvalidRequest:
        """As Groq's validator writes it: `'messages.0.content' : value must be a string`."""
        place = f"'{'.'.join(map(str, path))}' : " if path else ""
        return InvalidRequest(f"{place}{said}", param=spelled(param))
