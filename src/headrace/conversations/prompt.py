"""The seam between a conversation and its prompt: a history and new messages become messages.

In: the branch that a turn stands on, what is new. Out: the messages that the model is told.
"""

from __future__ import annotations

from collections.abc import Sequence

from headrace.conversations import tree
from headrace.conversations.strategies.values import Message
from headrace.conversations.values import StoredMessage


def new_messages(
    history: Sequence[StoredMessage], asked: Sequence[Message], num_passing: int
) -> Sequence[Message]:
    """What of a question is to be kept: not what is for this turn alone, and not the system
    message once more that the conversation begins with."""
    new = asked[num_passing:]
    if history and len(new) > 1 and new[0] == history[0].message and history[0].role == "system":
        return new[1:]
    return new


def answer_ids(history: Sequence[StoredMessage], num_passing: int) -> dict[int, Sequence[int]]:
    """By index in `prompt_messages`: the tokens that earlier answers were generated as."""
    return {
        index: message.token_ids
        for index, message in enumerate(tree.told(history), num_passing)
        if message.token_ids and message.role == "assistant"
    }


def prompt_messages(
    history: Sequence[StoredMessage], asked: Sequence[Message], num_passing: int
) -> tuple[Message, ...]:
    """All that was said, then what is new."""
    told = [message.message for message in tree.told(history)]
    new = new_messages(history, asked, num_passing)
    return (*asked[:num_passing], *told, *new)
