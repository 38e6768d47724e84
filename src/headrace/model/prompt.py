"""A prompt as text that still knows which parts of it the chat template wrote."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """What a chat template rendered, or a bare text that no template wrote any part of."""

    text: str
    template_spans: tuple[tuple[int, int], ...] = ()
    """Ascending, disjoint `[start, end)` parts that the template wrote. Only what lies wholly
    inside one of them can be a control token; everything else is text, whatever it looks like."""
