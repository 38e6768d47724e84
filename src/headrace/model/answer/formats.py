"""How model families write tool calls and thoughts: two small tables.

In: the source of a chat template. Out: which rows of the tables apply.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How one family calls tools."""

    name: str
    opening: str
    """Stands before each call, or before the list of all calls."""
    closing: str
    """Stands after each call; may be empty."""
    arguments: str
    """The key of a call's arguments; the name's key is `name` everywhere."""
    is_list: bool = False
    """All calls stand in one JSON array."""
    needs_opening: bool = True
    """False: an answer that begins with a call's JSON is a call too."""
    in_template: bool = True
    """False: the template knows no tools; instructions in the system message describe them."""

    @property
    def can_repeat(self) -> bool:
        """Whether an answer may hold several calls."""
        return self.is_list or bool(self.closing)


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>", "arguments")
"""Qwen, Hermes and many more: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, repeated."""
LLAMA = ToolFormat("llama", "<|python_tag|>", "", "parameters", needs_opening=False)
"""Llama 3: the whole answer is `{"name": …, "parameters": {…}}`."""
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", "", "arguments", is_list=True)
"""Mistral: `[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`."""
GENERIC = ToolFormat("generic", "<tool_call>", "</tool_call>", "arguments", in_template=False)
"""Any other: Hermes' format, taught by the system message; see `messages.py`."""


def tool_format(template_source: str) -> ToolFormat:
    """The format that a chat template teaches its model; `GENERIC` where it teaches none that is
    known."""
    if "[TOOL_CALLS]" in template_source and "[ARGS]" not in template_source:
        return MISTRAL
    if "<tool_call>" in template_source and "<function=" not in template_source:
        return HERMES
    if '"parameters": ' in template_source and (
        "<|python_tag|>" in template_source or "ipython" in template_source
    ):
        return LLAMA
    return GENERIC


@dataclass(frozen=True, slots=True)
class ThinkMarkers:
    """What stands around a model's thoughts, at the beginning of its answer."""

    opening: str
    closing: str


THINK_MARKERS = (
    ThinkMarkers("<think>", "</think>"),
    ThinkMarkers("[THINK]", "[/THINK]"),
)


def think_markers(template_source: str, spellings: frozenset[str]) -> ThinkMarkers | None:
    """The markers that a template writes or that are tokens of their own; None: it does not
    think."""
    for markers in THINK_MARKERS:
        if markers.closing in template_source or markers.closing in spellings:
            return markers
    return None
