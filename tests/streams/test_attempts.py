"""What comes no further is counted; what does begins anew."""

from pathlib import Path

import pytest

from headrace.streams.attempts import Attempts


def test_only_attempts_in_vain_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "attempts.json"
    for number in (1, 2, 3):
        assert Attempts(path).count({"a": 5}) == {"a": number}
    assert Attempts(path).count({"a": 6, "b": 0}) == {"a": 1, "b": 1}
    assert Attempts(path).count({"b": 0}) == {"b": 2}
    assert Attempts(path).count({"a": 6}) == {"a": 1}
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("broken", ["", "[]", '{"a": 1}', '{"a": ["x", 2]}'])
def test_a_broken_file_counts_nothing(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "attempts.json"
    path.write_text(broken)
    assert Attempts(path).count({"a": 1}) == {"a": 1}


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    assert Attempts(tmp_path / "none" / "attempts.json").count({"a": 1}) == {"a": 1}
