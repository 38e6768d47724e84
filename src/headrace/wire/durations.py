"""Durations as the rate-limit headers write them: `26ms`, `1.57s`, `2m59.56s`, `1h0m0s`.

The rules are those of `time.Duration.String()` in Go.
"""

from __future__ import annotations

import re

_NS_PER_S = 1_000_000_000
_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": 1_000_000, "s": _NS_PER_S} | {
    "m": 60 * _NS_PER_S,
    "h": 3600 * _NS_PER_S,
}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_WHOLE = re.compile(rf"[-+]?(?:{_PART.pattern})+|[-+]?0")


def go_duration(duration_s: float) -> str:
    """`duration_s`, to the nanosecond. Below 1 ms it has a `µ`, which is not ASCII: round first
    what goes into a header. Raises `ValueError` or `OverflowError` for what is not finite."""
    num_ns = round(duration_s * _NS_PER_S)
    sign, num_ns = ("-", -num_ns) if num_ns < 0 else ("", num_ns)
    if num_ns == 0:
        return "0s"
    if num_ns < _NS_PER_S:
        unit = "ns" if num_ns < 1_000 else "µs" if num_ns < 1_000_000 else "ms"
        return f"{sign}{_decimal(num_ns, _UNITS[unit])}{unit}"
    minutes, rest_ns = divmod(num_ns, _UNITS["m"])
    hours, minutes = divmod(minutes, 60)
    hours_text = f"{hours}h" if hours else ""
    minutes_text = f"{minutes}m" if hours or minutes else ""
    return f"{sign}{hours_text}{minutes_text}{_decimal(rest_ns, _NS_PER_S)}s"


def parse_duration(text: str) -> float:
    """Seconds that `text` stands for. Raises `ValueError`."""
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"not a duration: {text!r}; write one like 1h2m3.5s or 26ms")
    seconds = sum(float(number) * _UNITS[unit] / _NS_PER_S for number, unit in _PART.findall(text))
    return -seconds if text.startswith("-") else seconds


def _decimal(num_ns: int, unit_ns: int) -> str:
    whole, rest = divmod(num_ns, unit_ns)
    num_digits = len(str(unit_ns)) - 1
    return f"{whole}.{rest:0{num_digits}d}".rstrip("0").rstrip(".") if rest else str(whole)
