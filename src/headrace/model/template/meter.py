"""What a template may spend: steps, and characters in one text. Counted, never measured, so that a
template fails on every machine or on none.

- A step is one syntax node evaluated, or one item or 64 characters worked on.
- A value has a size, counted through all its parts however often a part is shared, so that doubling
  a list forty times fails at once and not when it is printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from jinja2.runtime import Context

from headrace.model.template.origins import written_by_message

CONTAINERS = (list, tuple, dict)
MAX_INT_BITS = 1024
MAX_NESTING = 100
_SCALARS = (bool, int, float, type(None))


class BudgetExceededError(Exception):
    """The template asked for more than it has."""


class Meter:
    """What one rendering may still spend. One a render; never shared."""

    __slots__ = ("_known", "_num_chars", "_num_steps")

    def __init__(self, num_steps: int, num_chars: int) -> None:
        """`num_steps` in all; `num_chars` in any one text."""
        self._num_steps = num_steps
        self._num_chars = num_chars
        # (value, size, nesting) by id; keeps the value alive, so that no other gets its id.
        self._known: dict[int, tuple[object, int, int]] = {}

    def spend(self, steps: int) -> None:
        self._num_steps -= steps
        if self._num_steps < 0:
            raise BudgetExceededError("it works more than these messages can need")

    def allow(self, num_chars: int) -> None:
        """Refuse a text of this length before it is made."""
        if num_chars > self._num_chars:
            raise BudgetExceededError(f"it makes a text of more than {self._num_chars} characters")

    def size(self, value: Any) -> int:
        """Parts and text of `value`, shared parts as often as they are met."""
        return self._measure(value)[0]

    def nesting(self, value: Any) -> int:
        """How many containers deep `value` goes."""
        return self._measure(value)[1]

    def made(self, value: Any) -> Any:
        """Pay for a new value; lazy ones pay as they go."""
        if isinstance(value, str):
            self.allow(len(value))
            self.spend(1 + (len(value) >> 10))
        elif isinstance(value, CONTAINERS):
            if self.size(value) > self._num_chars:
                raise BudgetExceededError("it makes a list or dictionary too large to print")
        elif isinstance(value, Iterator):
            return self._paying(value)
        elif isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
            raise BudgetExceededError("it computes with numbers of hundreds of digits")
        return value

    def read_items(self, value: Any) -> None:
        """Pay for going once through `value`; lazy values pay by themselves."""
        length = len(value) if hasattr(value, "__len__") else 0
        self.spend(length >> 6 if isinstance(value, str) else length)

    def read_deep(self, value: Any) -> None:
        """Pay for going through all parts of `value`."""
        self.read_items(value)
        self.spend(self.size(value))

    def text(self, value: Any) -> str:
        """`value` as Jinja would print it, paid for."""
        if isinstance(value, str):
            self.spend(len(value) >> 6)
            return value
        if isinstance(value, _SCALARS):
            return str(value)
        self.read_deep(value)
        text = str(value)
        self.allow(len(text))
        return written_by_message(text) if isinstance(value, CONTAINERS) else text

    def _measure(self, value: Any) -> tuple[int, int]:
        if isinstance(value, str):
            return 1 + (len(value) >> 6), 0
        if not isinstance(value, CONTAINERS):
            return 1, 0
        known = self._known.get(id(value))
        if known is None:
            self.spend(len(value))
            parts = [self._measure(part) for part in _parts(value)]
            size = 1 + sum(size for size, _ in parts)
            nesting = 1 + max((nesting for _, nesting in parts), default=0)
            if nesting > MAX_NESTING:
                raise BudgetExceededError(f"it nests lists more than {MAX_NESTING} deep")
            known = self._known[id(value)] = (value, size, nesting)
        return known[1], known[2]

    def _paying(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self.spend(1)
            yield item


class MeteredContext(Context):
    """Jinja's context, with the render's meter."""

    meter: Meter

    def derived(self, locals: dict[str, Any] | None = None) -> Context:  # noqa: A002 - as in Jinja
        context = cast(MeteredContext, super().derived(locals))
        context.meter = self.meter
        return context


def _parts(value: Any) -> Iterable[Any]:
    return [*value, *value.values()] if isinstance(value, dict) else value
