"""One hook for whoever wants to know: facts, said once, when they are whole.

In: facts from the server. Out: the same, to metrics, logs and whatever a user adds.
Thread: the event loop.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEnded:
    """One HTTP request that was answered, refused or left. Times in seconds."""

    request_id: str
    endpoint: str
    """Without prefix: `/chat/completions`; `other` for unknown URLs."""
    status: int
    """499 where the client left first."""
    total_s: float
    """From the request's arrival to the last byte."""
    client_request_id: str | None = None
    tenant: str = ""
    model: str | None = None
    """As asked for."""
    served_by: str | None = None
    """The model that answered."""
    is_streamed: bool = False
    error_code: str | None = None
    error_message: str | None = None
    finish_reasons: tuple[str, ...] = ()
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_loaded_tokens: int = 0
    """Cached ones whose banks came from disk."""
    num_completion_tokens: int = 0
    queued_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    ttft_s: float | None = None
    """From the request's arrival to the first token; None where none came."""
    gaps_s: array[float] = field(default_factory=lambda: array("d"))
    """Between the tokens of each choice as they reached the event loop."""
    prompts: tuple[str, ...] = ()
    """What was asked, messages as JSON; only where the settings say that it is logged."""
    answers: tuple[str, ...] = ()
    """Each choice's text, on the same condition."""


@dataclass(frozen=True, slots=True)
class LimitHit:
    """A request met a limit of its key."""

    tenant: str
    model: str
    limit: str
    """`RPM`, `RPD`, `TPM` or `TPD`."""


Fact = RequestEnded | LimitHit


class Observer(Protocol):
    """Hears of facts. Must be quick: it runs on the event loop."""

    def observe(self, fact: Fact) -> None: ...


class Observers:
    """Tells all; one that fails is logged and harms nobody."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def observe(self, fact: Fact) -> None:
        for observer in self._observers:
            try:
                observer.observe(fact)
            except Exception:
                _log.exception("an observer failed")
