"""What must be the same for a stream to go on after a restart, bit for bit.

In: an engine. Out: its identity as JSON, for a stream's header; and whether one is met again.
Thread: any; the first use reads the model's whole file. Next: `journal.py`.

Threads, batches and instruction sets are no part of it: they change no result.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from headrace.engine.engine import Engine
from headrace.model.digest import digest_of

_GRAMMAR_LIBRARY: Final = "llguidance"
_WORDS: Final = {
    "model": "the model or its numerics",
    "sha256": "the model's file",
    "saying": "how tokens are read as text",
    "grammar": f"the grammar library, {_GRAMMAR_LIBRARY}",
}

SAYING: Final = 1
"""Changes where equal tokens would be said otherwise: as other texts, in other cuts, or with
another end."""


def identity_of(engine: Engine, *, has_grammar: bool) -> dict[str, Any]:
    """All that an answer depends on beside its request. Raises `ModelError` where the model's file
    cannot be read any more."""
    path = engine.spec.path
    identity: dict[str, Any] = {
        "model": engine.spec.identity,
        "sha256": None if path is None else digest_of(path),
        "saying": SAYING,
    }
    if has_grammar:
        identity["grammar"] = _library_version()
    return identity


def differences(before: Mapping[str, Any], engine: Engine) -> list[str]:
    """In words, what is not as it was when `before` was the identity; empty where a stream can go
    on. Raises as `identity_of` does."""
    now = identity_of(engine, has_grammar="grammar" in before)
    names = [*now, *(name for name in before if name not in now)]
    return [_WORDS.get(name, name) for name in names if before.get(name) != now.get(name)]


def same_identity(before: Mapping[str, Any], engine: Engine) -> bool:
    """Whether a stream goes on in `engine` as it would have where it began."""
    return not differences(before, engine)


def _library_version() -> str:
    try:
        return version(_GRAMMAR_LIBRARY)
    except PackageNotFoundError:
        return "none"
