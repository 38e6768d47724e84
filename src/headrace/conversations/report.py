"""What an answer tells of how its conversation became a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.conversations.planning import Fitted
from headrace.conversations.strategies.values import Part


def context_report(
    fitted: Fitted, num_prompt_tokens: int, rewrites: Sequence[str] = ()
) -> dict[str, Any]:
    """`x_headrace.context`, but for the cached tokens, which only the end tells. The tokens of
    `kept`, `summarised`, `retrieved`, `turn` and `template` are those of the prompt together.

    `rewrites`: for what the template changes history, so that prefixes do not survive.
    """
    plan = fitted.plan
    summary = plan.summary.num_tokens if plan.summary else 0
    shown = [Part.of(part) for part in (plan.kept, plan.retrieved, plan.turn)]
    num_template = num_prompt_tokens - sum(part.num_tokens for part in shown) - summary
    told: dict[str, Any] = {
        "strategy": fitted.strategy,
        "kept": _part(shown[0]),
        "dropped": _part(Part.of(plan.dropped)),
        "summarised": _part(Part(len(plan.summarised), summary)),
        "retrieved": _part(shown[1]),
        "turn": _part(shown[2]),
        "template": {"tokens": num_template},
        "sources": [dict(source) for source in plan.sources],
        "cached_tokens": 0,
        "over_budget": num_prompt_tokens > fitted.budget.max_tokens,
        "prefix_stable": not rewrites,
        "time_s": round(fitted.time_s, 6),
    }
    if rewrites:
        told["rewrites"] = list(rewrites)
    if fitted.has_fallen_back:
        told["fallback_from"] = "full"
    if fitted.recalled is not None:
        told["retrieval"] = fitted.recalled.report()
    if fitted.strategy == "summary":
        waiting = plan.pending[-1].covered if plan.pending else ()
        told["pending"] = _part(Part.of(waiting[len(plan.summarised) :]))
    return told


def _part(part: Part) -> dict[str, int]:
    return {"messages": part.num_messages, "tokens": part.num_tokens}
