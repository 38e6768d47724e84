"""Stream, or one JSON body?

| `stream` in the body | `Accept` names `text/event-stream` | answer |
|---|---|---|
| true | either | stream |
| false | either | JSON |
| absent or null | yes | stream |
| absent or null | no (`*/*` does not count) | JSON; a stream with `stream_by_default` |

Official clients leave `stream` out when they expect JSON, and send `Accept: application/json` when
they expect a stream; so a field that is there is never negotiated.
"""

from __future__ import annotations

import re

from headrace.wire.ask import Ask

_REFUSAL = re.compile(r"q\s*=\s*0(?:\.0*)?")


def wants_stream(ask: Ask, accept: str, *, by_default: bool) -> bool:
    """Whether to stream the answer; `accept` is the header's value."""
    if ask.stream is not None:
        return ask.stream
    return by_default or any(map(_names_events, accept.lower().split(",")))


def _names_events(part: str) -> bool:
    """Whether one part of `Accept` names a stream of events, and not with a weight of nothing."""
    kind, *parameters = (each.strip() for each in part.split(";"))
    return kind == "text/event-stream" and not any(map(_REFUSAL.fullmatch, parameters))
