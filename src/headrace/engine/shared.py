"""`headrace.generate`: one line for those who want no engine to look after.

In: a prompt. Out: a `Generation`. Thread: any. Next: `engine.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from headrace.engine.engine import Engine
from headrace.engine.request import Message, Request
from headrace.engine.stream import Generation


def generate(
    prompt: str | Sequence[Message], *, model: str | Path | None = None, **settings: Any
) -> Generation:
    """Answer a question, or go on with a list of messages.

        print(headrace.generate("Why is the sky blue?", max_tokens=100).text)

        for piece in headrace.generate(messages, model="my.gguf", temperature=0.7):
            print(piece, end="", flush=True)

    `settings` are those of `headrace.Request`. The first call loads the model (fetching the default
    one if it is not here yet); it stays loaded for the next calls, until the process ends. For more
    than that, use `headrace.Engine.load`.

    Raises `InvalidRequest`, `ModelNotFound`, `ModelError`, `PullError` at once; what goes wrong
    later is raised where the text is read.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    request = Request(messages=messages, **settings)
    return _engine(None if model is None else str(model)).generate_sync(request)


@cache
def _engine(model: str | None) -> Engine:
    return Engine.load(model)
