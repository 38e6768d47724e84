"""A server that is killed at any moment: whoever comes back to its next one hears all, once."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.crashing import (
    QUESTIONS,
    STORY,
    Mortal,
    Reader,
    disturbed,
    home_with,
    random_kills,
    undisturbed,
    wait_for_news,
)

NUM_KILLS = 10


@pytest.fixture
def mortal(default_model_path: Path, tmp_path: Path) -> Mortal:
    """A server with the default model and a data folder of its own."""
    return Mortal(home_with(default_model_path, tmp_path / "home"), "--drain-timeout", "0.2")


def test_killed_at_random_moments(mortal: Mortal) -> None:
    questions = list(QUESTIONS.values())
    expected = undisturbed(mortal, questions)
    kills = random_kills(random.Random(3), NUM_KILLS, spread_s=0.05)
    found = disturbed(mortal, questions, kills)
    for name, left, right in zip(QUESTIONS, found, expected, strict=True):
        assert left.heard == right.heard, name
        assert [number for number, *_ in left.heard] == [
            str(number) for number in range(1, len(left.heard) + 1)
        ]
        assert left.num_ends == 2  # its finish reason, and `[DONE]`


def test_a_key_is_answered_by_the_next_server(mortal: Mortal) -> None:
    """Its client knows no numbers: it asks again, and hears all from the beginning."""
    [expected] = undisturbed(mortal, [STORY])
    reader = Reader(mortal.port, STORY, "once", is_resumable=False)
    with mortal.alive(), ThreadPoolExecutor(1) as thread:
        reading = thread.submit(reader.read_to_end)
        wait_for_news([reader], 11)
        mortal.kill()
        mortal.start()
        reading.result()
    assert reader.text == expected.text


def test_a_server_that_is_stopped_in_the_middle(mortal: Mortal) -> None:
    """Its streams are no answers that were cut: they go on in the next one."""
    [expected] = undisturbed(mortal, [STORY])
    reader = Reader(mortal.port, STORY, "stopped")
    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(reader.read_to_end)
        with mortal.alive():
            wait_for_news([reader], 4)
            assert mortal.end() == 0
        assert len(reader.heard) < len(expected.heard)
        with mortal.alive():
            reading.result()
    assert reader.heard == expected.heard
