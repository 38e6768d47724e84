"""How a conversation becomes a prompt: strategies over plain values, without I/O.

full      everything
sliding   the system prompt and the newest turns
summary   the same, with a summary in the place of what is left out

A strategy is made for one request, with what was found for it (a summary, passages), and gives a
`Plan`. Plans depend on the history and the budget alone, so a replay gives the same prompt.
"""

from headrace.conversations.strategies.full import Full
from headrace.conversations.strategies.sliding import SlidingWindow
from headrace.conversations.strategies.summary import Summary
from headrace.conversations.strategies.values import (
    Budget,
    Condense,
    Item,
    Message,
    Part,
    Plan,
    Strategy,
)

__all__ = [
    "Budget",
    "Condense",
    "Full",
    "Item",
    "Message",
    "Part",
    "Plan",
    "SlidingWindow",
    "Strategy",
    "Summary",
]
