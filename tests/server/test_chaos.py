"""A smaller crowd than `bench/chaos.py` lets in, in the same way."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
NOT_YET = "memory grew less than 5%"
"""So few requests are not enough to warm up."""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts files in /proc")
def test_a_crowd_that_misbehaves_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    sys.modules.pop("chaos", None)
    chaos = importlib.import_module("chaos")
    outcome = chaos.serve_and_storm("fake", 300, seed=7)
    assert outcome.surprises == ()
    assert {bar for bar, is_met in outcome.verdicts.items() if not is_met} <= {NOT_YET}
    assert outcome.statuses["200"] > 50 and outcome.statuses["left"] > 50
    assert {"400", "404", "413"} <= outcome.statuses.keys()
