"""Same seed, same text, through HTTP: whoever else is being answered, and whatever is cached."""

from __future__ import annotations

import asyncio
from typing import Any

import groq

from support.clients import MODEL, groq_client, text_of, user
from support.servers import Server

NUM_OTHERS = 16
ASKED: dict[str, Any] = {
    "model": MODEL,
    "messages": user("Tell me about the sea. " * 12),
    "max_tokens": 32,
    "temperature": 0.8,
    "seed": 1234,
}


def told(server: Server) -> tuple[str, int]:
    """The text, and how much of the prompt came from the cache."""
    answer = groq_client(server).chat.completions.create(**ASKED)
    details = answer.usage.prompt_tokens_details
    return answer.choices[0].message.content or "", details.cached_tokens if details else 0


async def among_others(server: Server) -> str:
    async with groq.AsyncGroq(base_url=server.base_url, api_key="any") as client:

        async def stream(**asked: Any) -> str:
            chunks = await client.chat.completions.create(**{**ASKED, **asked}, stream=True)
            return text_of([chunk async for chunk in chunks])

        others = [
            stream(messages=user(f"{number} " * 4 * number), seed=number, max_tokens=16 + number)
            for number in range(NUM_OTHERS)
        ]
        return (await asyncio.gather(*others[:9], stream(), *others[9:]))[9]


def test_alone_in_company_cold_and_warm(real: Server) -> None:
    cold, num_cached = told(real)
    assert num_cached <= 32  # no more than the template's own words
    warm, num_cached = told(real)
    assert num_cached > 64
    assert len(cold) > 40
    assert warm == cold
    assert asyncio.run(among_others(real)) == cold
    assert real.metrics()["headrace_requests_open"] == 0


def test_log_probabilities_to_the_last_bit(real: Server) -> None:
    """Text could agree by luck; these cannot."""
    asked = {**ASKED, "logprobs": True, "max_tokens": 12}

    async def ask_all() -> list[Any]:
        async with groq.AsyncGroq(base_url=real.base_url, api_key="any") as client:
            answers = [client.chat.completions.create(**asked) for _ in range(4)]
            others = [
                client.chat.completions.create(**{**asked, "seed": n, "n": 2}) for n in range(4)
            ]
            return await asyncio.gather(*answers, *others)

    alone = groq_client(real).chat.completions.create(**asked)
    *same, _, _, _, _ = asyncio.run(ask_all())
    for answer in same:
        assert answer.choices == alone.choices
