"""Models as `/models` tells of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from headrace.wire.ask import JSON
from headrace.wire.json_bytes import body


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """One name that can be asked for."""

    id: str
    created: int
    """Unix seconds."""
    owned_by: str
    context_window: int
    """Tokens of prompt and answer together."""
    max_completion_tokens: int
    active: bool = True

    def as_wire(self) -> dict[str, JSON]:
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": self.owned_by,
            "active": self.active,
            "context_window": self.context_window,
            "public_apps": None,
            "max_completion_tokens": self.max_completion_tokens,
        }


def model_card(card: ModelCard) -> bytes:
    """The body of `GET /models/{id}`."""
    return body(card.as_wire())


def model_list(cards: Iterable[ModelCard]) -> bytes:
    """The body of `GET /models`."""
    return body({"object": "list", "data": [card.as_wire() for card in cards]})
