"""Whether a chat template leaves earlier turns as they were, so that their banks are found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from headrace.errors import HeadraceError
from headrace.model.prompt import RenderedPrompt

Rewrite: TypeAlias = Literal["history", "reasoning", "date"]
"""`history`: an answer is shown otherwise than it was begun. `reasoning`: thoughts are dropped.
`date`: the prompt tells the day."""

_ASKED = {"role": "user", "content": "is it?"}
_SAID = "it is"
_THOUGHT = "it may be"


def rewrites(
    render: Callable[[Sequence[dict[str, Any]]], RenderedPrompt], source: str, *, thinks: bool
) -> tuple[Rewrite, ...]:
    """What a template changes of the prompts before. `thinks`: its model has thoughts to drop."""
    try:
        first = render([_ASKED]).text
        answered = {"role": "assistant", "content": _SAID}
        second = render([_ASKED, answered, _ASKED]).text
        thought = render([_ASKED, {**answered, "reasoning_content": _THOUGHT}, _ASKED]).text
    except HeadraceError:
        return ()
    found: list[Rewrite] = []
    # A space before an answer is the model's own, and replayed as such.
    if not second.startswith((first + _SAID, f"{first} {_SAID}")):
        found.append("history")
    if thinks and _THOUGHT not in thought:
        found.append("reasoning")
    if "strftime_now" in source:
        found.append("date")
    return tuple(found)
