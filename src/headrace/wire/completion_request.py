"""`POST /completions`, the older endpoint: raw text or tokens to go on from, without a template.

In: a JSON object. Out: a `CompletionAsk`, or `InvalidRequest`. Thread: the event loop.
Next: `server/completions.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from headrace.errors import InvalidRequest
from headrace.wire.ask import JSON, Ask
from headrace.wire.body import BodyLimits
from headrace.wire.common_fields import (
    MAX_TOKENS,
    MODEL,
    MOST_CHOICES,
    OUR_SAMPLING,
    SAMPLING,
    STREAMING,
    USER,
    stream_options,
)
from headrace.wire.continue_from import CONTINUE_FROM
from headrace.wire.fields import Table, field, refused
from headrace.wire.kinds import Boolean, ByType, Kind, Many, Text, Whole
from headrace.wire.reading import Path, Reading


@dataclass(frozen=True, slots=True)
class CompletionAsk:
    """One completion, of one prompt or several: each prompt is an `Ask` of its own.

    Answer `choice` to prompt `index` has the wire's index `index * n + choice`. But for its prompt,
    each `Ask` says the same.
    """

    asks: tuple[Ask, ...]
    echo: bool = False
    """The answer's text begins with the prompt's."""

    @property
    def first(self) -> Ask:
        """For what all of them say alike: model, `n`, streaming, limits."""
        return self.asks[0]

    def index(self, prompt: int, choice: int) -> int:
        """The wire's index of an answer."""
        return prompt * self.first.n + choice


_PROMPTS = "a string, a list of strings, a list of token ids, or a list of such lists"
_TOKEN_IDS = Many(Whole(0), "token ids", least=1)
_SEVERAL: Final[Mapping[type, Kind]] = {
    str: Many(Text(), "prompts", limit="max_prompts"),
    int: _TOKEN_IDS,
    float: _TOKEN_IDS,
    list: Many(_TOKEN_IDS, "prompts", limit="max_prompts"),
}
"""What a list is of, by the type of its first item."""


class _List:
    """Prompts, or the tokens of one."""

    def read(self, value: list[JSON], path: Path, reading: Reading) -> list[str | list[int]]:
        kind = _SEVERAL.get(type(value[0])) if value else None
        if kind is None:
            raise reading.wrong(path, value, f"{_PROMPTS}, and none of them empty")
        read = kind.read(value, path, reading)
        return [read] if kind is _TOKEN_IDS else read

    def schema(self, limits: BodyLimits) -> dict[str, JSON]:
        kinds = (_SEVERAL[str], _TOKEN_IDS, _SEVERAL[list])
        return {"anyOf": [kind.schema(limits) | {"minItems": 1} for kind in kinds]}


COMPLETION: Final = Table(
    MODEL,
    field(
        "prompt",
        ByType({str: Text(), list: _List()}, _PROMPTS),
        note="Goes to the model as it is, without a template.",
        required=True,
    ),
    CONTINUE_FROM,
    *STREAMING,
    MAX_TOKENS,
    *SAMPLING,
    *OUR_SAMPLING,
    field("n", Whole(1, MOST_CHOICES), "n", "How many answers to give to each prompt."),
    field("best_of", Whole(1, MOST_CHOICES), note="The same as `n`."),
    field("echo", Boolean(), note="Begin the answer with the prompt."),
    field("logprobs", Whole(0, 5), note="Log probabilities of tokens, and of so many others."),
    refused("suffix", "the models here only go on from a prompt", ""),
    USER,
)


def parse_completion(
    body: Mapping[str, JSON], limits: BodyLimits, *, strict: bool = False
) -> CompletionAsk:
    """What `body` asks for. Raises `InvalidRequest`, naming the field.

    `logprobs` is a number here, of the likeliest tokens to show; 0 shows the chosen one's alone.
    """
    reading = Reading(limits, strict=strict)
    given = COMPLETION.read(body, (), reading)
    settings = COMPLETION.settings(given, reading)
    prompts = given["prompt"] if isinstance(given["prompt"], list) else [given["prompt"]]
    _check_number(len(prompts), settings.get("n", 1), given.get("best_of"), limits)
    if given.get("echo") and not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidRequest("`echo` needs a `prompt` of text, not of token ids", param="echo")
    if "logprobs" in given:
        settings |= {"logprobs": True, "top_logprobs": given["logprobs"]}
    settings |= stream_options(given)
    settings |= {"tool_choice": "none", "ignored": reading.ignored}
    asks = tuple(Ask(**_start(prompt), **settings) for prompt in prompts)
    return CompletionAsk(asks, given.get("echo", False))


def _start(prompt: str | list[int]) -> dict[str, Any]:
    return {"prompt": prompt} if isinstance(prompt, str) else {"token_ids": tuple(prompt)}


def _check_number(num_prompts: int, n: int, best_of: int | None, limits: BodyLimits) -> None:
    if best_of is not None and best_of != n:
        raise InvalidRequest(
            f"`best_of` must be the same as `n`, {n}: every answer that is made is given",
            param="best_of",
        )
    if num_prompts * n > limits.max_prompts:
        raise InvalidRequest(
            f"{num_prompts} prompts with `n` {n} are {num_prompts * n} answers; at most "
            f"{limits.max_prompts} are given to one request",
            param="n",
        )
