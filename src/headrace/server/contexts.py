"""What a server knows of contexts: its defaults, what it has counted, the summaries it has made."""

from __future__ import annotations

import logging
import threading
from typing import cast

import orjson

from headrace.conversations.condensing import Shelf
from headrace.conversations.measure import Counts
from headrace.conversations.stability import Rewrite, rewrites
from headrace.engine.replay import Render
from headrace.model.answer import AnswerStyle
from headrace.server.models import ServedModel
from headrace.settings import ServerSettings
from headrace.wire.ask import Ask, Context, StrategyName

_log = logging.getLogger(__name__)


class Contexts:
    """Any thread."""

    def __init__(self, settings: ServerSettings) -> None:
        self.default = Context(
            strategy=cast(StrategyName, settings.context),
            fallback=cast("StrategyName | None", settings.context_fallback),
        )
        self.counts = Counts()
        self.shelf = Shelf()
        self._max_tokens = settings.context_tokens
        self._rewrites: dict[tuple[str, bytes], tuple[Rewrite, ...]] = {}
        self._lock = threading.Lock()

    def of(self, ask: Ask) -> Context:
        """What holds for a question: what it says, over the server's default."""
        context = (ask.context or Context()).over(self.default)
        if context.strategy != "full" and context.max_tokens is None:
            context = Context(max_tokens=self._max_tokens).over(context)
        return context

    def rewrites(
        self, served: ServedModel, style: AnswerStyle, ask: Ask, render: Render
    ) -> tuple[Rewrite, ...]:
        """What the model's template changes of earlier prompts. Looked up once, and logged."""
        key = (served.id, variables_key(style, ask))
        with self._lock:
            known = self._rewrites.get(key)
        if known is not None:
            return known
        source = getattr(served.engine.template, "source", "")
        found = rewrites(render, source, thinks=style.thinks is not None)
        with self._lock:
            is_new = not any(model_id == served.id for model_id, _ in self._rewrites)
            if len(self._rewrites) >= _MAX_REWRITES:
                self._rewrites.clear()
            self._rewrites[key] = found
        if found and is_new:
            _log.warning(
                "the chat template of %s rewrites earlier turns (%s), so that a part of each "
                "prompt is computed again",
                served.id,
                ", ".join(found),
            )
        return found


_MAX_REWRITES = 64


def variables_key(style: AnswerStyle, ask: Ask) -> bytes:
    """Equal for questions whose messages the template writes alike."""
    return orjson.dumps(dict(style.variables(ask)), option=orjson.OPT_SORT_KEYS, default=str)
