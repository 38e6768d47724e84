"""A list whose beginning lies on disk is the same list."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as checks
from hypothesis import strategies as st

from headrace.errors import GenerationFailed, StreamGone
from headrace.events import Delta, Event, Failed, Timings, TokenLogprob, Usage
from headrace.streams.shelf import Shelf, ShelfFile

ACTIONS = st.lists(st.integers(1, 700) | st.sampled_from(["spill", "pack"]), max_size=12)


@given(actions=ACTIONS, start=st.integers(0, 2000))
@checks(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_what_was_appended(actions: list[int | str], start: int, tmp_path: Path) -> None:
    file = ShelfFile(tmp_path / "shelf")
    shelf: Shelf[tuple[int, str]] = Shelf(lambda value: value[0] % 100 == 7)
    plain: list[tuple[int, str]] = []
    for action in actions:
        if isinstance(action, int):
            for number in range(len(plain), len(plain) + action):
                plain.append((number, f"text {number}"))
                shelf.append(plain[-1])
        elif action == "pack":
            while shelf.pack_some():
                pass
            assert not shelf.recent
        else:
            shelf.spill(file)
            assert not shelf.recent and not shelf.num_packed_bytes
    assert len(shelf) == len(plain)
    assert list(shelf.iterate()) == plain
    assert list(shelf.since(start)) == plain[start:] == list(shelf.iterate(start))
    file.delete()


def test_events_come_back_as_they_were(tmp_path: Path) -> None:
    file = ShelfFile(tmp_path / "shelf")
    shelf: Shelf[Event] = Shelf(lambda event: isinstance(event, Failed))
    said = TokenLogprob(3, -0.25, ((3, -0.25), (4, -1.5)))
    delta = Delta(0, 0, (3,), "é", (said,), "thought")
    failed = Failed(0, GenerationFailed("no"), Usage(1, 0, 1), Timings(0.0, 0.0, 0.0))
    for event in (delta, failed):
        shelf.append(event)
    shelf.spill(file)
    assert shelf.since(0) == [delta, failed]
    assert stat.S_IMODE((tmp_path / "shelf").stat().st_mode) == 0o600


def test_what_the_disk_lost_is_gone(tmp_path: Path) -> None:
    file = ShelfFile(tmp_path / "shelf")
    shelf: Shelf[int] = Shelf()
    shelf.append(1)
    shelf.spill(file)
    (tmp_path / "shelf").write_bytes(b"x")
    with pytest.raises(StreamGone, match="disk"):
        shelf.since(0)
    file.delete()
    file.delete()
    with pytest.raises(StreamGone, match="disk"):
        shelf.since(0)
    assert list(tmp_path.iterdir()) == []
