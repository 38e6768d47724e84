"""What an answer cost, as its `usage` objects say it.

A prompt is counted once, however many choices it has. Times are those of the whole answer, by the
clock: choices run side by side, so theirs are not added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from headrace.events import Timings, Usage
from headrace.wire.ask import JSON

_NS_PER_S = 1_000_000_000


class Ended(Protocol):
    """How one choice ended: `Finished` or `Choice`."""

    @property
    def usage(self) -> Usage: ...

    @property
    def timings(self) -> Timings: ...


def usage_object(prompts: Sequence[Sequence[Ended]]) -> dict[str, JSON]:
    """The `usage` of chat and completions: of each prompt, how its choices ended.

    Details stand at the end, and only where they are not 0. Times are in seconds, exact to the
    nanosecond, and `total_time` is exactly `prompt_time` + `completion_time`.
    """
    tokens = [prompt_usage(choices) for choices in prompts]
    num_prompt = sum(usage.num_prompt_tokens for usage in tokens)
    num_completion = sum(usage.num_completion_tokens for usage in tokens)
    queue_ns, prompt_ns, completion_ns = _times([end for choices in prompts for end in choices])
    said: dict[str, JSON] = {
        "queue_time": _seconds(queue_ns),
        "prompt_tokens": num_prompt,
        "prompt_time": _seconds(prompt_ns),
        "completion_tokens": num_completion,
        "completion_time": _seconds(completion_ns),
        "total_tokens": num_prompt + num_completion,
        "total_time": _seconds(prompt_ns + completion_ns),
    }
    if num_cached := sum(usage.num_cached_tokens for usage in tokens):
        said["prompt_tokens_details"] = {"cached_tokens": num_cached}
    if num_reasoning := sum(_num_reasoning(end) for choices in prompts for end in choices):
        said["completion_tokens_details"] = {"reasoning_tokens": num_reasoning}
    return said


def cached_where(prompts: Sequence[Sequence[Ended]]) -> dict[str, JSON]:
    """Where cached prompt tokens came from, in Groq's words: `sram` is memory here, `dram` is disk.
    Empty where there were none."""
    tokens = [prompt_usage(choices) for choices in prompts]
    num_cached = sum(usage.num_cached_tokens for usage in tokens)
    num_loaded = sum(usage.num_loaded_tokens for usage in tokens)
    if not num_cached:
        return {}
    return {"sram_cached_tokens": num_cached - num_loaded, "dram_cached_tokens": num_loaded}


def times_in_words(end: Ended) -> dict[str, JSON]:
    """The times of a response, in seconds, as `metadata` has them: texts."""
    said = usage_object([[end]])
    names = ("completion_time", "prompt_time", "queue_time", "total_time")
    return {name: str(said[name]) for name in names}


def responses_usage(end: Ended) -> dict[str, JSON]:
    """The `usage` of `/responses`, which has other names, no times, and always its details."""
    usage = end.usage
    return {
        "input_tokens": usage.num_prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.num_cached_tokens,
            # Nothing is charged for writing; OpenAI's own client requires the field.
            "cache_write_tokens": 0,
        },
        "output_tokens": usage.num_completion_tokens,
        "output_tokens_details": {"reasoning_tokens": _num_reasoning(end)},
        "total_tokens": usage.num_prompt_tokens + usage.num_completion_tokens,
    }


class Ends:
    """Collects the ends of an answer's choices, until all have ended."""

    def __init__(self, num_prompts: int, num_choices_each: int) -> None:
        self._num_prompts = num_prompts
        self._num_choices_each = num_choices_each
        self._ends: dict[int, Ended] = {}

    @property
    def are_all(self) -> bool:
        return len(self._ends) == self._num_prompts * self._num_choices_each

    def add(self, index: int, end: Ended) -> None:
        """`index`: the choice's place in the whole answer, prompt by prompt."""
        self._ends[index] = end

    def usage_object(self) -> dict[str, JSON]:
        """Call it when all have ended."""
        return usage_object(self._by_prompt())

    def cached_where(self) -> dict[str, JSON]:
        """Call it when all have ended."""
        return cached_where(self._by_prompt())

    def usage(self) -> Usage:
        """Of the first prompt. Call it when all have ended."""
        return prompt_usage(self._by_prompt()[0])

    def _by_prompt(self) -> list[list[Ended]]:
        each = self._num_choices_each
        return [
            [self._ends[prompt * each + choice] for choice in range(each)]
            for prompt in range(self._num_prompts)
        ]


def prompt_usage(choices: Sequence[Ended]) -> Usage:
    """Of one prompt. What a choice found that its sibling had computed was not there before."""
    usages = [end.usage for end in choices]
    first = min(usages, key=lambda usage: usage.num_cached_tokens, default=Usage(0, 0, 0))
    return Usage(
        max((usage.num_prompt_tokens for usage in usages), default=0),
        first.num_cached_tokens,
        sum(usage.num_completion_tokens for usage in usages),
        num_loaded_tokens=first.num_loaded_tokens,
        num_shifted_tokens=first.num_shifted_tokens,
    )


def _num_reasoning(end: Ended) -> int:
    return end.usage.num_reasoning_tokens


def _times(ends: Sequence[Ended]) -> tuple[int, int, int]:
    """Nanoseconds until the first step, from there to the first token, from there to the end."""
    if not ends:
        return 0, 0, 0
    # A choice without a token has no first token whose moment would count.
    spoken = [end for end in ends if end.usage.num_completion_tokens] or ends
    queue_ns = min(_ns(end.timings.queued_s) for end in spoken)
    first_ns = min(_ns(end.timings.queued_s) + _ns(end.timings.prefill_s) for end in spoken)
    end_ns = max(
        _ns(end.timings.queued_s) + _ns(end.timings.prefill_s) + _ns(end.timings.decode_s)
        for end in ends
    )
    return queue_ns, first_ns - queue_ns, end_ns - first_ns


def _ns(seconds: float) -> int:
    return round(seconds * _NS_PER_S)


def _seconds(num_ns: int) -> float:
    """Whole seconds without a decimal point, as on the wire."""
    whole, rest = divmod(num_ns, _NS_PER_S)
    return num_ns / _NS_PER_S if rest else whole
