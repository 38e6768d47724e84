"""`headrace.generate`: one line for those who want no engine to look after.

In: a prompt. Out: a `Generation`. Thread: any. Next: `engine.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from headrace.engine.engine import Engine
from headrace.engine.request import Message, Request
from headrace.engine.stream import Generation

_engines: dict[str | None, Engine] = {}
_loading = Lock()


def generate(
    prompt: str | Sequence[Message], *, model: str | Path | None = None, **settings: Any
) -> Generation:
    """Answer a question, or go on with a list of messages.

        print(headrace.generate("Why is the sky blue?", max_tokens=100).text)

        for piece in headrace.generate(messages, model="my.gguf", temperature=0.7):
            print(piece, end="", flush=True)

    `settings` are those of `headrace.Request`, with its defaults: temperature 0, the likeliest
    token always, and `max_tokens=None`, an answer that may fill the context.

    The first call loads the model (fetching the default one if it is not here yet), once however
    many threads call; it stays loaded for the next calls, until the process ends. For more than
    that, use `headrace.Engine.load`.

    Raises at once: `TypeError` for an unknown setting, `InvalidRequest` (and of it
    `ContextLengthExceeded`, where the prompt leaves no room for an answer), `ModelNotFound`,
    `ModelError`, `PullError`, `EngineOverloaded` and `EngineClosed`. What goes wrong later is
    raised where the text is read.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    request = Request(messages=messages, **settings)
    return _engine(None if model is None else str(model)).generate_sync(request)


def _engine(model: str | None) -> Engine:
    engine = _engines.get(model)
    if engine is not None:  # it need not wait until another model is loaded
        return engine
    with _loading:
        if model not in _engines:
            _engines[model] = Engine.load(model)
        return _engines[model]
