"""How often streams were taken up again without getting further.

In: the streams that a dead process left, with their tokens. Out: which attempt each is at.
Thread: any, one at a time.

What ends the process would end the next one as well, if it were taken up for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

_OWNER_ONLY = 0o600


class Attempts:
    """Kept in one small file, which is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def count(self, num_tokens: Mapping[str, int]) -> dict[str, int]:
        """Which attempt in a row without a new token this is, from 1 on, for each stream of so
        many tokens. Kept before this returns, where it can be; others are forgotten."""
        before = self._read()
        counted = {name: 1 + _num_in_vain(before.get(name), n) for name, n in num_tokens.items()}
        if counted or before:
            self._write({name: [num_tokens[name], number] for name, number in counted.items()})
        return counted

    def _read(self) -> Mapping[str, object]:
        try:
            kept = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    def _write(self, attempts: Mapping[str, object]) -> None:
        draft = self._path.with_suffix(".new")
        # Without it, a stream is taken up more often than it should be: no reason to take up none.
        with contextlib.suppress(OSError):
            file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _OWNER_ONLY)
            with os.fdopen(file, "w") as out:
                json.dump(attempts, out)
            draft.replace(self._path)


def _num_in_vain(before: object, num_tokens: int) -> int:
    """Attempts that began with as many tokens."""
    match before:
        case [int(known), int(number)] if known == num_tokens:
            return number
    return 0
