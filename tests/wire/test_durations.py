import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.wire.durations import go_duration, parse_duration

SEEN = [
    (6.0, "6s"),
    (10.332999999, "10.332999999s"),
    (10.593999999, "10.593999999s"),
    (11.354999999, "11.354999999s"),
    (0.026, "26ms"),
    (0.13, "130ms"),
    (0.261, "261ms"),
    (1.57, "1.57s"),
    (7.66, "7.66s"),
    (179.56, "2m59.56s"),
    (578.016, "9m38.016s"),
    (1587.5, "26m27.5s"),
    (4.77, "4.77s"),
    (50.597142857, "50.597142857s"),
]
RULES = [
    (0.0, "0s"),
    (1e-9, "1ns"),
    (0.000_001, "1µs"),
    (0.000_123_4, "123.4µs"),
    (0.000_999_999, "999.999µs"),
    (0.001, "1ms"),
    (0.001_05, "1.05ms"),
    (1.0, "1s"),
    (60.0, "1m0s"),
    (3600.0, "1h0m0s"),
    (86_400.0, "24h0m0s"),
    (90_061.5, "25h1m1.5s"),
    (-1.5, "-1.5s"),
    (59.9999999999, "1m0s"),
]


@pytest.mark.parametrize(("seconds", "text"), SEEN + RULES)
def test_duration(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text
    assert parse_duration(text) == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize(
    ("used", "limit", "window_s", "text"),
    [
        (1, 14400, 86400, "6s"),
        (13, 30000, 60, "26ms"),
        (13, 6000, 60, "130ms"),
        (5034 + 1443 - 6000, 6000, 60, "4.77s"),
        (669, 100000, 86400, "9m38.016s"),
        (12903 - 7000, 7000, 60, "50.597142857s"),
    ],
)
def test_waits_as_they_are_computed(used: int, limit: int, window_s: int, text: str) -> None:
    assert go_duration(used / limit * window_s) == text


@given(st.integers(-(10**15), 10**15))
def test_a_duration_comes_back(num_ns: int) -> None:
    seconds = num_ns / 10**9
    assert parse_duration(go_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize("text", ["", "5", "s", "1.2.3s", "1m 2s", "ms", "-", "1x", "\u0661s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


def test_other_spellings() -> None:
    assert parse_duration("0") == 0
    assert parse_duration("+1.s") == 1
    assert parse_duration("1us") == parse_duration("1μs") == pytest.approx(1e-6)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf")])
def test_what_never_ends_has_no_duration(seconds: float) -> None:
    with pytest.raises((ValueError, OverflowError)):
        go_duration(seconds)
