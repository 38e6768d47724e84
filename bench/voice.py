"""How soon an answer begins after a question that was spoken or typed, beside one sent whole.

    python bench/voice.py [--quick] [--tokens 400] [--speak-s 2]

Serves the default model. Each round asks two questions of about as many tokens, of new words, in
turns: one piece by piece over `--speak-s` seconds (`input.append`), one whole. Measured is from the
last message to the first text; greedy answers of one word, so that rounds do not overlap.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Sequence
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from headrace.bench.figures import percentile
from streams import ask, serving

BAR_MS = 25.0
"""Of the median, on the reference machine."""
NUM_PIECES = 40
WORDS = (
    *("river", "wheel", "stone", "water", "miller", "winter", "summer", "bridge", "morning"),
    *("evening", "bread", "flour", "grain", "horse", "road", "village", "church", "garden"),
    *("window", "candle", "letter", "uncle", "sister", "harvest", "market", "silver", "copper"),
)


def new_text(dice: random.Random, num_tokens: int) -> str:
    """Words that no cache knows in this order; each is about one token."""
    return " ".join(dice.choices(WORDS, k=num_tokens))


async def first_text(socket: ClientConnection) -> tuple[float, dict[str, Any]]:
    """When the answer's first text came, and its usage; reads the answer to its end."""
    came_at, usage = 0.0, dict[str, Any]()
    while (data := json.loads(await socket.recv()).get("data")) != "[DONE]":
        if data is None:
            continue
        if not came_at and any(choice["delta"].get("content") for choice in data["choices"]):
            came_at = time.perf_counter()
        usage = data.get("x_groq", {}).get("usage") or usage
    return came_at, usage


async def spoken_ms(
    socket: ClientConnection, body: dict[str, Any], text: str, speak_s: float
) -> tuple[float, dict[str, Any]]:
    """Milliseconds from the commit to the first text, and the usage."""
    size = -(-len(text) // NUM_PIECES)
    for start in range(0, len(text), size):
        piece = {"id": "a", "type": "input.append", "text": text[start : start + size]}
        await socket.send(json.dumps({**piece, **body} if start == 0 else piece))
        await asyncio.sleep(speak_s / NUM_PIECES)
    asked_at = time.perf_counter()
    await socket.send(json.dumps({"id": "a", "type": "input.commit"}))
    came_at, usage = await first_text(socket)
    return (came_at - asked_at) * 1000, usage


async def whole_ms(
    socket: ClientConnection, body: dict[str, Any], text: str
) -> tuple[float, dict[str, Any]]:
    """The same of a question that nothing is known of before."""
    asked_at = time.perf_counter()
    messages = [{"role": "user", "content": text}]
    await socket.send(json.dumps({"id": "b", **body, "messages": messages}))
    came_at, usage = await first_text(socket)
    return (came_at - asked_at) * 1000, usage


async def measure(url: str, num_rounds: int, num_tokens: int, speak_s: float) -> None:
    model = json.loads(ask(url, "GET", "/v1/models").read())["data"][0]["id"]
    body = {"model": model, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    dice = random.Random(1)
    spoken, whole = [], []
    async with connect(url.replace("http://", "ws://") + "/v1/chat/completions") as socket:
        for number in range(num_rounds + 1):
            texts = [new_text(dice, num_tokens) for _ in range(2)]
            ahead = await spoken_ms(socket, body, texts[0], speak_s)
            cold = await whole_ms(socket, body, texts[1])
            if number:  # the first round warms up
                spoken.append(ahead)
                whole.append(cold)
    show("sent while speaking", spoken)
    show("sent whole", whole)
    p50 = percentile([ms for ms, _ in spoken], 50)
    print(f"bar: p50 of the first {BAR_MS:g} ms; {'holds' if p50 <= BAR_MS else 'BROKEN'}")


def show(name: str, rounds: Sequence[tuple[float, dict[str, Any]]]) -> None:
    waits = [ms for ms, _ in rounds]
    usage = rounds[-1][1]
    cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    print(
        f"{name:<20} first text p50 {percentile(waits, 50):7.1f} ms, p95 "
        f"{percentile(waits, 95):7.1f} ms; of {usage['prompt_tokens']} tokens {cached} were there"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--tokens", type=int, default=400, help="of a question, about")
    parser.add_argument("--speak-s", type=float, default=2.0, help="how long one takes to say it")
    options = parser.parse_args()
    num_rounds = 5 if options.quick else 30
    with serving() as served:
        asyncio.run(measure(served.url, num_rounds, options.tokens, options.speak_s))


if __name__ == "__main__":
    main()
