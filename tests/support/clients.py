"""The official Python clients, pointed at a server of ours."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import groq
import openai

from support.servers import Server

MODEL = "llama-3.1-8b-instant"
"""As guides and examples call it."""


def groq_client(server: Server, **options: Any) -> groq.Groq:
    return groq.Groq(**{"base_url": server.base_url, "api_key": "any", "max_retries": 0} | options)


def openai_client(server: Server, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(
        **{"base_url": server.openai_url, "api_key": "any", "max_retries": 0} | options
    )


CLIENTS = {"groq": groq_client, "openai": openai_client}


def user(text: str) -> list[dict[str, str]]:
    """A conversation of one question."""
    return [{"role": "user", "content": text}]


def text_of(chunks: list[Any], choice: int = 0) -> str:
    """What a stream says for one choice."""
    parts = [each for chunk in chunks for each in chunk.choices if each.index == choice]
    return "".join(part.delta.content or "" for part in parts)


def use_up(ask: Callable[[], Any]) -> None:
    """Meets a limit of so many requests a minute. Afterwards a whole interval must pass until the
    next request is admitted: the last one had been waited for."""
    while _is_admitted(ask):
        pass
    while not _is_admitted(ask):
        time.sleep(0.005)


def _is_admitted(ask: Callable[[], Any]) -> bool:
    try:
        ask()
    except (groq.RateLimitError, openai.RateLimitError):
        return False
    return True
